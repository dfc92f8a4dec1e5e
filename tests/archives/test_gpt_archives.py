"""GPT archives of NeMo 1.x: every split of NeMo into every split of hpclm, bit for bit; and what is refused."""

from __future__ import annotations

import gc
import gzip
import io
import os
import pickle
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from hpclm.core.errors import CheckpointError
from hpclm.core.spec import ModelSpec
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.formats.archive import Archive
from hpclm.formats.nemo.model_config import model_spec
from hpclm.formats.ranks.archived_weights import load_gpt, tensor_of
from hpclm.formats.ranks.shards import megatron_shards, sharded_tensors
from hpclm.formats.torch_pickles import read_index
from tests.support.engine_harness import MODERN
from tests.support.gpt_models import DEEP, gpt_of, logits, state_of
from tests.support.nemo_files import CORE_NAMES, TE_NAMES, config_text, saved, shard, write_archive, write_members

pytestmark = pytest.mark.filterwarnings("ignore")


def refused(path: Path, words: str) -> None:
    """The configuration is, in words."""
    with Archive(path) as archive:  # noqa: SIM117 - only the reading is to fail
        with pytest.raises(CheckpointError, match=words):
            model_spec(archive)


NEMOTRON: dict[str, Any] = {"rotary_percent": 0.5, "normalization": "layernorm1p", "num_query_groups": 4}
ARCHIVES = [
    (DEEP, {}),
    (DEEP, {"tensor": 2}),
    (DEEP, {"tensor": 4}),
    (DEEP, {"pipeline": 2}),
    (DEEP, {"tensor": 2, "pipeline": 2}),
    (DEEP, {"tensor": 4, "pipeline": 2}),
    (DEEP, {"tensor": 2, "legacy": True, "config": {"megatron_legacy": True}}),
    (DEEP, {"mode": "w:gz", "tensor": 2}),
    (MODERN, {"tensor": 2, "pipeline": 2}),
    (MODERN, {"tensor": 2, "two": True, "config": {"activation": "swiglu"}}),
    # the layers of Transformer Engine and of megatron-core
    (DEEP, {"tensor": 2, "names": TE_NAMES, "config": {"transformer_engine": True}}),
    (DEEP, {"tensor": 2, "pipeline": 2, "names": CORE_NAMES, "config": {"mcore_gpt": True}}),
    (MODERN, {"tensor": 2, "names": CORE_NAMES, "config": {"mcore_gpt": True}}),
    # GPT-2B-001 and Nemotron-3-8B: rotation of half a head, layernorm1p, swiglu or squared relu
    (replace(MODERN, **NEMOTRON, activation="swiglu"), {"tensor": 2}),
    (replace(MODERN, **NEMOTRON, activation="squared_relu"), {"pipeline": 2, "names": CORE_NAMES}),
    (replace(DEEP, activation="gelu_exact"), {"config": {"bias_activation_fusion": False}}),
    (replace(MODERN, activation="geglu_exact"), {"tensor": 2}),
    (replace(MODERN, activation="geglu", add_bias_linear=True), {"tensor": 2}),
    (replace(MODERN, activation="reglu", rotary_base=5000.0, rotary_interpolation=2.0), {}),
]


@pytest.mark.parametrize(
    ("model", "options"), ARCHIVES, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_an_archive_gives_the_logits_of_the_model_it_was_made_from(
    tmp_path: Path, alone: Groups, model: ModelSpec, options: dict[str, Any]
) -> None:
    gpt, other = gpt_of(model, alone), gpt_of(model, alone, seed=4)
    path = write_archive(tmp_path / "gpt.nemo", state_of(gpt), model, **options)
    with Archive(path) as archive:
        assert model_spec(archive) == replace(model, init_std=0.02)
    load_gpt(path, sharded_tensors(other), model)
    assert torch.equal(logits(other), logits(gpt))


def test_an_unpacked_folder_is_read_too(tmp_path: Path, alone: Groups) -> None:
    gpt, other = gpt_of(DEEP, alone), gpt_of(DEEP, alone, seed=4)
    load_gpt(write_archive(tmp_path / "gpt", state_of(gpt), DEEP, tensor=2), sharded_tensors(other), DEEP)
    assert torch.equal(logits(other), logits(gpt))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_as_it_is(tmp_path: Path, alone: Groups, dtype: torch.dtype) -> None:
    gpt, other = gpt_of(DEEP, alone), gpt_of(DEEP, alone, seed=4)
    state = {name: value.to(dtype) for name, value in state_of(gpt).items()}
    load_gpt(write_archive(tmp_path / "gpt.nemo", state, DEEP, pipeline=2), sharded_tensors(other), DEEP)
    for name, value in state_of(other).items():
        assert torch.equal(value, state[name].float()), name


@pytest.mark.parametrize("theirs", [1, 2, 4])
@pytest.mark.parametrize("ours", [1, 2, 4])
@pytest.mark.parametrize("model", [DEEP, MODERN], ids=["gpt2", "modern"])
def test_every_tensor_rank_gets_its_part_bit_for_bit(
    tmp_path: Path, alone: Groups, model: ModelSpec, theirs: int, ours: int
) -> None:
    if model is MODERN and 4 in (theirs, ours):
        model = replace(MODERN, num_query_groups=4)
    gpt = gpt_of(model, alone)
    path = write_archive(tmp_path / "gpt.nemo", state_of(gpt), model, tensor=theirs)
    for whole in megatron_shards(gpt):
        for axis in range(len(whole.local_shape)):
            if whole.local_shape[axis] % ours:
                continue
            for rank, part in enumerate(whole.data.chunk(ours, dim=axis)):
                offset = list(whole.global_offset)
                offset[axis] += rank * part.shape[axis]
                mine = replace(
                    whole,
                    data=torch.empty_like(part).contiguous(),
                    local_shape=tuple(part.shape),
                    global_offset=tuple(offset),
                )
                load_gpt(path, [mine], model)
                assert torch.equal(mine.data, part), (whole.key, axis, rank)


def test_a_padded_vocabulary_is_cut_or_filled(tmp_path: Path, alone: Groups) -> None:
    gpt = gpt_of(DEEP, alone)
    path = write_archive(tmp_path / "gpt.nemo", state_of(gpt), DEEP, tensor=2)
    words = state_of(gpt)["embedding.word_embeddings.weight"]
    for rows in (300, 512):
        target = ShardedTensor.from_rank_offsets(
            "embedding.word_embeddings.weight", torch.full((rows, 32), 9.0), allow_shape_mismatch=True
        )
        load_gpt(path, [target], DEEP)
        both = min(rows, len(words))
        assert torch.equal(target.data[:both], words[:both])
        assert (target.data[both:] == 0).all()


def test_the_tokenizer_comes_along(tmp_path: Path, alone: Groups, shared_data: Path) -> None:
    from hpclm.data.tokenizers import Tokenizer

    folder = shared_data / "gpt2-bpe"
    files = {
        "0a_vocab.json": (folder / "vocab.json").read_bytes(),
        "1b_merges.txt": (folder / "merges.txt").read_bytes(),
    }
    path = write_archive(tmp_path / "gpt.nemo", state_of(gpt_of(DEEP, alone)), DEEP, files=files)
    text = "Predict intent and slot: who was john dillinger? 日本"
    whole = Tokenizer.from_bpe(folder / "vocab.json", folder / "merges.txt")
    assert Tokenizer.from_archive(path).encode(text) == whole.encode(text)
    refused(path, "table has 384 rows, the tokenizer 50257")


class Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def hostile_tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info, io.BytesIO(b""))
    return path


def broken(folder: Path, gpt: Any) -> dict[str, tuple[Path, str]]:
    """Archives that are refused, and the message for each."""
    state = state_of(gpt)
    good = write_archive(folder / "good.nemo", state, DEEP).read_bytes()
    config = config_text(DEEP).encode()
    weights = shard(state, DEEP, 1, 1, (0, 0))

    def file(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    def members(name: str, **changed: bytes) -> Path:
        return write_members(folder / name, {"model_config.yaml": config, **changed})

    old = io.BytesIO()
    torch.save(weights, old, _use_new_zipfile_serialization=False)
    ckpt = saved(weights)
    torn = bytearray(ckpt)
    torn[-200:] = b"\0" * 200
    key = "model.language_model.encoder.layers.0.mlp.dense_h_to_4h.weight"
    holey = saved({name: value for name, value in weights.items() if name != key})
    thin = saved(weights | {key: weights[key][:, :5].clone()})
    unknown = saved(weights | {"model.language_model.decoder.layers.0.x.weight": torch.zeros(3)})
    evil = saved({"model.x": Command()})
    two = write_archive(folder / "two", state, DEEP, tensor=2)
    (two / "mp_rank_01" / "model_weights.ckpt").unlink()
    (two / "mp_rank_03").mkdir()
    (two / "mp_rank_03" / "model_weights.ckpt").write_bytes(ckpt)
    return {
        "absent": (folder / "absent.nemo", "does not exist"),
        "text": (file("text.nemo", b"hello"), "not a complete .nemo archive"),
        "empty": (file("empty.nemo", b""), "not a complete .nemo archive"),
        "truncated": (file("cut.nemo", good[: len(good) // 2]), "is truncated inside|not a complete"),
        "truncated-gzip": (file("cutgz.nemo", gzip.compress(good)[:2000]), "not a complete .nemo archive"),
        "escape": (hostile_tar(folder / "up.nemo", "../../evil"), "a path outside the archive"),
        "absolute": (hostile_tar(folder / "abs.nemo", "/etc/evil"), "a path outside the archive"),
        "link": (hostile_tar(folder / "link.nemo", "model_config.yaml", tarfile.SYMTYPE), "a link or device"),
        "device": (hostile_tar(folder / "dev.nemo", "model_weights.ckpt", tarfile.CHRTYPE), "a link or device"),
        "no-weights": (members("none.nemo"), "contains no model_weights.ckpt"),
        "code": (members("evil.nemo", **{"model_weights.ckpt": evil}), "posix.system, which is not needed for weights"),
        "bare-pickle": (
            members("bare.nemo", **{"model_weights.ckpt": pickle.dumps(Command())}),
            "damaged, or in torch",
        ),
        "old-format": (members("old.nemo", **{"model_weights.ckpt": old.getvalue()}), "from before 1.6"),
        "torn": (members("torn.nemo", **{"model_weights.ckpt": bytes(torn)}), "damaged"),
        "hole": (members("hole.nemo", **{"model_weights.ckpt": holey}), "contains no decoder.layers.0.mlp.linear_fc1"),
        "thin": (members("thin.nemo", **{"model_weights.ckpt": thin}), r"linear_fc1.weight has shape \(128, 5\)"),
        "unknown": (members("odd.nemo", **{"model_weights.ckpt": unknown}), "which hpclm does not support"),
        "missing-rank": (two, r"tensor rank 1, pipeline rank 0 are missing \(2 of 4 × 1"),
    }


BROKEN = [
    "absent",
    "text",
    "empty",
    "truncated",
    "truncated-gzip",
    "escape",
    "absolute",
    "link",
    "device",
    "no-weights",
    "code",
    "bare-pickle",
    "old-format",
    "torn",
    "hole",
    "thin",
    "unknown",
    "missing-rank",
]


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_damaged_or_hostile_is_refused_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Groups, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    gpt = gpt_of(DEEP, alone)
    path, words = broken(tmp_path, gpt)[name]
    with pytest.raises(CheckpointError, match=words) as caught:
        load_gpt(path, sharded_tensors(gpt), DEEP)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_a_tensor_cannot_be_made_to_reach_elsewhere(tmp_path: Path) -> None:
    """A pickle that sets the attributes of what stands in for a tensor."""
    with zipfile.ZipFile(io.BytesIO(saved({"x": torch.zeros(4)}))) as opened:
        entries = {name: opened.read(name) for name in opened.namelist()}
    name = next(one for one in entries if one.endswith("data.pkl"))
    # after the tensor is made: BUILD with {'start': 0}
    marker = entries[name].rindex(b"R")
    entries[name] = entries[name][: marker + 1] + b"}X\x05\x00\x00\x00startK\x00sb" + entries[name][marker + 1 :]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        for one, content in entries.items():
            opened.writestr(one, content)
    path = write_members(tmp_path / "x.nemo", {"model_config.yaml": b"", "model_weights.ckpt": made.getvalue()})
    with Archive(path) as archive:
        member = archive.members["model_weights.ckpt"]
        with pytest.raises(CheckpointError, match="damaged"):
            read_index(archive, member)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
        ({"normalization": "batchnorm"}, "normalization is 'batchnorm'"),
        ({"activation": "approx-gelu"}, "activation is 'approx-gelu'"),
        ({"headscale": True}, "headscale is True, which hpclm does not support"),
        ({"transformer_block_type": "normformer"}, "transformer_block_type is 'normformer'"),
        ({"openai_gelu": True, "activation": "squared-relu"}, "openai_gelu with activation 'squared-relu'"),
        ({"a_newer_key": 3}, "has a_newer_key, which hpclm does not know"),
        ({"num_moe_experts": 8}, "num_moe_experts is 8"),
        ({"hidden_size": "big"}, "no valid integer hidden_size"),
    ],
)
def test_what_models_here_cannot_be_is_said_by_name(
    tmp_path: Path, alone: Groups, changes: dict[str, Any], words: str
) -> None:
    path = write_archive(tmp_path / "gpt.nemo", state_of(gpt_of(DEEP, alone)), DEEP, config=changes)
    refused(path, words)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "!!python/object/apply:os.system ['touch pwned']", "\x00"])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_members(tmp_path / "x.nemo", {"model_config.yaml": text.encode()})
    refused(path, "model_config.yaml")
    assert not (tmp_path / "pwned").exists()


def test_a_tensor_outlives_its_archive(tmp_path: Path, alone: Groups) -> None:
    path = write_archive(tmp_path / "gpt.nemo", state_of(gpt_of(DEEP, alone)), DEEP)
    with Archive(path) as archive:
        index = read_index(archive, archive.members["model_weights.ckpt"])
        tensor = tensor_of(archive, index["model.language_model.encoder.final_layernorm.bias"])
    gc.collect()
    assert torch.equal(tensor, state_of(gpt_of(DEEP, alone))["decoder.final_layernorm.bias"])


# ((((),()),((),())),…: a mapping's key is hashed, and each level doubles what is hashed.
BY_COPY = b"\x80\x02})" + b"2\x86" * 40 + b"Ns."
BY_MEMO = b"\x80\x02})" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(40)) + b"Ns."
IN_A_LIST = b"\x80\x02]" + b"".join(b"q" + bytes([n]) + b"0](h%ch%ce" % (n, n) for n in range(40)) + b"."


@pytest.mark.parametrize("text", [BY_COPY, BY_MEMO, IN_A_LIST])
def test_a_pickle_that_holds_itself_again_and_again_is_refused_at_once(tmp_path: Path, text: bytes) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        opened.writestr("archive/data.pkl", text)
    path = write_members(tmp_path / "x.nemo", {"model_config.yaml": b"", "model_weights.ckpt": made.getvalue()})
    began = time.process_time()
    with Archive(path) as archive, pytest.raises(CheckpointError, match="holds itself more than"):
        read_index(archive, archive.members["model_weights.ckpt"])
    assert time.process_time() - began < 5


def test_more_layers_than_there_is_memory_for_are_refused_at_once(tmp_path: Path, alone: Groups) -> None:
    path = write_archive(tmp_path / "gpt.nemo", state_of(gpt_of(DEEP, alone)), DEEP, config={"num_layers": 10**25})
    refused(path, r"decoder.layers.\d+.self_attention.linear_qkv.weight is missing")
