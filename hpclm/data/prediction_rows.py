"""A row of a replica's predictions: index, taskname, prompt, prediction, answer, and how it was made."""

from __future__ import annotations

# How many tokens were generated, and whether the answer reached the limit before it ended; not among the results.
TOKENS, AT_LIMIT = "generated_tokens", "at_limit"
