"""NeMo 1.x's own YAML of GPT prompt learning and its evaluation, read as a recipe.

Sources: NVIDIA/NeMo r1.13 to r1.22, examples/nlp/language_modeling/conf/megatron_gpt_prompt_learning_config.yaml, its
SQuAD variant, and megatron_gpt_prompt_learning_inference.yaml; what their values do is megatron_gpt_prompt_learning_
model.py's and megatron_gpt_prompt_learning_eval.py's.
"""

from hpclm.recipe.importers.nemo.interpolation import interpolated
from hpclm.recipe.importers.nemo.translation import KeyNote, Translation, is_nemo, translate

__all__ = ["KeyNote", "Translation", "interpolated", "is_nemo", "translate"]
