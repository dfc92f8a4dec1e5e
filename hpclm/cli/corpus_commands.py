"""`hpclm data tokenize` and `hpclm data inspect`: Megatron's indexed data sets."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpclm.cli.progress_line import ProgressLine, duration
from hpclm.cli.tokenizer_options import MERGES, TOKENIZER, VOCAB, tokenizer_spec

if TYPE_CHECKING:
    from hpclm.core.corpus_spec import CorpusSpec
    from hpclm.data.corpus.inspecting import Contents
    from hpclm.data.corpus.tokenized_record import Tokenized
    from hpclm.data.corpus.tokenizing import Progress


class Format(str, Enum):
    jsonl = "jsonl"
    parquet = "parquet"
    text = "text"


class Unit(str, Enum):
    file = "file"
    line = "line"
    paragraph = "paragraph"


class Encoder(str, Enum):
    auto = "auto"
    gigatoken = "gigatoken"
    tiktoken = "tiktoken"
    tokenizers = "tokenizers"


_INPUTS = Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files and folders.", show_default=False)]
_OUT = Annotated[Path, typer.Option("--out", "--output-prefix", help="Prefix of PREFIX_KEY_document.bin and .idx.")]
_KEYS = Annotated[list[str] | None, typer.Option("--json-keys", help="Key of each object's text; may be repeated.")]
_EOD = Annotated[bool, typer.Option("--append-eod", help="End each document with the end token.")]
_BOS = Annotated[bool, typer.Option("--prepend-bos", help="Begin each document with the begin token.")]
_SPECIAL = Annotated[
    bool, typer.Option("--special-tokens", help="Names of special tokens in texts become these tokens.")
]
_SKIP = Annotated[bool, typer.Option("--skip-bad", help="Leave malformed lines out and count them.")]
_PATTERN = Annotated[str | None, typer.Option("--pattern", help="Names taken from folders, as in *.py.")]
_FORMAT = Annotated[
    Format | None, typer.Option("--format", help="Of the files; default: by their names.", show_default=False)
]
_DOCUMENT = Annotated[Unit, typer.Option("--document", help="Plain text: what one document is.")]
_WORKERS = Annotated[
    int | None, typer.Option("--workers", min=1, max=4096, help="Processes; default: one for each processor.")
]
_ENCODER = Annotated[
    Encoder, typer.Option("--encoder", help="auto: the fastest installed that agrees with tokenizers on a sample.")
]
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def tokenize(
    inputs: _INPUTS,
    out: _OUT,
    vocab_file: VOCAB = None,
    merges_file: MERGES = None,
    tokenizer: TOKENIZER = None,
    json_keys: _KEYS = None,
    append_eod: _EOD = False,
    prepend_bos: _BOS = False,
    special_tokens: _SPECIAL = False,
    skip_bad: _SKIP = False,
    pattern: _PATTERN = None,
    form: _FORMAT = None,
    document: _DOCUMENT = Unit.file,
    workers: _WORKERS = None,
    encoder: _ENCODER = Encoder.auto,
    as_json: _JSON = False,
) -> None:
    """Tokenise JSONL (.gz, .zst), parquet or plain text into Megatron's indexed .bin and .idx files.

    Interrupted, the same command goes on where it was."""
    from hpclm.cli.output import print_json
    from hpclm.core.records import to_dict

    _need_engine()
    from hpclm.core.corpus_spec import CorpusSpec

    _no_keys_among(inputs, json_keys or [])
    spec = CorpusSpec(
        inputs=[str(Path(one).absolute()) for one in inputs],
        tokenizer=tokenizer_spec(vocab_file, merges_file, tokenizer),
        prefix=str(out.absolute()),
        pattern=pattern,
        form=form.value if form else None,
        keys=json_keys or ["text"],
        document=document.value,
        append_eod=append_eod,
        prepend_bos=prepend_bos,
        special_tokens=special_tokens,
        skip_bad=skip_bad,
        encoder=encoder.value,
    )
    made, notes = _watched(spec, workers, shown=not as_json)
    if as_json:
        print_json({**to_dict(made), "notes": notes})
    else:
        typer.echo("\n".join(_lines(made, notes)))


def _no_keys_among(inputs: list[str], keys: list[str]) -> None:
    """Megatron-LM's --json-keys takes several; here what follows the first is an input."""
    for one in inputs if keys and len(inputs) > 1 else []:
        if os.sep not in one and not Path(one).suffix and not Path(one).exists():
            wanted = " ".join(f"--json-keys {key}" for key in (*keys, one))
            raise typer.BadParameter(f"{one}: no such file; for several keys of an object give {wanted}")


def _watched(spec: CorpusSpec, workers: int | None, *, shown: bool) -> tuple[Tokenized, list[str]]:
    """Tokenise with a line of progress."""
    from hpclm.data.corpus.tokenizing import tokenize as make

    line = _Shown(active=shown)
    try:
        return make(spec, workers or len(os.sched_getaffinity(0)), line.take)
    except KeyboardInterrupt:
        line.end()
        typer.echo("interrupted; the same command goes on where it was", err=True)
        raise typer.Exit(130) from None
    finally:
        line.end()


def _need_engine() -> None:
    from hpclm.core.errors import HpclmError

    try:
        import numpy  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise HpclmError(f"tokenising needs numpy and tokenizers ({error}); install hpclm[data]") from None


class _Shown(ProgressLine):
    def take(self, progress: Progress) -> None:
        if not self.is_due(progress.seconds):
            return
        left = progress.seconds_left
        self.show(
            progress.seconds,
            f"{progress.documents:,} documents, {progress.tokens:,} tokens, {progress.bytes / 1e6:,.0f} of "
            f"{progress.size / 1e6:,.0f} MB, {progress.rate / 1e6:,.1f} MB/s, "
            f"{'' if left is None else duration(left)} left",
        )


def _lines(made: Tokenized, notes: list[str]) -> list[str]:
    counts = made.counts
    lines = [f"{one}.bin and .idx" for one in made.outputs]
    text = f"{counts.text_bytes / 1e6:,.1f} MB of text"
    if made.earlier_bytes:
        text += f", {(counts.text_bytes - made.earlier_bytes) / 1e6:,.1f} MB of it"
    lines.append(
        f"{counts.documents:,} documents, {counts.tokens:,} tokens, {text} in {duration(made.seconds)} "
        f"({made.rate / 1e6:,.1f} MB/s, {made.encoder})"
    )
    if counts.empty:
        lines.append(f"without tokens, for they are empty: {counts.empty:,} of the documents")
    if counts.bad:
        lines.append(f"malformed and left out: {counts.bad:,}, among them")
        lines += [f"  {one}" for one in counts.examples]
    return [*lines, *(f"note: {note}" for note in notes)]


def merge_data(
    prefixes: Annotated[list[str], typer.Argument(help="Prefixes of .bin and .idx files.", show_default=False)],
    out: Annotated[str, typer.Option("--out", help="Prefix of the whole.", show_default=False)],
    as_json: _JSON = False,
) -> None:
    """Join indexed data sets of one tokenizer into one, in this order; their tokens are copied."""
    from hpclm.cli.output import print_json
    from hpclm.core.records import to_dict

    _need_engine()
    from hpclm.data.corpus.merging import merge_pairs

    found = merge_pairs([one.removesuffix(".idx").removesuffix(".bin") for one in prefixes], out)
    if as_json:
        print_json(to_dict(found))
        return
    typer.echo(
        f"{out}.bin and .idx\n{found.documents:,} documents, {found.tokens:,} tokens of {len(prefixes)} data sets"
    )


def inspect_data(
    prefix: Annotated[str, typer.Argument(help="Prefix of a .bin and an .idx file.", show_default=False)],
    vocab_file: VOCAB = None,
    merges_file: MERGES = None,
    tokenizer: TOKENIZER = None,
    samples: Annotated[int, typer.Option("--samples", min=0, max=1000, help="Documents to show.")] = 3,
    shown: Annotated[int, typer.Option("--tokens", min=1, max=10**6, help="Tokens of each to show.")] = 40,
    whole: Annotated[bool, typer.Option("--all", help="Read every token, and check its id.")] = False,
    as_json: _JSON = False,
) -> None:
    """Show what an indexed data set contains, and whether it is whole."""
    from hpclm.cli.output import print_json
    from hpclm.core.records import to_dict

    _need_engine()
    from hpclm.data.corpus.inspecting import contents
    from hpclm.data.tokenizers import load_tokenizer

    given = None
    if tokenizer is not None or vocab_file is not None or merges_file is not None:
        given = load_tokenizer(tokenizer_spec(vocab_file, merges_file, tokenizer), None)
    found = contents(prefix.removesuffix(".idx").removesuffix(".bin"), given, samples, shown, whole=whole)
    if as_json:
        print_json(to_dict(found))
        return
    typer.echo("\n".join(_contents_lines(found)))


def _contents_lines(found: Contents) -> list[str]:
    lines = [
        f"{found.prefix}",
        f"  documents  {found.documents:,}" + (f" ({found.empty_documents:,} empty)" if found.empty_documents else ""),
        f"  sequences  {found.sequences:,}",
        f"  tokens     {found.tokens:,} ({found.dtype})",
    ]
    if found.lengths:
        words = ", ".join(f"{name} {value:,.0f}" for name, value in found.lengths.items())
        lines.append(f"  lengths    {words}")
    if found.largest_id is not None:
        ends = "" if found.ends is None else f", {found.ends:,} end tokens"
        lines.append(f"  ids        up to {found.largest_id:,}{ends}")
    if found.tokenizer is not None:
        lines.append(f"  tokenizer  {found.tokenizer}")
    for sample in found.samples:
        text = " ".join(map(str, sample.ids)) if sample.text is None else repr(sample.text)
        lines.append(f"  document {sample.document:,} ({sample.tokens:,} tokens): {text}")
    if any(sample.text is None for sample in found.samples):
        lines.append("  (give --tokenizer, or --vocab-file and --merges-file, to see text)")
    return lines
