"""One token of each row as a CUDA graph: a step of generation starts thousands of kernels that each do very little."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hpclm.core.logging import log
from hpclm.engines.megatron.ranks import cuda_graph
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.engines.megatron.ranks.key_value_cache import KeyValueCache

Forward = Callable[[Tensor, KeyValueCache], Tensor | None]


def usable(groups: Groups, config: TransformerConfig) -> bool:
    """A graph has no communication here, and no experts, whose shares of the tokens the host reads."""
    alone = groups.tensor_size == groups.pipeline_size == 1
    return groups.device.type == "cuda" and alone and config.num_moe_experts is None


class DecodeGraph:
    """Calls `forward(tokens int64 [b], cache)`, logits [b, vocabulary], and captures its second call with the same rows
    and as many keys to attend to; from then on it is replayed.

    The result is valid up to the next call. Nothing of the caller is kept between calls: a cache is large.
    """

    def __init__(self) -> None:
        self.works = True
        # its memory is free when its rows have ended
        self.cache: Callable[[], KeyValueCache | None] = lambda: None
        self.state: tuple[object, ...] | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.tokens: Tensor | None = None
        self.logits: Tensor | None = None

    def __call__(self, forward: Forward, tokens: Tensor, cache: KeyValueCache) -> Tensor | None:
        if not self.works:
            return forward(tokens, cache)
        cache.round_span()
        # by identity: megatron-core's contexts are equal where their sizes are
        state = (cache.version, cache.span)
        if self.cache() is not cache or self.state != state:
            self.cache, self.state, self.tokens = weakref.ref(cache), state, None
            return forward(tokens, cache)
        if self.tokens is None and not self._capture(forward, tokens.clone(), cache):
            return forward(tokens, cache)
        assert self.graph is not None
        assert self.tokens is not None
        self.tokens.copy_(tokens)
        self.graph.replay()
        return self.logits

    def _capture(self, forward: Forward, tokens: Tensor, cache: KeyValueCache) -> bool:
        # the graph before lends its memory, for which it has to be there still
        pool = None if self.graph is None else self.graph.pool()
        try:
            graph, logits = cuda_graph.captured(lambda: forward(tokens, cache), pool)
        except RuntimeError as error:
            self.works, cache.span = False, None
            log(f"CUDA graphs are off, generation is slower: a capture failed: {str(error).splitlines()[0]}")
            return False
        self.graph, self.tokens, self.logits = graph, tokens, logits
        return True
