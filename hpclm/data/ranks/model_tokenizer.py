"""A model's own tokenizer, as transformers loads it from the model's folder: nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpclm.core.errors import CheckpointError
from hpclm.core.files import open_text


def load_tokenizer(folder: Path, *, remote_code: bool = False, chat_template: str | None = None) -> Any:
    """transformers' tokenizer. Raises CheckpointError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=remote_code)
    except Exception as error:  # whatever the files make transformers raise
        said = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({said}); copy the model again") from error
    if chat_template is not None:
        try:
            with open_text(Path(chat_template)) as stream:
                tokenizer.chat_template = stream.read()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{chat_template}: cannot be read ({error}); give a Jinja file") from None
    return tokenizer
