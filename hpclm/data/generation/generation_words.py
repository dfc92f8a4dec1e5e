"""The words that options of generating take."""

from __future__ import annotations

from hpclm.core.words import Word


class Filter(Word):
    """What leaves a row out. `non-ascii` leaves out every Chinese instruction, and is on only where it is asked for."""

    length = "length"
    words = "words"
    program = "program"
    punctuation = "punctuation"
    non_ascii = "non-ascii"
    similar = "similar"


USUAL = tuple(one for one in Filter if one is not Filter.non_ascii)


class Parameter(Word):
    """Of a request, those that some endpoints refuse."""

    temperature = "temperature"
    top_p = "top_p"
    stop = "stop"
    max_tokens = "max_tokens"


class LimitKey(Word):
    """The name of the limit of a reply's tokens."""

    max_tokens = "max_tokens"
    max_completion_tokens = "max_completion_tokens"
