"""Tokenizers of every kind that models have: byte-level BPE and SentencePiece-like, with and without BOS and EOS."""

from __future__ import annotations

from typing import Any, Literal

CORPUS = [
    "Below is an instruction that describes a task, paired with an input that provides further context. ",
    "Write a response that appropriately completes the request.\n\n### Instruction:\n\n### Input:\n\n### Response:",
    "user assistant system The capital of France is Paris. def f(x):\n    return x\n\n\n   indented  text",
    "请 翻译 下面 的 句子 你好 世界 答案",
] * 8
SPECIAL = ("<s>", "</s>", "<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>",
           "<|end_header_id|>", "[INST]", "[/INST]")  # fmt: skip

Kind = Literal["bytes", "bytes-trimmed", "metaspace"]
KINDS: tuple[Kind, ...] = ("bytes", "bytes-trimmed", "metaspace")


def tokenizer(kind: Kind = "bytes", *, bos: bool = False, eos: bool = False, end: str = "</s>") -> Any:
    """A tokenizer of transformers.

    Args:
        kind: byte-level BPE; the same with offsets that leave white space out; SentencePiece's with byte fallback.
        bos: every text begins with <s>; `eos`: and ends with the end token.
        end: its end token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "metaspace":
        inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet = []
    else:
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
    bytes_ = [f"<0x{number:02X}>" for number in range(256)] if kind == "metaspace" else []
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*SPECIAL, *bytes_], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(CORPUS[:-1] if kind == "metaspace" else CORPUS, trainer)
    steps: list[Any] = [processors.ByteLevel(trim_offsets=True)] if kind == "bytes-trimmed" else []
    if bos or eos:
        single = f"{'<s> ' if bos else ''}$A{f' {end}' if eos else ''}"
        tokens = [(one, inner.token_to_id(one)) for one in ("<s>", end)]
        steps.append(processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=tokens))
    if steps:
        inner.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, bos_token="<s>" if bos else None, eos_token=end, pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=[one for one in SPECIAL[4:] if one != end],
    )  # fmt: skip
