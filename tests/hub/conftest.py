"""A Hub on this machine with a small model of transformers' own making."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.hub_server import Hub, Repository, hub_server
from tests.support.processes import LIMIT_S, environment

MODEL = "org/tiny"
# What a repository has beside what is needed
DECOYS = {
    "README.md": b"# tiny",
    ".gitattributes": b"*.safetensors filter=lfs",
    "pytorch_model.bin": b"\x80\x04N.",
    "pytorch_model.bin.index.json": b"{}",
    "training_args.bin": b"\x80\x04N.",
    "tiny-q4.gguf": b"GGUF",
    "tf_model.h5": b"h5",
    "flax_model.msgpack": b"m",
    "consolidated.safetensors": b"twice",
    "original/consolidated.00.pth": b"\x80\x04N.",
    "original/params.json": b"{}",
    "onnx/model.onnx": b"o",
    "modeling_tiny.py": b"raise SystemExit('ran')",
    "../../escaped.json": b"{}",
    "/escaped.json": b"{}",
}
_MAKE = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=64))
model.save_pretrained(sys.argv[1], max_shard_size="20KB")
model.save_pretrained(sys.argv[2])
words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
saved = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
saved.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
saved.save_pretrained(sys.argv[1])
saved.save_pretrained(sys.argv[2])
"""


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of one model as transformers saves it: in several shards with an index, and in one file."""
    folder = tmp_path_factory.mktemp("saved")
    argv = [sys.executable, "-c", _MAKE, str(folder / "shards"), str(folder / "one")]
    subprocess.run(argv, env=environment(HF_HUB_OFFLINE="1"), check=True, timeout=LIMIT_S, capture_output=True)
    sharded, single = ({p.name: p.read_bytes() for p in (folder / n).iterdir()} for n in ("shards", "one"))
    assert sum(name.endswith(".safetensors") for name in sharded) > 2
    return sharded, single


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


@dataclass
class User:
    """Someone on a login node, with an HF_HOME of their own."""

    hub: Hub
    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "hf home"

    @property
    def out(self) -> Path:
        return self.folder / "models" / "tiny"

    def environment(self, **changes: str) -> dict[str, str]:
        plain = {k: v for k, v in environment().items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        given = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.address, "NO_PROXY": "127.0.0.1", **changes}
        return {**plain, **given}

    def argv(self, *words: str | Path) -> list[str | Path]:
        return [sys.executable, "-m", "hpclm.cli", *words]

    def hpclm(self, *words: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words),
            env=self.environment(**changes),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def refused(self, *words: str | Path, code: int = 1, changes: Mapping[str, str] | None = None) -> str:
        """The one message of a command that must fail."""
        done = self.hpclm(*words, **(changes or {}))
        assert done.returncode == code, done
        assert done.stderr.startswith("error: "), done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        return done.stderr


@pytest.fixture
def user(hub: Hub, tmp_path: Path, saved_models: tuple[dict[str, bytes], dict[str, bytes]]) -> User:
    """The Hub has `org/tiny` in shards with everything that is not wanted beside it, and `org/one` in one file."""
    sharded, single = saved_models
    hub.repositories[MODEL] = Repository({**sharded, **DECOYS})
    hub.repositories["org/one"] = Repository(dict(single))
    return User(hub, tmp_path)


@pytest.fixture
def large(user: User) -> str:
    """A model of 25 MB, `org/large`: the client writes to disk every 10 MiB."""
    size = 25_000_000
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    data = struct.pack("<Q", len(header)) + header + random.Random(7).randbytes(size)
    user.hub.repositories["org/large"] = Repository({"config.json": b"{}", "model.safetensors": data})
    return "org/large"


@pytest.fixture
def shards(saved_models: tuple[dict[str, bytes], dict[str, bytes]]) -> list[str]:
    return sorted(name for name in saved_models[0] if name.endswith(".safetensors"))
