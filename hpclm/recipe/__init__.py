"""What the user wrote: the schema, YAML with line numbers, inheritance between stages, and `--set`.

    loaded = load(Path("recipes/demo.yaml"), ["optim.lr=1e-3", "stages.ptune.trainer.max_steps=50"], nodes=2)
    loaded.stages[0].recipe.parallel.tensor
    loaded.stages[0].where("parallel", "tensor")        # 'recipes/demo.yaml:14 parallel.tensor'

Reading a recipe is pure but for the files it names by `extends` and, where it is another tool's, an archive. All errors
are reported in one RecipeError. `docs/recipe.md` is made from the schema (`python -m hpclm.recipe.reference`).

The names below are looked up when first used: `recipe.sites` needs no schema.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpclm.recipe.loading import LoadedRecipe, LoadedStage, load

__all__ = ["LoadedRecipe", "LoadedStage", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hpclm.recipe import loading

    return getattr(loading, name)
