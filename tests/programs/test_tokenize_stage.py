"""`task: tokenize`: many ranks make the files that `hpclm data tokenize` makes, and a later stage trains on them."""

from __future__ import annotations

import copy
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer as Tokenizers
from tokenizers.models import BPE

from hpclm.core.corpus_spec import CorpusSpec, TokenizeStageSpec
from hpclm.core.exit_codes import ExitCode
from hpclm.core.files import read_object, write_json
from hpclm.core.layout import StagePaths
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.records import to_dict
from hpclm.core.spec import StageSpec, TokenizerSpec
from hpclm.data.corpus.tokenizing import tokenize
from hpclm.data.tokenizers import Tokenizer
from hpclm.planning import make_plan
from hpclm.recipe import load
from hpclm.recovery.restart_decision import _saved_step
from tests.support.processes import environment, hpclm
from tests.support.rank_server import ForkedRank
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
RANKS = 3


ROWS = [{"text": f"line {n} " * (n % 40), "id": n} for n in range(300)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files of a tokenizer."""
    folder = tmp_path_factory.mktemp("vocabulary")
    Tokenizer.train([str(row["text"]) for row in ROWS], 400).backend.model.save(str(folder))
    return folder


@pytest.fixture
def corpus(tmp_path: Path, vocabulary: Path) -> Path:
    """A folder of four files, beside the tokenizer's."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocabulary / name, tmp_path)
    (tmp_path / "corpus").mkdir()
    for part in range(4):
        lines = (json.dumps(row) + "\n" for row in ROWS[part::4])
        (tmp_path / "corpus" / f"{part}.jsonl").write_text("".join(lines))
    return tmp_path / "corpus"


def spec_of(corpus: Path, prefix: Path, **changes: Any) -> CorpusSpec:
    tokenizer = TokenizerSpec(
        "bpe", vocab_file=str(corpus.parent / "vocab.json"), merges_file=str(corpus.parent / "merges.txt")
    )
    return CorpusSpec([str(corpus)], tokenizer, str(prefix), append_eod=True, **changes)


class Ranks:
    """The ranks of one attempt."""

    def __init__(self, folder: Path, spec: CorpusSpec, attempt: int = 1, **variables: str) -> None:
        self.stage = StagePaths(folder / "run" / "stages" / "tokens")
        parallel = ParallelSpec(1, 1, RANKS, RANKS, 1, RANKS)
        whole = TokenizeStageSpec("run", "tokens", str(self.stage.root), "cpu", parallel, spec)
        self.stage.root.mkdir(parents=True, exist_ok=True)
        write_json(self.stage.spec, to_dict(whole))
        self.attempt = self.stage.attempt(attempt)
        self.attempt.logs.mkdir(parents=True)
        self.ranks = []
        for rank in range(RANKS):
            place = {"RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_RANK": rank, "NODE_RANK": 0}
            env = environment(PYTHONWARNINGS="ignore", **{f"HPCLM_{key}": str(one) for key, one in place.items()})
            words = [str(self.stage.root), str(attempt)]
            log, function = self.attempt.log(rank), "tests.support.small_pieces:main"
            self.ranks.append(ForkedRank(words, env | variables, log, function=function))

    def codes(self) -> list[int | None]:
        wait_until("the ranks to end", lambda: all(one.poll() is not None for one in self.ranks))
        return [one.returncode for one in self.ranks]

    @property
    def parts(self) -> list[Path]:
        return sorted(self.stage.root.rglob("part-*.json"))


def same(one: str, other: str) -> bool:
    return all(Path(f"{one}{end}").read_bytes() == Path(f"{other}{end}").read_bytes() for end in (".bin", ".idx"))


def test_ranks_make_the_files_of_the_command(corpus: Path, tmp_path: Path) -> None:
    made, _ = tokenize(spec_of(corpus, tmp_path / "by-command"), 1, lambda progress: None)
    spec = spec_of(corpus, tmp_path / "run" / "stages" / "tokens" / "tokens" / "x")
    ranks = Ranks(tmp_path, spec)
    assert ranks.codes() == [0] * RANKS, ranks.attempt.log(0).read_text()
    result = read_object(ranks.stage.result) or {}
    assert result["data_sets"] == [spec.output("text")]
    assert (result["documents"], result["tokens"]) == (300, made.counts.tokens)
    assert same(result["data_sets"][0], made.outputs[0])
    # each rank had some
    progress = read_object(ranks.stage.progress) or {}
    assert progress["step"] == progress["total_steps"] >= 2 * RANKS


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_attempt_goes_on_with_what_is_left(corpus: Path, tmp_path: Path, number: int) -> None:
    made, _ = tokenize(spec_of(corpus, tmp_path / "by-command"), 1, lambda progress: None)
    spec = spec_of(corpus, tmp_path / "run" / "stages" / "tokens" / "tokens" / "x")
    first = Ranks(tmp_path, spec, TEST_SECONDS_A_PIECE="1")
    wait_until("some parts", lambda: len(first.parts) >= RANKS)
    for one in first.ranks:
        one.send_signal(number)
    ended = first.codes()
    assert ended == ([-number] * RANKS if number == signal.SIGKILL else [int(ExitCode.STOPPED)] * RANKS)
    kept = {path: path.stat().st_mtime_ns for path in first.parts}
    assert kept
    assert not first.stage.result.exists()
    second = Ranks(tmp_path, spec, 2, TEST_SECONDS_A_PIECE="0.2")
    wait_until("more parts", lambda: len(second.parts) > len(kept) or second.stage.result.exists())
    now = {path: path.stat().st_mtime_ns for path in second.parts if path in kept}
    assert all(kept[path] == when for path, when in now.items())
    assert second.codes() == [0] * RANKS
    assert same(spec.output("text"), made.outputs[0])


def test_a_bad_line_ends_all_ranks_and_is_named(corpus: Path, tmp_path: Path) -> None:
    with (corpus / "2.jsonl").open("a") as file:
        file.write("{broken\n")
    ranks = Ranks(tmp_path, spec_of(corpus, tmp_path / "out" / "x"))
    codes = ranks.codes()
    assert set(codes) == {int(ExitCode.DATA), int(ExitCode.PEER_LOST)}
    records = [read_object(ranks.attempt.rank(rank)) or {} for rank in range(RANKS)]
    (bad,) = [one for one in records if one["kind"] == "data"]
    assert f"{corpus / '2.jsonl'}:76" in bad["message"]


RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "corpus",
    "tokenizer": {"vocab_file": "vocab.json", "merges_file": "merges.txt"},
    "resources": {"nodes": 1, "devices_per_node": 2, "device": "cpu", "time_limit_min": 5},
    "stages": [
        {"name": "tokens", "task": "tokenize", "tokenize": {"inputs": ["corpus"], "append_eod": True}},
        {
            "name": "pretrain",
            "task": "pretrain",
            "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 16},
            "indexed": {"stage": "tokens", "seq_length": 16},
            "batch": {"global": 4, "micro": 2},
            "trainer": {"max_steps": 2, "val_batches": 1},
            "optim": {"lr": 1e-3},
        },
    ],
}


def test_a_later_stage_trains_on_the_tokens(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPCLM_RUNS_DIR", raising=False)
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(RECIPE))
    plan = json.loads(hpclm("plan", "corpus.yaml", "--json"))
    assert [stage["engine"] for stage in plan["stages"]] == ["corpus", "megatron"]
    assert plan["stages"][1]["depends_on"] == ["tokens"]
    hpclm("submit", "corpus.yaml", "--wait")
    (run,) = json.loads(hpclm("status", "--json"))["runs"]
    assert run["state"] == "completed"
    spec = read_object(Path(run["path"], "stages", "pretrain", "spec.json")) or {}
    (prefix,) = spec["indexed"]["paths"]
    assert Path(f"{prefix}.idx").is_file()
    assert Path(prefix).is_relative_to(run["path"])


def test_an_output_outside_the_run_is_planned(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = copy.deepcopy(RECIPE)
    recipe["stages"][0]["tokenize"]["out"] = "shared/tokens"
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(recipe))
    (found,) = make_plan(load(tmp_path / "corpus.yaml")).errors
    assert f"{tmp_path / 'shared'} is no folder; make it" in str(found)
    (tmp_path / "shared").mkdir()
    plan = make_plan(load(tmp_path / "corpus.yaml"))
    assert plan.errors == ()
    first, second = (stage.spec for stage in plan.stages)
    assert first is not None
    assert isinstance(second, StageSpec)
    assert second.indexed is not None
    assert second.indexed.paths == [str(tmp_path / "shared" / "tokens_text_document")]
    # that the folder is mounted, and on the nodes, is checked for both
    assert all(str(tmp_path / "shared") in spec.needs.inputs for spec in (first, second))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokenize": {"inputs": ["nothing"]}}, "nothing: does not exist"),
        ({"tokenize": {"inputs": ["corpus"], "json_keys": ["a/b"]}}, "json key 'a/b'"),
        ({"tokenize": None}, "stages.tokens.tokenize: is missing"),
        ({"tokenizer": {"train": {"vocab_size": 400}}}, "only a pretrain stage trains a tokenizer"),
        ({"base": "pretrain"}, "is for models"),
        ({"after": ["pretrain"]}, "pretrain is not an earlier stage"),
    ],
)
def test_what_cannot_be_tokenised_is_said_before_the_queue(
    corpus: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    recipe = copy.deepcopy(RECIPE)
    stage = recipe["stages"][0] | changes
    recipe["stages"][0] = {key: value for key, value in stage.items() if value is not None}
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(recipe))
    found = "\n".join(map(str, make_plan(load(tmp_path / "corpus.yaml")).errors))
    assert expected in found


def test_pieces_that_are_made_count_as_progress(tmp_path: Path) -> None:
    """An attempt that was lost has not failed where the one before it has."""
    stage = StagePaths(tmp_path / "run" / "stages" / "tokens")
    parallel = ParallelSpec(1, 1, 1, 1, 1, 1)
    spec = CorpusSpec([], TokenizerSpec("json"), "x")
    write_json(stage.spec, to_dict(TokenizeStageSpec("run", "tokens", str(stage.root), "cpu", parallel, spec)))
    write_json(stage.progress, {"step": 7, "total_steps": 20})
    assert _saved_step(stage) == 7


def test_an_earlier_stage_may_make_the_text(corpus: Path, tmp_path: Path) -> None:
    recipe = copy.deepcopy(RECIPE)
    program = {"name": "fetch", "task": "program", "program": {"argv": ["true"]}}
    recipe["stages"][0] |= {"after": ["fetch"], "tokenize": {"inputs": ["fetched"]}}
    recipe["stages"].insert(0, program)
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(recipe))
    plan = make_plan(load(tmp_path / "corpus.yaml"))
    assert plan.errors == ()
    assert any("fetched: does not exist" in str(one) for one in plan.findings)
    tokens = plan.stages[1]
    assert tokens.depends_on == ("fetch",)
    assert tokens.spec is not None
    assert str(tmp_path / "fetched") not in tokens.spec.needs.inputs


def test_tokens_of_another_tokenizer_are_refused(corpus: Path, tmp_path: Path) -> None:
    recipe = copy.deepcopy(RECIPE)
    shutil.copy(tmp_path / "vocab.json", tmp_path / "other.json")
    recipe["stages"][1]["tokenizer"] = {"vocab_file": "other.json", "merges_file": "merges.txt"}
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(recipe))
    (found,) = make_plan(load(tmp_path / "corpus.yaml")).errors
    assert "tokenizer: is not that of stage tokens, which made the tokens" in str(found)


def test_data_of_another_tokenizer_on_the_disk_is_refused(corpus: Path, tmp_path: Path) -> None:
    tokenize(spec_of(corpus, tmp_path / "made"), 1, lambda progress: None)
    recipe = copy.deepcopy(RECIPE)
    del recipe["stages"][0]
    recipe["stages"][0]["indexed"] = {"paths": ["made_text_document"], "split": "90,10,0", "seq_length": 16}

    def errors() -> tuple[object, ...]:
        (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(recipe))
        return make_plan(load(tmp_path / "corpus.yaml")).errors

    assert errors() == ()
    shutil.copy(tmp_path / "merges.txt", tmp_path / "same.txt")
    recipe["tokenizer"] = {"vocab_file": "vocab.json", "merges_file": "same.txt"}
    assert errors() == ()
    (tmp_path / "same.txt").write_text((tmp_path / "merges.txt").read_text().rpartition("\n")[0])
    (found,) = errors()
    assert "made_text_document: was made with the tokenizer" in str(found)
    assert "merges.txt, which is not" in str(found)


def test_data_of_another_kind_of_tokenizer_is_refused_by_its_size(corpus: Path, tmp_path: Path) -> None:
    tokenize(spec_of(corpus, tmp_path / "made"), 1, lambda progress: None)
    recipe = copy.deepcopy(RECIPE)
    del recipe["stages"][0]
    recipe["stages"][0]["indexed"] = {"paths": ["made_text_document"], "split": "90,10,0", "seq_length": 16}
    recipe["tokenizer"] = {"tokenizer_file": "whole.json"}
    whole = Tokenizers(BPE(json.loads((tmp_path / "vocab.json").read_text()), []))
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(recipe))
    whole.save(str(tmp_path / "whole.json"))
    assert make_plan(load(tmp_path / "corpus.yaml")).errors == ()
    whole.add_tokens(["<another>"])
    whole.save(str(tmp_path / "whole.json"))
    plan = make_plan(load(tmp_path / "corpus.yaml"))
    assert plan.errors == ()
    assert any("are they the same but for added tokens?" in str(one) for one in plan.findings)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    vocabulary.popitem()
    Tokenizers(BPE(vocabulary, [])).save(str(tmp_path / "whole.json"))
    (found,) = make_plan(load(tmp_path / "corpus.yaml")).errors
    assert f"vocab.json, of {len(vocabulary) + 1} entries, and " in str(found)
    assert f"whole.json has {len(vocabulary)}; give that one" in str(found)
