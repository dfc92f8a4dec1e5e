"""A launch script's words, without running any of it: assignments, arrays, expansions and simple conditions are read,
and whatever a shell would have to run stays as it is written (`$1`, `$(date)`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_WORDS = 20_000
MAX_TEXT = 200_000
_ASSIGNED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?)=")
_NAMED = re.compile(
    r"\$(?:\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*|[0-9]+)(?P<all>\[[@*]\])?(?::?-(?P<default>[^{}]*))?\}"
    r"|(?P<plain>[A-Za-z_][A-Za-z0-9_]*|[0-9]))"
)
_UNSET = re.compile(r"\$(?:\{[A-Za-z_]\w*\}|[A-Za-z_]\w*)")
# What a shell would run: its words say nothing here
_RUN = re.compile(r"\$\((?!\().*\)|`[^`]*`", re.DOTALL)
_SUM = re.compile(r"\$\(\((?P<sum>[0-9A-Za-z_$+*/() -]*)\)\)")
_SEPARATORS = ("\n", ";", "&&", "||", "|", "&")
_OPENING, _CLOSING = ("if", "for", "while", "until", "case"), ("fi", "done", "esac")


@dataclass(frozen=True)
class Word:
    """A word of the script, and its line."""

    text: str
    line: int


@dataclass(frozen=True)
class _Part:
    """Of a raw word: text, whether variables in it are expanded, and whether what they give is split."""

    text: str
    expands: bool
    splits: bool


@dataclass
class _Raw:
    """A word before it is expanded, or a separator (without parts)."""

    line: int
    parts: list[_Part] = field(default_factory=list)
    separator: str = ""

    @property
    def bare(self) -> str:
        """The text where nothing is quoted."""
        return "".join(part.text for part in self.parts) if all(part.splits for part in self.parts) else ""

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


def _lexed(text: str) -> Iterator[_Raw]:
    """Raw words, separators, and the parentheses of arrays as words of their own."""
    place, line = 0, 1
    word: _Raw | None = None
    depth = 0
    while place < len(text):
        character = text[place]
        pair = text[place : place + 2]
        if pair == "\\\n":
            place, line = place + 2, line + 1
            continue
        if character == "#" and word is None:
            end = text.find("\n", place)
            place = len(text) if end < 0 else end
            continue
        if character in " \t\r\n;&|" or (character in "()" and not pair.startswith("$(")):
            in_array = depth > 0
            if character == "(" and word is not None and word.text.endswith("="):
                depth += 1
                yield word
                yield _Raw(line, separator="(")
                word, place = None, place + 1
                continue
            if word is not None:
                yield word
                word = None
            if character == ")" and in_array:
                depth -= 1
                yield _Raw(line, separator=")")
            elif character in "\n;&|()" and not (in_array and character == "\n"):
                separator = pair if pair in ("&&", "||") else character
                yield _Raw(line, separator=separator)
                place += len(separator) - 1
            line += character == "\n"
            place += 1
            continue
        word = word or _Raw(line)
        part, length = _part(text, place)
        word.parts.append(part)
        line += text.count("\n", place, place + length)
        place += length
    if word is not None:
        yield word


def _part(text: str, place: int) -> tuple[_Part, int]:
    """The part of a word that begins at `place`, and how long it is in the script."""
    character = text[place]
    if character == "'":
        end = _end(text, place + 1, "'")
        return _Part(text[place + 1 : end], expands=False, splits=False), end + 1 - place
    if character == '"':
        end = place + 1
        while end < len(text) and text[end] != '"':
            end += 2 if text[end] == "\\" else 1
        inner = re.sub(r"\\\n", " ", text[place + 1 : end])
        return _Part(re.sub(r'\\(["\\$`])', r"\1", inner), expands=True, splits=False), end + 1 - place
    if character == "\\":
        return _Part(text[place + 1 : place + 2], expands=False, splits=False), 2
    if text.startswith("$(", place):
        end, open_ = place + 2, 1
        while end < len(text) and open_:
            open_ += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        return _Part(text[place:end], expands=True, splits=True), end - place
    if character == "`":
        end = _end(text, place + 1, "`")
        return _Part("$(…)", expands=False, splits=True), end + 1 - place
    if text.startswith("${", place):
        end = _end(text, place, "}")
        return _Part(text[place : end + 1], expands=True, splits=True), end + 1 - place
    end = place + 1
    while end < len(text) and text[end] not in " \t\r\n;&|()'\"\\`" and not text.startswith(("$(", "${"), end):
        end += 1
    return _Part(text[place:end], expands=True, splits=True), end - place


def _end(text: str, start: int, mark: str) -> int:
    end = text.find(mark, start)
    return len(text) if end < 0 else end


class Script:
    """What a launch script says.

    Attributes:
        command: the words of the command that runs a Python program of the script's; without one, all its words.
        unread: lines of conditions and loops that were not read, with what they decide.
    """

    def __init__(self, text: str) -> None:
        self.variables: dict[str, list[Word]] = {}
        self.command: list[Word] = []
        self.unread: list[int] = []
        self.words = 0
        # for each open block whether what stands in it counts; None: not known
        self.blocks: list[bool | None] = []
        self.seen: list[bool | None] = []
        flags: list[Word] = []
        for statement in _statements(list(_lexed(text))):
            found = self._statement(statement)
            flags += found
            if not self.command:
                self.command = _program(found)
        if not self.command:
            self.command = flags

    def _statement(self, raw: list[_Raw]) -> list[Word]:
        """Follow a statement; returns the words of a command."""
        first = raw[0].bare
        if first in ("then", "do"):
            return self._statement(raw[1:]) if len(raw) > 1 else []
        if first in _OPENING:
            self.blocks.append(self._holds(raw[1:]) if first == "if" and self._active() is True else None)
            self.seen.append(self.blocks[-1])
            return []
        if first in _CLOSING and self.blocks:
            self.blocks.pop()
            self.seen.pop()
            return []
        if first in ("else", "elif") and self.blocks:
            self._other_branch(raw, first)
            return self._statement(raw[1:]) if first == "else" and len(raw) > 1 else []
        active = self._active()
        if active is False:
            return []
        assigned = _ASSIGNED.match(
            raw[1].text if first in ("export", "readonly", "local") and len(raw) > 1 else raw[0].text
        )
        if assigned is not None:
            if active is None:
                self.unread.append(raw[0].line)
                return []
            self._assign(raw[1:] if first in ("export", "readonly", "local") else raw, assigned)
            return []
        words = [word for one in raw if not one.separator for word in self._expanded(one)]
        if active is None:
            if first not in ("echo", "printf") and any(_matters(word.text) for word in words):
                self.unread.append(raw[0].line)
            return []
        return words

    def _active(self) -> bool | None:
        if any(block is False for block in self.blocks):
            return False
        return None if any(block is None for block in self.blocks) else True

    def _other_branch(self, raw: list[_Raw], first: str) -> None:
        seen = self.seen[-1]
        if seen is None:
            self.blocks[-1] = None
        elif seen:
            self.blocks[-1] = False
        else:
            self.blocks[-1] = True if first == "else" else self._holds(raw[1:])
            self.seen[-1] = self.blocks[-1]

    def _assign(self, raw: list[_Raw], assigned: re.Match[str]) -> None:
        name, adds = assigned[1], bool(assigned[2])
        is_array = len(raw) > 1 and raw[1].separator == "("
        if is_array:
            value = [word for one in raw[2:] if not one.separator for word in self._expanded(one)]
        else:
            own = _Raw(raw[0].line, [_Part(raw[0].parts[0].text[assigned.end() :], True, False), *raw[0].parts[1:]])
            parts = [_Part(part.text, part.expands, splits=False) for part in own.parts]
            value = self._expanded(_Raw(own.line, parts)) or [Word("", own.line)]
        before = self.variables.get(name, [])
        if adds and before and not is_array:  # of a text, or of an array's first
            value = [Word(before[0].text + value[0].text, value[0].line), *before[1:]]
        elif adds:
            value = [*before, *value]
        self.variables[name] = value

    def _expanded(self, raw: _Raw) -> list[Word]:
        """The words that a raw one becomes, each at the line where its text was written."""
        made: list[Word] = []
        current: Word | None = None
        for part in raw.parts:
            found = self._values(part, raw.line)
            if not part.splits and len(found) <= 1:
                text = found[0].text if found else ""
                current = Word((current.text if current else "") + text, found[0].line if found else raw.line)
                continue
            pieces = found if not part.splits else [one for word in found for one in _split(word)]
            for number, piece in enumerate(pieces):
                if number == 0 and current is not None:
                    current = Word(current.text + piece.text, piece.line)
                    continue
                if current is not None:
                    made.append(current)
                current = piece
        if current is not None:
            made.append(current)
        self.words += len(made)
        if self.words > MAX_WORDS:
            raise ValueError(f"its variables give more than {MAX_WORDS} words")
        return made

    def _values(self, part: _Part, line: int) -> list[Word]:
        """What a part becomes: several words where it is an array alone."""
        if not part.expands:
            return [Word(part.text, line)]
        alone = _NAMED.fullmatch(part.text)
        if alone is not None:
            name = alone["braced"] or alone["plain"]
            value = self.variables.get(name)
            if value is not None:
                return list(value) if alone["all"] else value[:1] or [Word("", line)]
            return [Word(_unquoted(alone["default"]) if alone["default"] is not None else part.text, line)]
        return [Word(self._inside(part.text), line)]

    def _inside(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            known = self.variables.get(match["braced"] or match["plain"])
            if known is not None:
                return " ".join(word.text for word in (known if match["all"] else known[:1]))
            return _unquoted(match["default"]) if match["default"] is not None else match[0]

        def total(match: re.Match[str]) -> str:
            return (
                _calculated(re.sub(r"[A-Za-z_]\w*", lambda name: self._number(name[0]), match["sum"].replace("$", "")))
                or match[0]
            )

        made = _RUN.sub("$(…)", _NAMED.sub(value, _SUM.sub(total, text)))
        if len(made) > MAX_TEXT:
            raise ValueError(f"its variables give a text of more than {MAX_TEXT} characters")
        return made

    def _number(self, name: str) -> str:
        value = self.variables.get(name)
        return value[0].text if value and value[0].text.isdigit() else name

    def _holds(self, raw: list[_Raw]) -> bool | None:
        """Whether a condition of comparisons holds; None where a shell would have to run something."""
        result: bool | None = None
        test: list[str] = []
        operator = ""
        for one in [*raw, _Raw(0, separator="end")]:
            if not one.separator:
                test += [word.text for word in self._expanded(one)] or [""]
                continue
            value = _compared([word for word in test if word not in ("[", "]", "[[", "]]")])
            if operator == "||":
                result = True if True in (result, value) else None if None in (result, value) else False
            elif operator == "&&":
                result = False if False in (result, value) else None if None in (result, value) else True
            else:
                result = value
            operator, test = one.separator, []
        return result


def _statements(raw: list[_Raw]) -> Iterator[list[_Raw]]:
    """Words up to a separator; a condition has its own separators, up to `then`."""
    current: list[_Raw] = []
    in_condition, depth = False, 0
    for one in raw:
        depth += {"(": 1, ")": -1}.get(one.separator, 0)
        opens = current and not current[0].separator and current[0].bare in ("if", "elif")
        in_condition = bool(opens) and one.bare != "then"
        if one.bare in ("then", "do", "else") and current and not (in_condition or depth > 0):
            yield current
            current = []
        keeps = in_condition and one.separator in ("&&", "||")
        if one.separator in _SEPARATORS and not keeps and depth <= 0:
            if current:
                yield current
            current = []
        else:
            current.append(one)
    if current:
        yield current


def _split(word: Word) -> list[Word]:
    """The words in a variable's text; a line further for each line break before one."""
    found = []
    for match in re.finditer(r"\S+", word.text):
        found.append(Word(match[0], word.line + word.text.count("\n", 0, match.start())))
    return found


def _unquoted(text: str) -> str:
    return text.strip("\"'")


def _calculated(text: str) -> str | None:
    """The value of a sum or product of whole numbers."""
    tokens = re.findall(r"\d+|[*/+-]", text.replace(" ", ""))
    if "".join(tokens) != text.replace(" ", "") or not tokens or len(tokens) % 2 == 0 or len(tokens) > 15:
        return None
    try:
        terms, signs = [int(tokens[0])], [1]
        for sign, digits in zip(tokens[1::2], tokens[2::2], strict=True):
            number = int(digits)
            if sign == "*":
                terms[-1] *= number
            elif sign == "/":
                terms[-1] //= number
            else:
                terms.append(number)
                signs.append(1 if sign == "+" else -1)
    except (ValueError, ZeroDivisionError):
        return None
    return str(sum(sign * term for sign, term in zip(signs, terms, strict=True)))


def _compared(test: list[str]) -> bool | None:
    """`A == B`, `A != B`, `-z A`, `-n A` of words that are known. A variable that the script never sets is not set."""
    test = [_UNSET.sub("", word) for word in test]
    if any(re.search(r"[$`]", word) for word in test):
        return None
    if len(test) == 3 and test[1] in ("==", "=", "!=", "-eq", "-ne", "-gt", "-lt", "-ge", "-le"):
        left, operator, right = test
        if operator in ("==", "=", "!="):
            return (left == right) is (operator != "!=")
        if not (left.lstrip("-").isdigit() and right.lstrip("-").isdigit()):
            return None
        a, b = int(left), int(right)
        return {"-eq": a == b, "-ne": a != b, "-gt": a > b, "-lt": a < b, "-ge": a >= b, "-le": a <= b}[operator]
    if test and test[0] in ("-z", "-n") and len(test) <= 2:
        return (test[1:] in ([], [""])) is (test[0] == "-z")
    return None


def _program(words: list[Word]) -> list[Word]:
    """The command where it runs a Python program; nothing else. It may be one word, as in `sh -c "python x.py …"`."""
    inner = next((word for word in words if re.search(r"\.py\s", word.text)), None)
    if inner is not None:
        return _split(inner)
    return words if any(word.text.endswith(".py") for word in words) else []


def _matters(text: str) -> bool:
    return text.endswith(".py") or text.startswith("--")
