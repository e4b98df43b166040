"""Where the keys and strings of a TOML text lie, which ``tomllib`` does not tell.

In: a text that ``tomllib`` has accepted. Out: :class:`Place` of each key of a ``[table]`` or each ``[[table]]``. Pure.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from dataclasses import dataclass

_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}
_QUOTES = ('"""', "'''", '"', "'")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key's value begins in the text, and where each of its characters lies if it is a string."""

    offset: int
    characters: tuple[int, ...] = ()

    def of(self, index: int) -> int:
        """Where the value's character ``index`` lies; that after its last is where its quotes end."""
        return self.characters[min(index, len(self.characters) - 1)] if self.characters else self.offset


class Lines:
    """Lines and columns of a text, both counted from 1."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")  # alone: other characters that Python takes for a line's end are none in TOML
        self._starts = [0]
        for line in self._lines[:-1]:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column of an offset."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def pointed(self, offset: int) -> str:
        """The line of an offset, and below it a caret at its column."""
        line, column = self.place(offset)
        text = self._lines[line - 1].rstrip("\r").replace("\t", " ")
        return f"{text}\n{' ' * (column - 1)}^"


def places(text: str, table: str) -> list[dict[str, Place]]:
    """Of each ``[table]`` or ``[[table]]``, where the value of each of its keys lies; under ``""`` the table itself.

    Of a dotted key it is the first part that has the place. ``""`` is the table that a text begins with.

    >>> [(key, place.offset) for key, place in places("[[a]]\\nb = 'c'\\n", "a")[0].items()]
    [('b', 10), ('', 0)]
    """
    inside, at = not table, 0
    found: list[dict[str, Place]] = [{"": Place(0)}] if inside else []
    while at < len(text):
        at = _skip_blank(text, at)
        if at >= len(text):
            break
        if text[at] == "[":
            brackets = 2 if text.startswith("[[", at) else 1
            end = _end_of_key(text, at + brackets, "]")
            inside = _parts(text[at + brackets : end]) == [table]
            if inside:
                found.append({"": Place(at)})
            at = end + brackets
            continue
        equals = _end_of_key(text, at, "=")
        key, value = _parts(text[at:equals])[0], _skip_space(text, equals + 1)
        at, characters = _value(text, value)
        if inside and key:
            found[-1].setdefault(key, Place(value, characters))
    return [{key: place for key, place in tables.items() if key} | {"": tables[""]} for tables in found]


def _parts(key: str) -> list[str]:
    """The parts of a dotted key, without quotes and escapes."""
    table, parts = tomllib.loads(f"{key} = true"), list[str]()
    while isinstance(table, dict):
        parts += table
        table = table[parts[-1]]
    return parts


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t":
        at += 1
    return at


def _skip_blank(text: str, at: int) -> int:
    """Behind white space and comments."""
    while at < len(text) and (text[at].isspace() or text[at] == "#"):
        if text[at] == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        else:
            at += 1
    return at


def _end_of_key(text: str, at: int, sign: str) -> int:
    """Where the sign after a key is; a quoted key may hold one."""
    while text[at] != sign:
        quote = _quote(text, at)
        at = _string(text, at, quote)[0] if quote else at + 1
    return at


def _quote(text: str, at: int) -> str:
    return next((quote for quote in _QUOTES if text.startswith(quote, at)), "")


def _value(text: str, at: int) -> tuple[int, tuple[int, ...]]:
    """Where a value ends, and the places of its characters if it is a string."""
    quote = _quote(text, at)
    if quote:
        return _string(text, at, quote)
    depth = 0
    while at < len(text):
        quote = _quote(text, at)
        if quote:
            at = _string(text, at, quote)[0]
        elif text[at] in "#\n" and not depth:
            break
        elif text[at] == "#":
            at = _skip_blank(text, at)
        else:
            depth += (text[at] in "[{") - (text[at] in "]}")
            at += 1
    return at, ()


def _string(text: str, at: int, quote: str) -> tuple[int, tuple[int, ...]]:
    """Where a string ends; the place of each of its characters, and of its end."""
    characters: list[int] = []
    at += len(quote)
    if len(quote) == 3:  # a line's end right behind the quotes is not part of it
        at += 2 if text.startswith("\r\n", at) else text.startswith("\n", at)
    while not text.startswith(quote, at):
        if text[at] == "\\" and quote[0] == '"':
            at = _escaped(text, at, characters)
        else:
            # tomllib makes one character of a line's end in either form.
            characters.append(at)
            at += 2 if text.startswith("\r\n", at) else 1
    while len(quote) == 3 and text.startswith(quote, at + 1):  # up to two quotes may stand before the closing ones
        characters.append(at)
        at += 1
    return at + len(quote), (*characters, at)


def _escaped(text: str, at: int, characters: list[int]) -> int:
    """Behind a backslash and what it stands for; one at the end of a line swallows white space."""
    if text[at + 1] in _ESCAPES:
        characters.append(at)
        return at + 2
    if text[at + 1] in "uU":
        characters.append(at)
        return at + (6 if text[at + 1] == "u" else 10)
    at += 1
    while text[at].isspace():
        at += 1
    return at
