"""What the user wrote: the schema, YAML with line numbers, inheritance between stages, and `--set`.

    loaded = load(Path("recipes/demo.yaml"), ["optim.lr=1e-3", "stages.ptune.trainer.max_steps=50"], nodes=2)
    loaded.stages[0].recipe.parallel.tensor
    loaded.stages[0].where("parallel", "tensor")        # 'recipes/demo.yaml:14 parallel.tensor'

Everything here is pure but for reading the recipe's file: no clock, no environment, no other file. Every fault of a
recipe comes in one RecipeError. `docs/recipe.md` is made from the schema (`python -m hpclm.recipe.reference`).
"""

from hpclm.recipe.loading import LoadedRecipe, LoadedStage, load

__all__ = ["LoadedRecipe", "LoadedStage", "load"]
