"""Every key of TRL's SFTConfig and of its command line beside those of TrainingArguments, and what becomes of it.

Source: huggingface/trl 0.9 to 1.9 and main of 2026-07, trl/trainer/sft_config.py, model_config.py, scripts/utils.py.
"""

from __future__ import annotations

from hpclm.recipe.importers.fine_tuning import argument_keys
from hpclm.recipe.importers.fine_tuning.argument_keys import Refusals

TAKEN: dict[str, str] = {
    **argument_keys.TAKEN,
    "model_name_or_path": "model.checkpoint",
    "model": "model.checkpoint",
    "dataset_name": "instructions.train",
    "max_length": "instructions.max_seq_length",
    "max_seq_length": "instructions.max_seq_length",
    "packing": "instructions.packing",
    "completion_only_loss": "instructions.learn",
    "assistant_only_loss": "instructions.learn",
    "chat_template_path": "instructions.chat_template",
    "use_peft": "fine_tune.method",
    "load_in_4bit": "huggingface.quantization",
    "bnb_4bit_quant_type": "huggingface.quantization",
    "use_bnb_nested_quant": "huggingface.quantization",
    "lora_r": "fine_tune.lora.rank",
    "lora_alpha": "fine_tune.lora.alpha",
    "lora_dropout": "fine_tune.lora.dropout",
    "lora_target_modules": "fine_tune.lora.targets",
    "lora_modules_to_save": "fine_tune.lora.modules_to_save",
    "use_rslora": "fine_tune.lora.rslora",
    "use_dora": "fine_tune.lora.dora",
}
_PREPARED = "rows are prepared before training"
_KERNELS = "how it is computed, not what"
NO_EFFECT: dict[str, str] = {
    **argument_keys.NO_EFFECT,
    **dict.fromkeys(("dataset_num_proc", "dataset_batch_size", "eval_packing", "pad_to_multiple_of"), _PREPARED),
    **dict.fromkeys(("padding_free", "pad_token", "num_of_sequences", "chars_per_token"), _PREPARED),
    **dict.fromkeys(("dataset_text_field", "dataset_config", "dataset_train_split", "dataset_test_split"), _PREPARED),
    **dict.fromkeys(("attn_implementation", "activation_offloading", "use_flash_attention_2", "use_liger"), _KERNELS),
    **dict.fromkeys(("dtype", "torch_dtype", "ignore_bias_buffers"), _KERNELS),
    "bnb_4bit_quant_storage": "of load_in_4bit",
    "packing_strategy": "an option of packing, which is off",
    "model_revision": "nothing is fetched while a run is queued or runs",
    "lora_task_type": "the model predicts the next token",
    "trust_remote_code": "where a model has Python files, the plan asks for huggingface.remote_code",
    "env": "set variables in container.environment, or in the shell that submits",
    "router_aux_loss_coef": "only of mixtures of experts whose model gives the loss of its router",
    "truncation_mode": "the start of a row is kept",
    "shuffle_dataset": "rows are drawn at random",
    "loss_type": "the mean negative log likelihood",
}
_QUANTISED = "frozen layers are quantised to 4 bits; choose load_in_4bit, or remove it"
REFUSED: Refusals = {
    **argument_keys.REFUSED,
    "model_init_kwargs": ((), "a model is loaded as its config.json says; remove it"),
    "dataset_kwargs": ((), "rows have no other options; remove it"),
    "eos_token": ((), "answers end with the tokenizer's end token; set it in the model's tokenizer_config.json"),
    "dataset_streaming": ((), "rows are prepared before training; remove it"),
    "datasets": ((), "mixtures of data sets are not read; give --set 'hpclm.instructions.train=[FILE]', and remove it"),
    "streaming": ((), "rows are prepared before training; remove it"),
    "test_split_size": ((), "rows are not split; give --set 'hpclm.instructions.validation=[FILE]', and remove it"),
    "formatting_func": ((), "rows are written by instructions.template; remove it"),
    "neftune_noise_alpha": ((0,), "there is no NEFTune noise; remove it"),
    "lora_target_parameters": ((), "adapters are of modules, not of parameters; remove it"),
    "load_in_8bit": ((), _QUANTISED),
    "peft_config": ((), "write use_peft, lora_r, lora_alpha and lora_target_modules"),
}
# Those that only SFTConfig has
OF_SFT = (
    *("max_length", "max_seq_length", "packing", "dataset_text_field", "completion_only_loss", "assistant_only_loss"),
    *("dataset_name", "dataset_num_proc", "packing_strategy", "padding_free", "eval_packing"),
)
SECRETS = argument_keys.SECRETS
