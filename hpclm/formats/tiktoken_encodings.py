"""Special tokens of tiktoken's encodings (openai/tiktoken 0.14, tiktoken_ext/openai_public.py)."""

from __future__ import annotations

SPECIAL_TOKENS = {
    "r50k_base": {"<|endoftext|>": 50256},
    "cl100k_base": {
        "<|endoftext|>": 100257,
        "<|fim_prefix|>": 100258,
        "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260,
        "<|endofprompt|>": 100276,
    },
    "o200k_base": {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
}
