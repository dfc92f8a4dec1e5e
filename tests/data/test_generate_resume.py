"""`hpclm data generate` that was stopped in any way goes on where it was, and never with other options."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpclm.cli import app as cli
from hpclm.core.errors import HpclmError
from hpclm.core.exit_codes import ExitCode
from hpclm.core.locks import exclusive
from hpclm.data.generation.instruction_rows import InstructionRow, read_rows
from hpclm.data.generation.ledger import Ledger, state_path
from tests.data.test_generate import SEEDS, generate, reply_of, rows_in, usual
from tests.support.chat_server import Answer, Asked, chat_server, completion, refusal
from tests.support.processes import LIMIT_S, environment
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-tests")
    for name in ("OPENAI_BASE_URL", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SEEDS))
    return path


def out_of(seeds: Path) -> Path:
    return seeds.parent / "rows.jsonl"


def counts_of(seeds: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(state_path(out_of(seeds)).read_text())["counts"]
    return value


def test_the_same_command_goes_on_and_the_counts_with_it(seeds: Path) -> None:
    def failing(number: int, asked: Asked) -> Answer:
        return usual(number, asked) if number < 3 else refusal(400, "no")

    with chat_server(failing) as served:
        assert generate(seeds, served, 40, "--concurrency", "1") == ExitCode.INCOMPLETE
    first = out_of(seeds).read_bytes()
    assert len(rows_in(out_of(seeds))) == 15
    with chat_server(lambda number, asked: completion(reply_of(f"later {number}"))) as served:
        assert generate(seeds, served, 40, "--concurrency", "1") == 0
    assert out_of(seeds).read_bytes().startswith(first)
    assert len(rows_in(out_of(seeds))) == 40
    counts = counts_of(seeds)
    assert (counts["replies"], counts["prompt_tokens"], counts["failed_tries"]) == (8, 800, 1)


def test_rows_of_before_are_not_made_again(seeds: Path) -> None:
    with chat_server(lambda number, asked: completion(reply_of("same"))) as served:
        assert generate(seeds, served, 5) == 0
    with chat_server(lambda number, asked: completion(reply_of("same" if number == 0 else "new"))) as served:
        assert generate(seeds, served, 10, "--concurrency", "1") == 0
    assert len({row["instruction"] for row in rows_in(out_of(seeds))}) == 10
    assert counts_of(seeds)["dropped"] == {"duplicate": 5}


def test_the_examples_of_a_request_follow_from_seed_and_number(seeds: Path) -> None:
    with chat_server(usual) as whole:
        assert generate(seeds, whole, 20, "--concurrency", "1") == 0
    out_of(seeds).unlink()
    state_path(out_of(seeds)).unlink()
    with chat_server(usual) as parts:
        for count in (5, 10, 15, 20):
            assert generate(seeds, parts, count, "--concurrency", "1") == 0
    prompts = [one.prompt for one in whole.asked]
    assert [one.prompt for one in parts.asked] == prompts
    assert len(set(prompts)) > 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "other"], '--model was "m", not "other"'),
        (["--no-filter", "similar"], "--filter was"),
        (["--temperature", "0.5"], "--temperature was 1.0, not 0.5"),
        (["--topic", "fruit"], '--topic was null, not "fruit"'),
    ],
)
def test_other_options_are_refused(
    more: list[str], words: str, seeds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chat_server(usual) as served:
        assert generate(seeds, served, 5) == 0
        before = out_of(seeds).read_bytes()
        assert generate(seeds, served, 10, *more) == ExitCode.ERROR
        shown = capsys.readouterr().err
        assert words in shown
        assert "Give the same to go on, or name another --out" in shown
    assert out_of(seeds).read_bytes() == before


def test_other_seeds_are_refused_and_other_limits_are_not(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(usual) as served:
        assert generate(seeds, served, 5) == 0
    limits = ["--concurrency", "2", "--retries", "1", "--requests-per-minute", "6000", "--price-in", "1"]
    with chat_server(lambda number, asked: completion(reply_of(f"x{number}"))) as served:  # at another address
        assert generate(seeds, served, 10, *limits, "--price-out", "1") == 0
        seeds.write_text(seeds.read_text().replace("apple", "pear"))
        assert generate(seeds, served, 20) == ExitCode.ERROR
    assert "SEEDS are others" in capsys.readouterr().err


def some_rows(start: int, count: int) -> list[InstructionRow]:
    return [InstructionRow(f"Frage {n} über 水", "", f"Antwort\n{n}") for n in range(start, start + count)]


def test_after_a_crash_at_any_byte_no_row_is_lost_and_none_is_twice(tmp_path: Path) -> None:
    """The record is on disk before the rows are: of these, any part may be missing."""
    out = tmp_path / "rows.jsonl"
    ledger = Ledger(out, {"a": "1"})
    ledger.add(some_rows(0, 2))
    before = out.read_bytes()
    ledger.add(some_rows(2, 3))
    whole, record = out.read_bytes(), state_path(out).read_bytes()
    for size in range(len(before), len(whole) + 1):
        out.write_bytes(whole[:size])
        state_path(out).write_bytes(record)
        again = Ledger(out, {"a": "1"})
        assert again.rows == some_rows(0, 5)
        assert out.read_bytes() == whole
        again.add(some_rows(5, 1))
        assert Ledger(out, {"a": "1"}).rows == some_rows(0, 6)


class _Interrupt:
    """Ctrl-C at the n-th line of the modules that write."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, _: object) -> _Interrupt | None:
        if not frame.f_code.co_filename.endswith(("generation/ledger.py", "core/files.py")):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line_leaves_all_of_the_rows_or_none(tmp_path: Path) -> None:
    seen = set()
    for number in range(1, 500):
        out = tmp_path / f"{number}.jsonl"
        ledger = Ledger(out, {})
        ledger.add(some_rows(0, 2))
        before = sys.gettrace()
        sys.settrace(_Interrupt(number))
        try:
            ledger.add(some_rows(2, 3))
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(before)
        if not interrupted:
            break
        ledger.note()
        ledger.add(some_rows(5, 1))
        found = Ledger(out, {}).rows
        assert found in ([*some_rows(0, 2), *some_rows(5, 1)], some_rows(0, 6))
        seen.add(len(found))
    assert seen == {3, 6}
    assert 20 < number < 499


ODD = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
KEYS = ("options", "counts", "rows", "size", "pending", "version")


@given(data=st.data())
def test_records_and_rows_that_are_damaged_give_a_message(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        ledger = Ledger(out, {})
        ledger.add(some_rows(0, 2))
        ledger.add(some_rows(2, 1))
        if data.draw(st.booleans()):
            value = json.loads(state_path(out).read_text())
            value[data.draw(st.sampled_from(KEYS))] = data.draw(ODD)
            state_path(out).write_text(json.dumps(value))
        else:
            path = data.draw(st.sampled_from([out, state_path(out)]))
            old = path.read_bytes()
            place = data.draw(st.integers(0, len(old)))
            path.write_bytes(
                old[:place] + data.draw(st.binary(max_size=4)) + old[data.draw(st.integers(0, len(old))) :]
            )
        try:
            found = Ledger(out, {})
        except HpclmError as error:
            message = str(error)
        else:
            found.add(some_rows(9, 1))
            assert Ledger(out, {}).rows[-1] == some_rows(9, 1)[0]
            return
        assert folder in message


@given(st.lists(st.one_of(ODD.map(json.dumps), st.text(max_size=20), st.sampled_from(["[", "]", ",", "\n"]))))
def test_any_file_of_seeds_gives_rows_or_a_message(parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seeds"
        path.write_text("".join(parts), errors="surrogatepass")
        try:
            read_rows(path)
        except HpclmError as error:
            message = str(error)
        else:
            return
        assert message.startswith(str(path))


def test_a_file_that_another_has_changed_is_left_alone(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(usual) as served:
        assert generate(seeds, served, 10) == 0
        whole = out_of(seeds).read_bytes()
        for changed, words in (
            (whole[:100], "was changed since"),
            (whole + b"{}\n", "was changed since"),
            (whole[:-3] + b"???", "its end is not what was written"),
            (b"x" + whole[1:], ":1: is not valid JSON"),
        ):
            out_of(seeds).write_bytes(changed)
            assert generate(seeds, served, 20) == ExitCode.DATA
            assert words in capsys.readouterr().err
            assert out_of(seeds).read_bytes() == changed
        state_path(out_of(seeds)).unlink()
        assert generate(seeds, served, 20) == ExitCode.ERROR
        assert "exists, and rows.jsonl.state.json is not beside it" in capsys.readouterr().err
        state_path(out_of(seeds)).write_text("{")
        assert generate(seeds, served, 20) == ExitCode.DATA
        assert "is damaged" in capsys.readouterr().err


def test_two_commands_do_not_make_the_same_file(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(usual) as served, exclusive(out_of(seeds), "busy"):
        assert generate(seeds, served, 5) == ExitCode.ERROR
    assert "another process is making these rows" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_ended(number: int, seeds: Path) -> None:
    """Ctrl-C ends at once, also while a reply is waited for, and exits as every command does."""
    never = threading.Event()

    def answer(count: int, asked: Asked) -> Answer:
        return usual(count, asked) if count < 2 else Answer("", wait=never)

    with chat_server(answer) as served:
        words = ["data", "generate", str(seeds), "--out", str(out_of(seeds)), "--count", "100", "--model", "m"]
        command = [sys.executable, "-c", "import sys; from hpclm.cli import main; sys.exit(main())", *words]
        child = subprocess.Popen(
            [*command, "--base-url", served.url], env=environment(), stderr=subprocess.PIPE, text=True
        )
        try:
            wait_until("requests that wait", lambda: len(served.asked) >= 4)
            wait_until("rows of the others", lambda: len(rows_in(out_of(seeds))) == 10)
            os.kill(child.pid, number)
            _, shown = child.communicate(timeout=LIMIT_S)
        finally:
            child.kill()
            never.set()
    assert child.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert "interrupted; the rows in" in shown
        assert "Traceback" not in shown
    assert len(rows_in(out_of(seeds))) == 10
    with chat_server(lambda count, asked: completion(reply_of(f"later {count}"))) as served:
        assert generate(seeds, served, 20) == 0
    assert len({row["instruction"] for row in rows_in(out_of(seeds))}) == 20


def test_a_smaller_count_than_there_are_rows_asks_nothing(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(usual) as served:
        assert generate(seeds, served, 10) == 0
        asked = len(served.asked)
        assert generate(seeds, served, 3) == 0
        assert len(served.asked) == asked
    assert "10 of 3 rows, 0 of them new" in capsys.readouterr().out
    assert cli.run(["data", "generate", "--help"]) == 0
