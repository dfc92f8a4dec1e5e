"""Models of transformers: read with its logits, converted there and back bit by bit, from and to any split."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)

from hpclm.core.errors import CheckpointError
from hpclm.core.records import from_dict
from hpclm.core.spec import ModelSpec
from hpclm.data.tokenizers import Tokenizer
from hpclm.engines.megatron.ranks import convert_huggingface
from hpclm.engines.megatron.ranks.convert import convert
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.formats.huggingface.architectures import model_spec
from hpclm.formats.inspection import look
from hpclm.formats.ranks import checkpoint_store
from hpclm.formats.ranks.huggingface_weights import load_gpt
from hpclm.formats.ranks.shards import sharded_tensors
from tests.support.gpt_models import gpt_of

pytestmark = pytest.mark.filterwarnings("ignore")

ENDS = {"eos_token_id": 0, "bos_token_id": 0}  # of the tokenizer that `saved` trains
SIZES: dict[str, Any] = {
    **ENDS,
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
UNGROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 8, "tie_word_embeddings": True}
LLAMA3_ROPE: dict[str, Any] = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GPT2_SIZES: dict[str, Any] = {**ENDS, "vocab_size": 300, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64}
GPT2_OTHERS: dict[str, Any] = {
    "tie_word_embeddings": False,
    "activation_function": "gelu",
    "n_inner": 80,
    "layer_norm_epsilon": 1e-3,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2Config(**GPT2_SIZES),
    "gpt2, untied, exact gelu": lambda: GPT2Config(**GPT2_SIZES, **GPT2_OTHERS),
    "llama": lambda: LlamaConfig(**SIZES),
    "llama, no groups, tied": lambda: LlamaConfig(**UNGROUPED),
    "llama 3.1": lambda: LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    "llama, interpolated": lambda: LlamaConfig(
        **SIZES, rope_parameters={"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}
    ),
    "llama, wide heads": lambda: LlamaConfig(**SIZES, head_dim=16, rms_norm_eps=1e-5),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
    "mistral, short window": lambda: MistralConfig(**SIZES, sliding_window=32),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, sliding_window=None),
    "mixtral, three of five": lambda: MixtralConfig(
        **SIZES, num_local_experts=5, num_experts_per_tok=3, sliding_window=None
    ),
}


def saved(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model with every weight drawn, biases and norms too, saved by transformers."""
    torch.manual_seed(5)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model = model.to(dtype).eval()
    model.save_pretrained(folder)
    tokenizer = Tokenizer.train(["some words to learn", "and others"] * 20, 300)
    tokenizer.save(folder)
    return model


def ours(model: ModelSpec, load: Callable[[Any], None], alone: Groups, tokens: torch.Tensor) -> torch.Tensor:
    gpt = gpt_of(model, alone, seed=None)
    load(sharded_tensors(gpt))
    with torch.no_grad():
        found: torch.Tensor = gpt.eval()(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), None)
    return found[..., : model.vocab_size]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_transformers(tmp_path: Path, alone: Groups, name: str) -> None:
    reference = saved(tmp_path / "hf", name)
    model = model_spec(tmp_path / "hf")
    tokens = torch.randint(0, 300, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(tokens).logits
    found = ours(model, lambda shards: load_gpt(tmp_path / "hf", shards, model), alone, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_changes_no_bit(
    tmp_path: Path, alone: Groups, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(convert_huggingface, "FILE_BYTES", 60_000)  # several files
    dtype = torch.bfloat16 if "3" in name else torch.float32
    reference = saved(tmp_path / "hf", name, dtype)
    assert "2 layers" in convert(tmp_path / "hf", tmp_path / "ours", "hpclm", None)
    assert look(tmp_path / "ours")["kind"] == "hpclm-checkpoint"
    assert "for transformers" in convert(tmp_path / "ours", tmp_path / "back", "huggingface", None)
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1
    config = AutoConfig.from_pretrained(tmp_path / "back")
    auto: Any = AutoModelForCausalLM
    stored, theirs = (
        {key: value for path in (tmp_path / folder).glob("*.safetensors") for key, value in load_file(path).items()}
        for folder in ("back", "hf")
    )
    assert {value.dtype for value in stored.values()} == {dtype} == {config.dtype}
    if config.model_type != "mixtral":  # whose tensors transformers joins while it loads them
        again = auto.from_config(config).to(dtype).eval()
        missing = again.load_state_dict(stored, strict=False)
        assert not missing.unexpected_keys
        assert set(missing.missing_keys) <= {"lm_head.weight"}
        again.tie_weights()
        tokens = torch.randint(0, 300, (2, 30), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(again(tokens).logits, reference(tokens).logits, rtol=0, atol=0)
    assert stored.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in stored.items())
    # the same architecture, but for mistral's name and its window, in which both are the same
    assert config.model_type == ("llama" if name.startswith("mistral") else reference.config.model_type)
    own = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert own("some words")["input_ids"] == Tokenizer.load(tmp_path / "hf").encode("some words")
    assert own.eos_token_id == config.eos_token_id == Tokenizer.load(tmp_path / "hf").eos_id


LOADED = """
import sys, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
first, second = (AutoModelForCausalLM.from_pretrained(folder) for folder in sys.argv[1:])
tokens = torch.arange(20).view(1, 20)
with torch.no_grad():
    assert torch.equal(first(tokens).logits, second(tokens).logits)
print(second.generate(tokens, max_new_tokens=4).shape)
"""


def test_another_process_loads_it(tmp_path: Path, alone: Groups) -> None:
    saved(tmp_path / "hf", "llama 3.1")
    convert(tmp_path / "hf", tmp_path / "ours", "hpclm", None)
    convert(tmp_path / "ours", tmp_path / "back", "huggingface", None)
    words = [sys.executable, "-W", "ignore", "-c", LOADED, str(tmp_path / "hf"), str(tmp_path / "back")]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "[1, 24]" in ended.stdout


@pytest.mark.parametrize(
    ("name", "key"),
    [("mixtral", "num_moe_experts"), ("qwen3", "qk_norm"), ("qwen2", "add_qkv_bias"), ("llama 3.1", "rotary_scaling")],
)
def test_what_nemos_gpt_has_not_is_written_to_no_archive(tmp_path: Path, alone: Groups, name: str, key: str) -> None:
    saved(tmp_path / "hf", name)
    convert(tmp_path / "hf", tmp_path / "ours", "hpclm", None)
    with pytest.raises(CheckpointError, match=rf"model\.{key}.* no NeMo archive .*; give --to huggingface"):
        convert(tmp_path / "ours", tmp_path / "out.nemo", "nemo", None)
    assert not (tmp_path / "out.nemo").exists()


def test_a_converted_checkpoint_is_read_by_the_engine(tmp_path: Path, alone: Groups) -> None:
    reference = saved(tmp_path / "hf", "qwen2")
    convert(tmp_path / "hf", tmp_path / "ours", "hpclm", None)
    model = from_dict(ModelSpec, json.loads((tmp_path / "ours" / "model.json").read_text()))
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = reference(tokens).logits
    found = ours(model, lambda shards: checkpoint_store.load(tmp_path / "ours", shards), alone, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "bert": ({"model_type": "bert"}, "model_type is 'bert'; gpt2, llama"),
    "no type": ({"model_type": None}, "model_type is None"),
    "relu": ({"hidden_act": "relu"}, "hidden_act is 'relu': only silu can be read"),
    "bias": ({"attention_bias": True}, "attention_bias is true"),
    "yarn": ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
    "other llama3": (
        {"rope_parameters": {**LLAMA3_ROPE, "high_freq_factor": 2.0}},
        "high_freq_factor of rope is 2.0",
    ),
    "text": ({"hidden_size": "64"}, "hidden_size is '64', and must be a number"),
    "half": ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5, and must be a whole number"),
    "groups": ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide"),
    "deeper": ({"num_hidden_layers": 3}, "contains no tensor model.layers.2.input_layernorm.weight"),
    "wider": (
        {"intermediate_size": 128},
        "model.layers.0.mlp.gate_proj.weight has shape [96, 64], and config.json needs [128, 64]",
    ),
    "fewer words": (
        {"vocab_size": 200},
        "model.embed_tokens.weight has shape [300, 64], and config.json needs [200, 64]",
    ),
    "more words": ({"vocab_size": 400}, "model.embed_tokens.weight has shape [300, 64]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_named(tmp_path: Path, alone: Groups, name: str) -> None:
    saved(tmp_path / "hf", "llama")
    changes, message = WRONG[name]
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "hf", tmp_path / "ours", "hpclm", None)
    assert message in str(caught.value)
    assert not list(tmp_path.glob("ours*"))


def test_the_tensor_that_is_wrong_is_named(tmp_path: Path, alone: Groups) -> None:
    saved(tmp_path / "hf", "llama")
    file = tmp_path / "hf" / "model.safetensors"
    whole = load_file(file)

    def error(**changes: torch.Tensor) -> str:
        save_file({**whole, **changes}, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError) as caught:
            convert(tmp_path / "hf", tmp_path / "ours", "hpclm", None)
        return str(caught.value)

    up, key = "model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.k_proj.weight"
    assert f"{up} has shape [128, 64], and config.json needs [96, 64]" in error(**{up: torch.zeros(128, 64)})
    assert f"{key} has shape [64, 64], and config.json needs" in error(**{key: torch.zeros(64, 64)})
    strange = "model.layers.0.mlp.strange.weight"
    assert f"has a tensor {strange}, for which" in error(**{strange: torch.zeros(3)})
    # what older files have beside weights
    save_file({**whole, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}, file)
    assert "2 layers" in convert(tmp_path / "hf", tmp_path / "ours", "hpclm", None)


def test_a_tokenizer_that_transformers_splits_otherwise_is_said(tmp_path: Path, alone: Groups) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    text = "x = 2 34 34"
    for kind in ("llama", "qwen2"):
        saved(tmp_path / kind, kind)
        Tokenizer.train([text] * 20, 300).save(tmp_path / kind)  # numbers with the space before them
        convert(tmp_path / kind, tmp_path / f"{kind}-ours", "hpclm", None)
        said = convert(tmp_path / f"{kind}-ours", tmp_path / f"{kind}-back", "huggingface", None)
        right = Tokenizer.load(tmp_path / f"{kind}-ours").encode(text)
        same: Any = PreTrainedTokenizerFast.from_pretrained(tmp_path / f"{kind}-back")
        assert same(text)["input_ids"] == right
        automatic: Any = AutoTokenizer.from_pretrained(tmp_path / f"{kind}-back")
        card = (tmp_path / f"{kind}-back" / "README.md").read_text()
        assert (automatic(text)["input_ids"] == right) == (kind == "llama")
        assert ("PreTrainedTokenizerFast.from_pretrained" in said) == (kind == "qwen2")
        assert ("AutoTokenizer.from_pretrained(" in card) == (kind == "llama")


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_a_sentencepiece_model_that_normalises_is_said(tmp_path: Path, alone: Groups, rule: str) -> None:
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words here and there"] * 50), model_writer=made, vocab_size=40,
        normalization_rule_name=rule, remove_extra_whitespaces=rule != "identity", hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    saved(tmp_path / "hf", "llama")
    convert(tmp_path / "hf", tmp_path / "ours", "hpclm", None)
    (tmp_path / "ours" / "tokenizer.json").unlink()
    (tmp_path / "ours" / "tokenizer.model").write_bytes(made.getvalue())
    said = convert(tmp_path / "ours", tmp_path / "back", "huggingface", None)
    assert ("normalises texts" in said) == (rule != "identity")


def test_damaged_folders_are_refused(tmp_path: Path, alone: Groups) -> None:
    saved(tmp_path / "hf", "llama")
    whole = (tmp_path / "hf" / "model.safetensors").read_bytes()

    def error() -> str:
        shutil.rmtree(tmp_path / "ours", ignore_errors=True)
        with pytest.raises(CheckpointError) as caught:
            convert(tmp_path / "hf", tmp_path / "ours", "hpclm", None)
        return str(caught.value)

    (tmp_path / "hf" / "model.safetensors").write_bytes(whole[:5000])
    assert "damaged" in error()
    (tmp_path / "hf" / "model.safetensors").unlink()
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin is a pickle: save it with safe_serialization=True" in error()
    index = tmp_path / "hf" / "model.safetensors.index.json"
    for name, message in (("../x", "which is not in the folder"), ("x.safetensors", "is missing")):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        assert message in error()


def test_models_that_transformers_does_not_have_are_refused(tmp_path: Path, alone: Groups) -> None:
    saved(tmp_path / "hf", "llama")
    convert(tmp_path / "hf", tmp_path / "ours", "hpclm", None)
    card = tmp_path / "ours" / "model.json"
    model = json.loads(card.read_text())
    for key, value in (("activation", "geglu"), ("rotary_percent", 0.5), ("normalization", "layernorm1p")):
        card.write_text(json.dumps({**model, key: value}))
        with pytest.raises(CheckpointError, match=rf"model.{key} is {value}, but transformers' Llama has"):
            convert(tmp_path / "ours", tmp_path / "back", "huggingface", None)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(("kind", "said"), [("mistral", False), ("mistral, short window", True)])
def test_a_window_that_shortens_sequences_is_said(tmp_path: Path, alone: Groups, kind: str, said: bool) -> None:
    saved(tmp_path / "hf", kind)
    done = convert(tmp_path / "hf", tmp_path / "ours", "hpclm", None)
    assert ("sequences of at most 32 tokens, its sliding window" in done) is said
