"""`hpclm data generate`: instruction rows from seed rows by a chat model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpclm.cli.progress_line import ProgressLine, duration
from hpclm.data.generation.generation_words import USUAL, Filter, LimitKey, Parameter

if TYPE_CHECKING:
    from hpclm.data.generation.generating import Made, Progress
    from hpclm.data.generation.generation_options import Options

_SEEDS = Annotated[
    Path,
    typer.Argument(
        help="Rows with instruction, input and output: JSONL, or one JSON list.", metavar="SEEDS", show_default=False
    ),
]
_OUT = Annotated[Path, typer.Option("--out", help="The rows, JSONL. A record is kept beside it.")]
_COUNT = Annotated[int, typer.Option("--count", min=1, help="Rows to make, those already there included.")]
_MODEL = Annotated[str, typer.Option("--model", help="Name of the endpoint's model.")]
_URL = Annotated[
    str | None,
    typer.Option("--base-url", envvar="OPENAI_BASE_URL", help="An OpenAI-compatible endpoint; default: OpenAI's."),
]
_KEY = Annotated[
    str | None, typer.Option("--key-env", help="Variable that holds the key; default: OPENAI_API_KEY.", metavar="NAME")
]
_LANGUAGE = Annotated[str | None, typer.Option("--language", help="Of the rows; default: that of the examples.")]
_TOPIC = Annotated[str | None, typer.Option("--topic", help="What every row is about.")]
_EXAMPLES = Annotated[int, typer.Option("--examples", min=1, max=100, help="Seed rows in each prompt.")]
_TASKS = Annotated[
    int, typer.Option("--tasks", min=2, max=1000, help="Number of a prompt's last task, examples first.")
]
_SEED = Annotated[int, typer.Option("--seed", help="Of the draw of the examples.")]
_FILTERS = Annotated[list[Filter] | None, typer.Option("--filter", help="A filter that is off by default.")]
_OFF = Annotated[list[Filter] | None, typer.Option("--no-filter", help="A filter to switch off; may be repeated.")]
_WORDS = Annotated[
    list[str] | None, typer.Option("--drop-word", help="Leave out instructions with this word too; may be repeated.")
]
_LEAST = Annotated[int, typer.Option("--min-words", min=0, help="Of an instruction; in Chinese characters.")]
_MOST = Annotated[int, typer.Option("--max-words", min=1, help="Of an instruction.")]
_SIMILARITY = Annotated[
    float, typer.Option("--similarity", min=0, max=1, help="ROUGE-L above which an instruction is one too many.")
]
_TEMPERATURE = Annotated[float, typer.Option("--temperature", min=0, max=10)]
_TOP_P = Annotated[float, typer.Option("--top-p", min=0, max=1)]
_TOKENS = Annotated[int, typer.Option("--max-tokens", min=1, max=10**7, help="Of one reply.")]
_LIMIT_KEY = Annotated[LimitKey, typer.Option("--max-tokens-key", help="What the endpoint calls that limit.")]
_STOP = Annotated[list[str] | None, typer.Option("--stop", help="Ends a reply; default: the task after the last.")]
_OMIT = Annotated[list[Parameter] | None, typer.Option("--omit", help="Do not send this parameter; may be repeated.")]
_RPM = Annotated[float | None, typer.Option("--requests-per-minute", min=1e-3)]
_TPM = Annotated[float | None, typer.Option("--tokens-per-minute", min=1)]
_CONCURRENCY = Annotated[int, typer.Option("--concurrency", min=1, max=256, help="Requests at the same time.")]
_RETRIES = Annotated[int, typer.Option("--retries", min=0, max=100, help="Of one request.")]
_TIMEOUT = Annotated[float, typer.Option("--timeout", min=1e-3, help="Seconds to wait for a reply.")]
_MAX_COST = Annotated[float | None, typer.Option("--max-cost", min=0, help="Never spend more; needs the prices.")]
_IN = Annotated[float | None, typer.Option("--price-in", min=0, help="Of a million tokens of prompts.")]
_PRICE_OUT = Annotated[float | None, typer.Option("--price-out", min=0, help="Of a million tokens of replies.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def generate_rows(
    seeds: _SEEDS,
    out: _OUT,
    count: _COUNT,
    model: _MODEL,
    base_url: _URL = None,
    key_env: _KEY = None,
    language: _LANGUAGE = None,
    topic: _TOPIC = None,
    examples: _EXAMPLES = 3,
    tasks: _TASKS = 20,
    seed: _SEED = 1234,
    on: _FILTERS = None,
    off: _OFF = None,
    drop_word: _WORDS = None,
    min_words: _LEAST = 4,
    max_words: _MOST = 150,
    similarity: _SIMILARITY = 0.7,
    temperature: _TEMPERATURE = 1.0,
    top_p: _TOP_P = 1.0,
    max_tokens: _TOKENS = 3072,
    max_tokens_key: _LIMIT_KEY = LimitKey.max_tokens,
    stop: _STOP = None,
    omit: _OMIT = None,
    requests_per_minute: _RPM = None,
    tokens_per_minute: _TPM = None,
    concurrency: _CONCURRENCY = 4,
    retries: _RETRIES = 6,
    timeout: _TIMEOUT = 300.0,
    max_cost: _MAX_COST = None,
    price_in: _IN = None,
    price_out: _PRICE_OUT = None,
    as_json: _JSON = False,
) -> None:
    """Make instruction rows from seed rows by a chat model, filtered and without duplicates.

    Interrupted, the same command goes on where it was. The key is read from the environment alone."""
    from hpclm.data.generation.generation_options import Limits, Options, Sampling

    left_out = [one.value for one in omit or ()]
    sampling = Sampling(temperature, top_p, max_tokens, max_tokens_key.value, list(stop or ()), left_out)
    pace = (requests_per_minute, tokens_per_minute, concurrency)
    limits = Limits(*pace, retries, timeout, max_cost, price_in, price_out)
    filters = [one for one in Filter if one in (*USUAL, *(on or ())) and one not in (off or ())]
    words = (list(drop_word or ()), min_words, max_words)
    chosen = (examples, tasks, language, topic, seed, filters, *words, similarity)
    _make(Options(seeds, out, count, model, base_url or None, *chosen, sampling, limits), key_env, as_json)


def _make(options: Options, key_env: str | None, as_json: bool) -> None:
    """Make the rows and print the result. Raises IncompleteError where there are fewer than asked for."""
    from hpclm.cli.output import print_json
    from hpclm.core.errors import IncompleteError
    from hpclm.core.records import to_dict
    from hpclm.data.generation.chat_client import key_from
    from hpclm.data.generation.generating import Generation

    line = _Shown(active=not as_json)
    key = key_from(key_env, options.base_url)
    try:
        made = Generation(options, key, line.take).run()
    except KeyboardInterrupt:
        line.end()
        typer.echo(
            f"interrupted; the rows in {options.out} are kept, and the same command goes on. Replies that were "
            "under way are lost, and not in the cost",
            err=True,
        )
        raise typer.Exit(130) from None
    finally:
        line.end()
    if as_json:
        print_json(to_dict(made))
    else:
        typer.echo("\n".join(_lines(made)))
    if made.ended_by is not None:
        raise IncompleteError(
            f"{made.rows:,} of {made.count:,} rows: {made.ended_by}. What was made is kept, and the same command "
            "goes on"
        )


class _Shown(ProgressLine):
    def take(self, progress: Progress) -> None:
        if self.is_due(progress.seconds):
            cost = "" if progress.cost is None else f", cost {progress.cost:,.4f}"
            self.show(
                progress.seconds,
                f"{progress.rows:,} of {progress.count:,} rows, {progress.dropped:,} left out, "
                f"{progress.replies:,} replies, {progress.under_way} under way, "
                f"{progress.tokens:,} tokens{cost}, {duration(progress.seconds)}",
            )


def _lines(made: Made) -> list[str]:
    cost = "no prices given" if made.cost is None else f"cost {made.cost:,.4f}"
    lines = [
        f"{made.out}: {made.rows:,} of {made.count:,} rows, {made.new_rows:,} of them new",
        f"{made.replies:,} replies, {made.prompt_tokens:,} tokens of prompts, {made.completion_tokens:,} of replies "
        f"({cost}), {duration(made.seconds)}",
    ]
    if made.dropped:
        lines.append("left out: " + ", ".join(f"{count:,} {reason}" for reason, count in made.dropped.items()))
    if made.failed_tries:
        lines.append(f"{made.failed_tries:,} tries failed; what the endpoint takes for them is not counted")
    if made.uncounted_replies:
        lines.append(f"note: the endpoint did not count the tokens of {made.uncounted_replies:,} replies")
    return lines
