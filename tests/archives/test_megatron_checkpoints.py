"""Checkpoints of Megatron-LM (`torch_dist`), written by megatron-core itself, are read; hostile ones do nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from torch.distributed.checkpoint.metadata import Metadata

from hpclm.core.errors import CheckpointError
from hpclm.engines.megatron.ranks.convert_megatron import from_megatron, to_megatron
from hpclm.formats.archive import Archive
from hpclm.formats.inspection import look
from hpclm.formats.megatron.model_weights import read_model
from hpclm.formats.model_card import read_model_card
from hpclm.formats.ranks.checkpoint_store import WholeTensors
from tests.support import processes, samples
from tests.support.megatron_saved import LAYERS, RANKS, SPLITS, WORDS
from tests.support.nemo_files import bpe_files, config_text
from tests.support.processes import ROOT, environment, hpclm

pytestmark = pytest.mark.slow


def _port() -> str:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return str(one.getsockname()[1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    _by_megatron("save", folder)
    return folder


def _by_megatron(action: str, folder: Path) -> None:
    port = _port()
    env = environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    words = [sys.executable, "-m", "tests.support.megatron_saved", action, str(folder)]
    started = [
        subprocess.Popen([*words, str(rank), port], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]
    said = [one.communicate()[1][-2000:] for one in started]
    assert [one.returncode for one in started] == [0] * RANKS, "\n".join(said)


@pytest.fixture
def llama(saved: Path) -> Path:
    return saved / "llama"


def in_our_names(name: str, kind: str) -> str:
    name = name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
    if kind != "mixtral":
        name = name.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
    return name.replace("mlp.experts.local_experts.", "mlp.experts.")


@pytest.mark.parametrize("name", ["gpt", "llama", "mixtral", "llama-tensor", "gpt-tensor"])
def test_every_tensor_is_the_models(saved: Path, tmp_path: Path, name: str) -> None:
    kind, ranks, *_ = SPLITS[name]
    folder = saved / name
    said = from_megatron(folder / "iter_0000005", tmp_path / "ours", None)
    assert f"{LAYERS} layers" in said
    assert "without a tokenizer" in said
    stored = WholeTensors(tmp_path / "ours")
    parts = [torch.load(folder / f"whole-{rank}.pt", weights_only=True) for rank in range(ranks)]
    assert {in_our_names(name, kind) for name in parts[0]} == set(stored.stored)
    for name, mine in parts[0].items():
        found = stored.tensor(in_our_names(name, kind))
        if ranks == 1:
            wanted = mine[: WORDS - 5] if "word_embeddings" in name or "output_layer" in name else mine
            assert torch.equal(found, wanted), name
        elif mine.shape == found.shape:
            assert torch.equal(found, mine), name
        elif "linear_fc1.weight" in name and kind == "llama":  # each rank has a part of the gate and of the values
            gates, values = zip(*(part[name].chunk(2) for part in parts), strict=True)
            assert torch.equal(found, torch.cat([*gates, *values])), name
        else:
            axis = 1 if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0
            whole = torch.cat([part[name] for part in parts], dim=axis)
            assert torch.equal(found, whole[: len(found)]), name


@pytest.mark.parametrize("name", SPLITS)
def test_both_formats_hold_the_same_at_any_split(saved: Path, tmp_path: Path, name: str) -> None:
    found = []
    for number in (5, 6):
        from_megatron(saved / name / f"iter_{number:07}", tmp_path / f"ours-{number}", None)
        found.append(WholeTensors(tmp_path / f"ours-{number}"))
    names = set(found[0].stored)
    assert names == set(found[1].stored)
    for key in names:
        assert torch.equal(found[0].tensor(key), found[1].tensor(key)), key


@pytest.mark.parametrize("version", [0, 3.0])
@pytest.mark.parametrize("attention", ["attention", "self_attention"])
def test_models_of_before_megatron_core_are_read(saved: Path, tmp_path: Path, version: float, attention: str) -> None:
    """Nested, by the names and the order of heads that transformers' convert_megatron_gpt2_checkpoint.py reads."""
    folder = Path(shutil.copytree(saved / "gpt" / "iter_0000006", tmp_path / "iter"))
    path = folder / "mp_rank_00" / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    names = {"self_attention.linear_qkv": f"{attention}.query_key_value", "linear_fc1": "dense_h_to_4h",
             "self_attention.linear_proj": f"{attention}.dense", "linear_fc2": "dense_4h_to_h", "decoder.": "",
             "pre_mlp_layernorm": "post_attention_layernorm"}  # fmt: skip
    layers, embedding = {}, {}
    for key, value in state["model"].items():
        if key.startswith("embedding."):
            embedding[key.split(".")[1]] = {"weight": value}
            continue
        named = key
        for ours, theirs in names.items():
            named = named.replace(ours, theirs)
        if value is not None and "query_key_value" in named and not version:
            value = value.view(4, 3, 8, -1).transpose(0, 1).reshape(value.shape)
        layers[named] = value
    model = {
        "language_model": {"embedding": embedding, "transformer" if attention == "attention" else "encoder": layers}
    }
    kept = {"args": state["args"], "iteration": 6, "model": model}
    torch.save(kept | ({"checkpoint_version": version} if version else {}), path)
    from_megatron(folder, tmp_path / "old", None)
    from_megatron(saved / "gpt" / "iter_0000006", tmp_path / "new", None)
    old, new = WholeTensors(tmp_path / "old"), WholeTensors(tmp_path / "new")
    assert set(old.stored) == set(new.stored)
    for key in new.stored:
        assert torch.equal(old.tensor(key), new.tensor(key)), key


def test_megatron_loads_what_is_written_at_any_split(saved: Path, tmp_path: Path) -> None:
    for name in SPLITS:
        from_megatron(saved / name / "iter_0000005", tmp_path / name, None)
        said = to_megatron(tmp_path / name, saved / name / "written")
        assert "--use-checkpoint-args" in said
        assert look(saved / name / "written")["kind"] == "megatron"
        from_megatron(saved / name / "written" / "release", tmp_path / f"{name}-again", None)
        first, again = (WholeTensors(tmp_path / one) for one in (name, f"{name}-again"))
        assert set(first.stored) == set(again.stored)
        assert (tmp_path / name / "model.json").read_text() == (tmp_path / f"{name}-again" / "model.json").read_text()
    _by_megatron("load", saved)


def tokenizer(folder: Path) -> Path:
    made = Backend(models.BPE(vocab={"a": 0, "b": 1, "Ġ": 2, "=": 3, "<|endoftext|>": WORDS - 6}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    path = folder / "tokenizer.json"
    made.save(str(path))
    return path


def test_it_goes_on_to_transformers_and_generates(llama: Path, tmp_path: Path) -> None:
    given = tokenizer(tmp_path)
    hpclm("model", "convert", llama / "iter_0000006", tmp_path / "ours", "--to", "hpclm", "--tokenizer", given)
    hpclm("model", "convert", tmp_path / "ours", tmp_path / "theirs", "--to", "huggingface")
    assert (tmp_path / "theirs" / "model.safetensors").is_file()
    assert "a b" in hpclm("generate", tmp_path / "ours", "a b", "--max-new-tokens", "3")
    assert "--to hpclm --tokenizer" in processes.python("-m", "hpclm.cli", "generate", llama, "a b").stderr


def test_a_stage_starts_from_either_format_at_another_split(saved: Path, tmp_path: Path) -> None:
    """Learning prompts on it has the losses that it has on the converted checkpoint."""
    given = tokenizer(tmp_path)
    from_megatron(saved / "qwen3-both" / "iter_0000005", tmp_path / "ours", None)
    losses = {}
    for name in (saved / "qwen3-both" / "iter_0000005", saved / "qwen3-both" / "iter_0000006", tmp_path / "ours"):
        recipe = samples.single(
            model={"checkpoint": str(name)},
            tokenizer={"tokenizer_file": str(given)},
            trainer={"max_steps": 2, "log_interval_steps": 1},
            optim={"lr": 0.001},
            batch={"global": 4, "micro": 2},
        )
        recipe["data"] = {**recipe["data"], "max_seq_length": 24}
        del recipe["container"]
        folder = tmp_path / f"run-{name.name}"
        folder.mkdir()
        environment = processes.environment(HPCLM_RUNS_DIR=str(folder / "runs"), OMP_NUM_THREADS="1")
        processes.hpclm("submit", samples.write(folder, recipe), "--wait", cwd=folder, env=environment)
        metrics = next((folder / "runs").rglob("metrics.jsonl")).read_text().splitlines()
        losses[name.name] = [row["loss"] for row in map(json.loads, metrics) if row["kind"] == "train"]
    assert len(losses["ours"]) == 2
    assert losses["iter_0000005"] == losses["iter_0000006"] == losses["ours"]


def test_an_archive_of_nemo_may_hold_torch_dist(saved: Path, tmp_path: Path) -> None:
    """model_weights/, its tensors under `model.`, as NeMo's NLPSaveRestoreConnector saves megatron-core's models."""
    from_megatron(saved / "gpt" / "iter_0000005", tmp_path / "ours", None)
    model = read_model_card(tmp_path / "ours", "")
    weights = Path(shutil.copytree(saved / "gpt" / "iter_0000005", tmp_path / "nemo" / "model_weights"))
    found = pickle.loads((weights / ".metadata").read_bytes())
    renamed = {f"model.{name}": one for name, one in found.state_dict_metadata.items()}
    places = {replace(index, fqn=f"model.{index.fqn}"): one for index, one in found.storage_data.items()}
    (weights / ".metadata").write_bytes(pickle.dumps(Metadata(renamed, None, places)))
    config = config_text(model, mcore_gpt=True, make_vocab_size_divisible_by=128)
    (tmp_path / "nemo" / "model_config.yaml").write_text(config)
    for name, content in bpe_files().items():
        (tmp_path / "nemo" / name).write_bytes(content)
    hpclm("model", "convert", tmp_path / "nemo", tmp_path / "again", "--to", "hpclm")
    first, again = WholeTensors(tmp_path / "ours"), WholeTensors(tmp_path / "again")
    assert set(first.stored) == set(again.stored)
    for key in first.stored:
        rows = 257 if "word_embeddings" in key else None  # the tokenizer's
        assert torch.equal(first.tensor(key, rows), again.tensor(key, rows)), key


def test_the_model_is_the_arguments(llama: Path) -> None:
    found = look(llama)
    assert found["kind"] == "megatron"
    with Archive(llama / "iter_0000005") as archive:
        model = read_model(archive)
    assert (model.num_layers, model.hidden_size, model.ffn_hidden_size) == (
        LAYERS,
        32,
        64,
    )
    assert (model.num_query_groups, model.vocab_size, model.padded_vocab_size) == (2, WORDS - 5, WORDS)
    assert (model.activation, model.normalization, model.position_embedding) == ("swiglu", "rmsnorm", "rope")
    assert not model.tie_embeddings


class Hostile:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.file,)  # type: ignore[return-value]


def test_a_hostile_index_does_nothing(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama / "iter_0000005", tmp_path / "iter"))
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "made")))
    with pytest.raises(CheckpointError, match="is no index of torch"):
        look(folder)
    torch.save({"args": Hostile(tmp_path / "made")}, folder / "common.pt")
    with pytest.raises(CheckpointError, match="holds no arguments"):
        look(folder)
    ranks = Path(shutil.copytree(llama / "iter_0000006", tmp_path / "ranks"))
    torch.save({"args": Hostile(tmp_path / "made"), "model": {}}, ranks / "mp_rank_00" / "model_optim_rng.pt")
    with pytest.raises(CheckpointError, match="holds no arguments"):
        look(ranks)
    assert not (tmp_path / "made").exists()


def test_a_file_outside_is_not_read(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama / "iter_0000005", tmp_path / "iter"))
    index = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(index.replace(b"__0_0.distcp", b"../../passwd"))
    with pytest.raises(CheckpointError, match="do not trust it"):
        look(folder)


@pytest.mark.parametrize("file", ["__0_0.distcp", "__0_1.distcp"])
def test_what_is_cut_off_is_named(llama: Path, tmp_path: Path, file: str) -> None:
    folder = Path(shutil.copytree(llama / "iter_0000005", tmp_path / "iter"))
    (folder / file).write_bytes((folder / file).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{file}: is cut off"):
        look(folder)
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file} is missing"):
        look(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_layers": 8}, "has 4 layers, its arguments say 8"),
        ({"num_layers": 10**9}, "has 4 layers, its arguments say 1000000000"),
        ({"add_qkv_bias": True}, "contains no decoder.layers.0.self_attention.linear_qkv.bias"),
        ({"hidden_size": 64, "kv_channels": 8}, r"is \(.*\), its arguments say"),
        ({"tensor_model_parallel_size": 10**10}, "its arguments say 10000000000 tensor"),
        ({"softmax_type": "off-by-one"}, "hpclm has no such models"),
        ({"num_experts": 4, "moe_router_load_balancing_type": "sinkhorn"}, "hpclm has no such models"),
    ],
    ids=str,
)
def test_arguments_of_another_model_are_named(
    llama: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    folder = Path(shutil.copytree(llama / "iter_0000006", tmp_path / "ranks"))
    path = folder / "mp_rank_00" / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    vars(state["args"]).update(changes)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=said):
        look(folder)


@pytest.mark.parametrize("offset", [(100, 0), (-192, 0), (300, 0), (2**40, 0), (0, 32)], ids=str)
def test_parts_that_are_elsewhere_are_named(saved: Path, tmp_path: Path, offset: tuple[int, int]) -> None:
    folder = Path(shutil.copytree(saved / "llama-tensor" / "iter_0000005", tmp_path / "iter"))
    found = pickle.loads((folder / ".metadata").read_bytes())
    name, second = "embedding.word_embeddings.weight", torch.Size((192, 0))
    described = found.state_dict_metadata[name]
    chunks = [replace(one, offsets=torch.Size(offset)) if one.offsets == second else one for one in described.chunks]
    found.state_dict_metadata[name] = replace(described, chunks=chunks)
    moved = {index: one for index, one in found.storage_data.items() if index.fqn == name and index.offset == second}
    for index, one in moved.items():
        del found.storage_data[index]
        found.storage_data[replace(index, offset=torch.Size(offset))] = one
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(found.state_dict_metadata, None, found.storage_data)))
    with pytest.raises(CheckpointError, match=r"is not complete|overlap"):
        look(folder)


def test_the_newest_is_read_from_a_file_alone(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "newest"
    folder.mkdir()
    os.mkfifo(folder / "latest_checkpointed_iteration.txt")
    with pytest.raises(CheckpointError, match=r"not a \.nemo archive"):
        look(folder)
    (folder / "latest_checkpointed_iteration.txt").unlink()
    (folder / "latest_checkpointed_iteration.txt").write_text("1" * 5000)
    with pytest.raises(CheckpointError, match=r"not a \.nemo archive"):
        look(folder)


def test_a_missing_ranks_file_is_named(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "llama-tensor" / "iter_0000006", tmp_path / "iter"))
    shutil.rmtree(folder / "mp_rank_01")
    with pytest.raises(CheckpointError, match="file of tensor rank 1, pipeline rank 0 is missing"):
        look(folder)
