"""Checkpoints of Megatron-LM (`torch_dist`), written by megatron-core itself, are read; hostile ones do nothing."""

from __future__ import annotations

import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpclm.core.errors import CheckpointError
from hpclm.formats.inspection import look
from hpclm.formats.megatron.distributed_index import read_index
from hpclm.formats.megatron.saved_arguments import model_spec
from hpclm.formats.ranks.checkpoint_store import WholeTensors
from tests.support.megatron_saved import LAYERS, WORDS
from tests.support.processes import ROOT, environment, hpclm

pytestmark = pytest.mark.slow


def _port() -> str:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return str(one.getsockname()[1])


def saved(folder: Path, kind: str, ranks: int = 1) -> Path:
    port = _port()
    words = [sys.executable, "-m", "tests.support.megatron_saved", str(folder), kind, str(ranks)]
    env = environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    started = [
        subprocess.Popen([*words, str(rank), port], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    for one in started:
        said = one.communicate()[1]
        assert one.returncode == 0, said[-3000:]
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("saved") / "llama", "llama")


def in_our_names(name: str, kind: str) -> str:
    name = name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
    if kind != "mixtral":
        name = name.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
    return name.replace("mlp.experts.local_experts.", "mlp.experts.")


@pytest.mark.parametrize(("kind", "ranks"), [("gpt", 1), ("llama", 1), ("mixtral", 1), ("llama", 2), ("gpt", 2)])
def test_every_tensor_is_the_models(tmp_path: Path, kind: str, ranks: int) -> None:
    folder = saved(tmp_path / "megatron", kind, ranks)
    said = hpclm("model", "convert", folder, tmp_path / "ours", "--to", "hpclm")
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


def test_it_goes_on_to_transformers(llama: Path, tmp_path: Path) -> None:
    hpclm("model", "convert", llama / "iter_0000005", tmp_path / "ours", "--to", "hpclm")
    hpclm("model", "convert", tmp_path / "ours", tmp_path / "theirs", "--to", "huggingface")
    assert (tmp_path / "theirs" / "model.safetensors").is_file()


def test_the_model_is_the_arguments(llama: Path) -> None:
    found = look(llama)
    assert found["kind"] == "megatron"
    model = model_spec(llama / "iter_0000005")
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
        read_index(folder)
    torch.save({"args": Hostile(tmp_path / "made")}, folder / "common.pt")
    with pytest.raises(CheckpointError, match="holds no arguments"):
        model_spec(folder)
    assert not (tmp_path / "made").exists()


def test_a_file_outside_is_not_read(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama / "iter_0000005", tmp_path / "iter"))
    index = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(index.replace(b"__0_0.distcp", b"../../passwd"))
    with pytest.raises(CheckpointError, match="do not trust it"):
        read_index(folder)


@pytest.mark.parametrize("file", ["__0_0.distcp", "__0_1.distcp"])
def test_what_is_cut_off_is_named(llama: Path, tmp_path: Path, file: str) -> None:
    folder = Path(shutil.copytree(llama / "iter_0000005", tmp_path / "iter"))
    (folder / file).write_bytes((folder / file).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{file}: is cut off"):
        read_index(folder)
