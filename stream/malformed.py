"""Broken copies of good messages, to mix into a replay: what a careless or hostile producer sends.

In: a good JSON message. Out: one that no decoder may accept. Pure; the random generator is an argument.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import msgspec

from features.messages import ID_BYTES_MAX

_HOLE: Final = "\x00hole"
_NESTING = 10_000
_DIGITS = 5_000


@dataclass(frozen=True, slots=True)
class Target:
    """The fields to break. ``number`` is one that must be a number of at least ``minimum``: the time, at worst."""

    id: str
    time: str
    number: str
    minimum: float


def _with(field: str, value: object) -> Callable[[dict[str, Any]], bytes]:
    return lambda message: json.dumps(message | {field: value}).encode()


def _raw(field: str, text: bytes) -> Callable[[dict[str, Any]], bytes]:
    """Puts bytes that no encoder would write in the place of a value."""
    hole = json.dumps(_HOLE).encode()
    return lambda message: json.dumps(message | {field: _HOLE}).encode().replace(hole, text)


def kinds(target: Target) -> dict[str, Callable[[dict[str, Any]], bytes | None]]:
    """Every way to break a message, by name."""
    return {
        "bad JSON": lambda message: json.dumps(message).encode()[:-1],
        "NaN": _raw(target.number, b"NaN"),
        "infinite number": _raw(target.number, b"1e999"),
        "5,000-digit integer": _raw(target.number, b"7" * _DIGITS),
        "deep nesting": _raw(target.id, b"[" * _NESTING + b"]" * _NESTING),
        "invalid UTF-8": _raw(target.id, b'"\xff\xfe"'),
        "lone surrogate": _raw(target.id, b'"\\ud800"'),
        "bool for a number": _with(target.number, True),
        "number below the minimum": _with(target.number, int(target.minimum) - 1),
        "missing field": lambda message: json.dumps({k: v for k, v in message.items() if k != target.id}).encode(),
        "time in seconds": lambda message: _with(target.time, message[target.time] // 1000)(message),
        "time in words": _with(target.time, "yesterday"),
        "over-long id": _with(target.id, "x" * (ID_BYTES_MAX + 1)),
        "empty id": _with(target.id, ""),
        "control character in the id": _with(target.id, "a\x1fb"),
        "field twice": lambda message: b'{"%s": 1, ' % target.id.encode() + json.dumps(message).encode()[1:],
        "field twice by an escape": lambda message: (
            b'{"\\u%04x%s": "x", ' % (ord(target.id[0]), target.id[1:].encode()) + json.dumps(message).encode()[1:]
        ),
        "null": lambda _: b"null",
        "array": lambda message: json.dumps([message]).encode(),
        "empty value": lambda _: b"",
        "no value": lambda _: None,
    }


class Spoiler:
    """Breaks copies of messages of one topic, each in a way drawn at random."""

    def __init__(self, target: Target, share: float, seed: int) -> None:
        self._kinds = tuple(kinds(target).values())
        self._share = share
        self._random = Random(seed)

    def spoil(self, value: bytes) -> list[bytes | None]:
        """Nothing, or with the probability ``share`` one broken copy of the message ``value``."""
        if self._random.random() >= self._share:
            return []
        return [self._random.choice(self._kinds)(msgspec.json.decode(value))]
