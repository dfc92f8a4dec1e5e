"""`hpclm data generate`: the real client against a server in this process, in fair and in foul weather."""

from __future__ import annotations

import email.utils
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from hpclm.cli import app as cli
from hpclm.core.exit_codes import ExitCode
from hpclm.data.generation.pacing import Pacer
from tests.support.chat_server import Answer, Asked, ChatServer, chat_server, completion, refusal

KEY = "sk-test/Key 0123456789abcdefABCDEF".replace(" ", "+")
SEEDS = [
    {"instruction": "Say what an apple is.", "input": "", "output": "A fruit."},
    {"instruction": "Translate the word into Chinese.", "input": "apple", "output": "苹果"},
    {"instruction": "请解释什么是梨。", "input": "", "output": "一种水果。"},
    {"instruction": "Add both numbers now.", "input": "2 and 3", "output": "5"},
]


def row_text(number: int, instruction: str, output: str = "An answer.") -> str:
    return f"###\n{number}. Instruction: {instruction}\n{number}. Input:\n<noinput>\n{number}. Output:\n{output}\n"


def new_instruction(seed: object) -> str:
    """One that is like no other."""
    draw = Random(str(seed))
    return " ".join("".join(draw.choices("abcdefghijklmnop", k=7)) for _ in range(8))


def reply_of(seed: object, rows: int = 5) -> str:
    return "".join(row_text(4 + n, new_instruction(f"{seed}/{n}")) for n in range(rows))


def usual(number: int, asked: Asked) -> Answer:
    return completion(reply_of(number))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in SEEDS))
    return path


def rows_in(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def generate(seeds: Path, served: ChatServer | str, count: int, *more: str) -> int:
    url = served if isinstance(served, str) else served.url
    out = ["--out", str(seeds.parent / "rows.jsonl"), "--model", "m", "--base-url", url]
    return cli.run(["data", "generate", str(seeds), *out, "--count", str(count), *more])


@pytest.fixture
def result(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, Any]]:
    def read() -> dict[str, Any]:
        value: dict[str, Any] = json.loads(capsys.readouterr().out)
        return value

    return read


def test_rows_as_many_as_asked_for(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(usual) as served:
        assert generate(seeds, served, 12, "--concurrency", "1", "--price-in", "1", "--price-out", "10") == 0
    made = rows_in(seeds.parent / "rows.jsonl")
    wanted = [new_instruction(f"{reply}/{n}") for reply in range(3) for n in range(5)][:12]
    assert made == [{"instruction": one, "input": "", "output": "An answer."} for one in wanted]
    shown = capsys.readouterr().out
    assert "12 of 12 rows, 12 of them new" in shown
    # three replies of 100 and 200 tokens
    assert "300 tokens of prompts, 600 of replies (cost 0.0063)" in shown
    assert "left out: 3 surplus" in shown


def test_what_the_endpoint_is_asked(seeds: Path) -> None:
    with chat_server(usual) as served:
        assert generate(seeds, served, 5, "--topic", "fruit", "--language", "Chinese") == 0
        assert generate(seeds, served, 5, "--topic", "fruit", "--language", "Chinese") == 0
    (asked,) = served.asked  # the second command finds everything made
    prompt = asked.body.pop("messages")[0]["content"]
    assert asked.body == {
        "model": "m",
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 3072,
        "stop": ["\n21. Instruction:"],
    }
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert sum(row["instruction"] in prompt for row in SEEDS) == 3
    assert all(part in prompt for part in ("4 to 20", "Every task is about fruit.", "Write in Chinese.", "<noinput>"))


def test_parameters_that_an_endpoint_refuses_can_be_left_out(seeds: Path) -> None:
    words = ["--omit", "stop", "--omit", "top_p", "--max-tokens-key", "max_completion_tokens", "--max-tokens", "99"]
    with chat_server(usual) as served:
        assert generate(seeds, served, 5, *words) == 0
    assert set(served.asked[0].body) == {"model", "messages", "temperature", "max_completion_tokens"}


def test_rows_left_out_are_reported_by_filter(seeds: Path, result: Callable[[], dict[str, Any]]) -> None:
    text = (
        row_text(4, "把这个句子翻译成法语。")
        + row_text(5, "Too short.")
        + row_text(6, "Describe the picture in two sentences.")
        + row_text(7, "把这个句子翻译成法语！", "Other.")
        + row_text(8, "Say what an apple is.")
        + row_text(9, "Explain the rules of chess.", "")
        + row_text(10, "Name five rivers of Europe.", "The Rhine, the Dan")
    )
    answers = [completion(text, "length"), completion(reply_of("rest"))]
    with chat_server(lambda number, asked: answers[number]) as served:
        assert generate(seeds, served, 3, "--concurrency", "1", "--json") == 0
    made = result()
    assert made["dropped"] == {
        **{"surplus": 3, "similar": 1, "length": 1, "words": 1},
        **{"duplicate": 1, "malformed": 1, "truncated": 1},
    }
    assert rows_in(seeds.parent / "rows.jsonl")[0]["instruction"] == "把这个句子翻译成法语。"
    assert (made["rows"], made["replies"], made["cost"], made["ended_by"]) == (3, 2, None, None)


@pytest.mark.parametrize("form", ["seconds", "milliseconds", "date"])
def test_a_server_that_asks_to_wait_is_obeyed_by_all_threads(
    form: str, seeds: Path, result: Callable[[], dict[str, Any]]
) -> None:
    wait = {
        "seconds": {"retry-after": "1"},
        "milliseconds": {"retry-after-ms": "1000"},
        "date": {"retry-after": email.utils.formatdate(time.time() + 2, usegmt=True)},
    }[form]

    def answer(number: int, asked: Asked) -> Answer:
        if number == 0:
            return refusal(429, "slow down", wait)
        time.sleep(0.2)
        return completion(reply_of(number))

    with chat_server(answer) as served:
        assert generate(seeds, served, 30, "--concurrency", "2", "--json") == 0
    # the second had begun, the third had to wait although another was told so
    first, third = served.asked[0].at, served.asked[2].at
    assert third - first > (0.4 if form == "date" else 0.95)
    assert result()["failed_tries"] == 1


def test_failures_that_pass_are_tried_again(seeds: Path, result: Callable[[], dict[str, Any]]) -> None:
    bad = [
        refusal(500, "oops"),
        Answer("<html>Bad gateway</html>", 502, {"content-type": "text/html"}),
        Answer("<html>a page</html>", headers={"content-type": "text/html"}),
        Answer("{"),
        Answer('{"choices": []}'),
        Answer('{"choices": [{"message": {"content": "' + "[" * 10_000),
        Answer(b"\xff\xfe\x00\xd8"),
    ]
    quick = {"retry-after": "0"}

    def answer(number: int, asked: Asked) -> Answer:
        return refusal(503, "busy", quick) if number < 2 else completion(reply_of(number))

    with chat_server(answer) as served:
        assert generate(seeds, served, 5, "--json") == 0
    assert result()["failed_tries"] == 2
    from hpclm.data.generation.chat_client import AskError, ChatClient
    from hpclm.data.generation.generation_options import Options

    for one in bad:
        with chat_server(lambda number, asked, one=one: one) as served:  # type: ignore[misc]
            client = ChatClient(Options(seeds, seeds, 1, "m", served.url), KEY)
            with pytest.raises(AskError) as caught:
                client.ask("x")
            assert caught.value.again
            client.close()


def test_a_reply_without_text_is_a_useless_one_and_no_failure(seeds: Path) -> None:
    with chat_server(lambda number, asked: completion(None if number == 0 else reply_of(number))) as served:
        assert generate(seeds, served, 5) == 0
    assert len(served.asked) == 2


def test_a_server_that_does_not_answer(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    never = threading.Event()
    with chat_server(lambda number, asked: Answer("", wait=never)) as served:
        assert generate(seeds, served, 5, "--timeout", "0.3", "--retries", "0") == ExitCode.INCOMPLETE
        never.set()
    assert "did not answer within 0.3 s (--timeout)" in capsys.readouterr().err


def test_nobody_listens_there(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(seeds, "http://127.0.0.1:9/v1", 5, "--retries", "0") == ExitCode.INCOMPLETE
    assert "0 of 5 rows: 127.0.0.1:9: Connection error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal(404, "The model `m` does not exist"), "answered 404: The model `m` does not exist"),
        (refusal(400, "too many tokens"), "answered 400: too many tokens"),
        (refusal(429, "You exceeded your quota", code="insufficient_quota"), "You exceeded your quota"),
        (refusal(429, "tomorrow", {"retry-after": "86400"}), "it asks to wait 86,400 s"),
    ],
)
def test_failures_that_stay_end_at_once(
    answer: Answer, words: str, seeds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chat_server(lambda number, asked: answer) as served:
        assert generate(seeds, served, 5, "--concurrency", "1") == ExitCode.INCOMPLETE
    assert len(served.asked) == 1
    assert words in capsys.readouterr().err


def test_the_key_is_written_nowhere(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the server echoes it: in an error, in an error's page, and in a row."""
    rows = row_text(4, f"Repeat this text for me: {KEY}", f"It is {KEY}.") + reply_of("rest")
    page = Answer(f"<p>{'x' * 280}{KEY}</p>", 500, {"content-type": "text/html", "retry-after": "0"})
    unlike = Answer(json.dumps({"echo": KEY}), headers={"retry-after": "0"})
    last = refusal(401, f"Incorrect API key provided: {KEY}.")
    for count, answer in ((3, completion(rows)), (20, page), (21, unlike), (22, last)):
        with chat_server(lambda number, asked, answer=answer: answer) as served:  # type: ignore[misc]
            generate(seeds, served, count, "--retries", "0")
            assert served.asked[0].headers["authorization"] == f"Bearer {KEY}"
    shown = capsys.readouterr()
    written = "".join(path.read_text() for path in seeds.parent.rglob("*") if path.is_file())
    for text in (shown.out, shown.err, written):
        for part in (KEY, KEY[:20], KEY[8:], json.dumps(KEY)[1:-1]):
            assert part not in text
    assert "Repeat this text for me: ***" in written
    assert "Incorrect API key provided: ***; check the key" in " ".join(shown.err.split()).replace("***.", "***")


def test_a_word_for_a_key_is_no_secret(seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of one's own often want any key, as in OPENAI_API_KEY=EMPTY; rows with the word stay as they are."""
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    text = row_text(4, "Explain what EMPTY means in a database.")
    with chat_server(lambda number, asked: completion(text)) as served:
        assert generate(seeds, served, 1) == 0
    assert rows_in(seeds.parent / "rows.jsonl")[0]["instruction"] == "Explain what EMPTY means in a database."


def test_tracebacks_have_no_key_either(seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import traceback

    with chat_server(lambda number, asked: refusal(401, f"bad {KEY}")) as served, pytest.raises(Exception) as caught:  # noqa: PT011
        generate(seeds, served, 3, "--retries", "0", "--debug")
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_the_key_comes_from_the_variable_that_is_named(
    seeds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "another-key\n")
    with chat_server(usual) as served:
        assert generate(seeds, served, 5, "--key-env", "MY_KEY") == 0
        assert served.asked[0].headers["authorization"] == "Bearer another-key"
        assert generate(seeds, served, 10, "--key-env", "NO_SUCH_KEY") == ExitCode.ERROR
        assert "the variable NO_SUCH_KEY is not set" in capsys.readouterr().err
        monkeypatch.setenv("MY_KEY", "two words")
        assert generate(seeds, served, 10, "--key-env", "MY_KEY") == ExitCode.ERROR
        shown = capsys.readouterr().err
        assert "MY_KEY holds no key" in shown
        assert "two words" not in shown
        # an endpoint of one's own needs none
        monkeypatch.delenv("OPENAI_API_KEY")
        assert generate(seeds, served, 10) == 0
    assert served.asked[-1].headers["authorization"] == "Bearer none"
    words = ["data", "generate", str(seeds), "--out", str(seeds.parent / "x.jsonl"), "--count", "1", "--model", "m"]
    assert cli.run(words) == ExitCode.ERROR
    assert "the variable OPENAI_API_KEY is not set" in capsys.readouterr().err
    assert not (seeds.parent / "x.jsonl").exists()


def test_a_budget_is_never_exceeded_and_what_was_made_is_kept(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # a reply costs at most 0.01 for its 1,000 tokens, and here 0.002 for 200
    limits = ["--max-cost", "0.03", "--price-in", "0", "--price-out", "10", "--max-tokens", "1000"]
    with chat_server(usual) as served:
        assert generate(seeds, served, 1000, *limits, "--json") == ExitCode.INCOMPLETE
        shown = capsys.readouterr()
        made = json.loads(shown.out)
        assert 0.02 < made["cost"] <= 0.03
        assert made["rows"] == len(rows_in(seeds.parent / "rows.jsonl")) == 5 * len(served.asked)
        assert "the budget is used up" in shown.err
        assert "What was made is kept" in shown.err
        assert generate(seeds, served, made["rows"] + 5, *limits[2:], "--max-cost", "0.1") == 0


def test_a_budget_needs_prices_and_counts(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(lambda number, asked: completion(reply_of(number), usage=None)) as served:
        assert generate(seeds, served, 5, "--max-cost", "1") == ExitCode.ERROR
        assert "--max-cost needs the prices" in capsys.readouterr().err
        assert generate(seeds, served, 5, "--price-in", "1") == ExitCode.ERROR
        assert "go together" in capsys.readouterr().err
        budget = ["--max-cost", "1", "--price-in", "1", "--price-out", "1", "--concurrency", "1"]
        assert generate(seeds, served, 10, *budget) == ExitCode.INCOMPLETE
        assert "does not count tokens" in capsys.readouterr().err
        assert generate(seeds, served, 10) == 0
    assert "did not count the tokens of 2 replies" in capsys.readouterr().out


def test_requests_a_minute(seeds: Path) -> None:
    with chat_server(usual) as served:
        assert generate(seeds, served, 20, "--requests-per-minute", "120", "--tasks", "8") == 0
    times = [one.at for one in served.asked]
    assert len(times) == 4
    assert times[-1] - times[0] > 1.0  # a second and a half, but for the way of the first
    now = 100.0
    pacer = Pacer(120, None, clock=lambda: now)
    assert [pacer.take(1) for _ in range(3)] == [100.0, 100.5, 101.0]
    now = 200.0
    # no burst after a pause
    assert [pacer.take(1) for _ in range(2)] == [200.0, 200.5]


def test_tokens_a_minute_are_corrected_by_what_was_used() -> None:
    now = 100.0
    pacer = Pacer(None, 6000, clock=lambda: now)
    assert pacer.take(1000) == 100.0
    assert pacer.take(1000) == 110.0
    pacer.correct(1000, 400)
    assert pacer.take(500) == 114.0
    pacer.hold(60)
    assert pacer.take(100) == 160.0


def test_a_model_that_gives_nothing_new_ends(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(lambda number, asked: completion(reply_of("same"))) as served:
        assert generate(seeds, served, 100) == ExitCode.INCOMPLETE
    assert 20 < len(served.asked) < 30
    assert "20 replies in a row gave no new row" in capsys.readouterr().err


def test_many_at_once(seeds: Path, result: Callable[[], dict[str, Any]]) -> None:
    """As many as `--concurrency` are under way, and no more are started than the missing rows need."""
    together, lock, most = [0], threading.Lock(), [0]

    def answer(number: int, asked: Asked) -> Answer:
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        time.sleep(0.1)
        with lock:
            together[0] -= 1
        return completion(reply_of(number, 17))

    with chat_server(answer) as served:
        assert generate(seeds, served, 17 * 12, "--concurrency", "3", "--json") == 0
    assert most[0] == 3
    assert len(served.asked) == 12
    assert result()["dropped"] == {}


def test_without_the_package_there_is_one_message(
    seeds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert generate(seeds, "http://127.0.0.1:9/v1", 5) == ExitCode.ERROR
    assert capsys.readouterr().err == ("error: generating rows needs the package openai; install hpclm[generate]\n")
    assert not (seeds.parent / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8000", "must be an address"),
        ("http://", "must be an address"),
        ("http://[::1", "must be an address"),
        ("https://me:pass1234@host/v1", "put the key into a variable"),
        ("https://host/v1?api-key=abc", "put the key into a variable"),
    ],
)
def test_addresses_that_are_none(url: str, words: str, seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(seeds, url, 5) == ExitCode.ERROR
    shown = capsys.readouterr().err
    assert words in shown
    assert "pass1234" not in shown


GOOD = json.dumps(SEEDS[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{GOOD}\n\n{{\n", ":3: is not valid JSON"),
        (f"{GOOD}\n[1]\n", ":2: is a list; a row must be an object"),
        ('{"output": "x"}\n', ":1: has no 'instruction'; a row needs instruction and output"),
        ('{"instruction": "x"}\n', ":1: has no 'output'"),
        ('{"instruction": " ", "output": "x"}\n', ":1: 'instruction' is empty"),
        ('{"instruction": "x", "input": 3, "output": "x"}\n', ":1: 'input' is a number; write it as text in quotes"),
        ('{"instruction": "\\ud800", "output": "x"}\n', ":1: 'instruction' has half of a surrogate pair"),
        ('{"instruction": "x", "instances": []}\n', ":1: 'instances' must be a list of objects"),
        (f'[\n{GOOD},\n\n{{"instruction": "x"}}\n]', ":4: has no 'output'"),
        (f"[\n{GOOD},\n", "seeds.jsonl:3: is not valid JSON"),
        ("", "has 0 rows, and each prompt shows 3"),
        (f"{GOOD}\n", "has 1 rows, and each prompt shows 3"),
    ],
)
def test_seeds_that_are_wrong(text: str, words: str, seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds.write_text(text)
    assert generate(seeds, "http://127.0.0.1:9/v1", 5) in (ExitCode.DATA, ExitCode.ERROR)
    shown = capsys.readouterr().err
    assert f"{seeds}" in shown
    assert words in shown


def forms() -> Iterator[tuple[str, str]]:
    yield "list", json.dumps(SEEDS, indent=1)
    yield "bom", "\ufeff" + "\n".join(map(json.dumps, SEEDS))
    nested = [
        {"id": n, "instruction": row["instruction"], "instances": [{"input": row["input"], "output": row["output"]}]}
        for n, row in enumerate(SEEDS)
    ]
    yield "self-instruct", "\n".join(map(json.dumps, nested))


@pytest.mark.parametrize(("text"), [text for _, text in forms()], ids=[name for name, _ in forms()])
def test_forms_of_seeds(text: str, seeds: Path) -> None:
    from hpclm.data.generation.instruction_rows import read_rows

    seeds.write_text(text)
    assert [(row.instruction, row.input, row.output) for row in read_rows(seeds)] == [
        (row["instruction"], row["input"], row["output"]) for row in SEEDS
    ]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tasks", "3"], "--examples 3 come first"),
        (["--min-words", "9", "--max-words", "8"], "--min-words 9 is more than"),
        (["--out", "seeds.jsonl"], "is the file of the seeds"),
        (["--max-cost", "inf", "--price-in", "1", "--price-out", "1"], "--max-cost inf is no number"),
    ],
)
def test_options_that_contradict(
    more: list[str], words: str, seeds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(seeds.parent)
    assert generate(seeds, "http://127.0.0.1:9/v1", 5, *more) == ExitCode.ERROR
    assert words in capsys.readouterr().err
    assert rows_in(seeds) == SEEDS
