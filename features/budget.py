"""The state of the alert budget of one partition: what it holds, and its bytes.

In: settings, and the fields of the partition's hash as they were written. Out: decisions (:mod:`features.budget_kernel`
says how), and the fields that have changed, which are applied in one command with the rest of the partition's state.
Pure. The bytes of one version are read by all later ones; an unknown version is refused.

Three fields, since they change at different times: at every transaction, every hour, and at every new case::

    @budget         version byte 1; 8 whole numbers (clock, hour, ...); 11 numbers and the histogram of scores
    @budget:hours   version byte 1; expected transactions in the 168 hours of a week and the 24 of a day, -1 unknown
    @budget:cards   version byte 1; hashes of the cards that are cases today, in order

Each number takes eight bytes, the lowest first: 1.4 KB, 1.5 KB, and 8 bytes a case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from features import budget_kernel as kernel
from features.errors import StateMismatch
from features.hashing import hash_strings

FIELDS = (b"@budget", b"@budget:hours", b"@budget:cards")
VERSION = 1
_HOURS = 168 + 24
_WAY_OUT = "make it anew with `headrace rebuild --replace`, or use another redis.namespace and worker.group"
_SPARE = 64  # cards beyond twice the budget that rules may have alerted on a day


def model_tag(version: str) -> int:
    """What stands for a model's version in the state; never 0."""
    return int(hash_strings([version]).view(np.int64)[0]) or 1


class Budget:
    """The controller of one partition.

    Parameters
    ----------
    cases_per_day : float
        Cards to alert a day in this partition, > 0: what the settings say divided by the number of partitions.
    values : sequence of bytes or None
        What was read of :data:`FIELDS`; all None for a new one.

    Raises
    ------
    StateMismatch
        If the bytes are of an unknown version, or damaged.
    """

    def __init__(self, cases_per_day: float, values: Sequence[bytes | None] = (None, None, None)) -> None:
        self.cases_per_day = cases_per_day
        self.ints = np.zeros(kernel.INTS, np.int64)
        self.ints[kernel.HOUR] = -1
        self.floats = np.zeros(kernel.FLOATS + kernel.LEVELS)
        self.floats[kernel.NOW] = -1.0
        self.hours = np.full(_HOURS, -1.0)
        capacity = 2 * math.ceil(cases_per_day) + _SPARE
        self._cards = np.zeros(capacity, np.int64)
        if values[0] is not None:
            self.ints, self.floats = _split(values[0], FIELDS[0], len(self.ints), len(self.floats))
            self.hours = _split(values[1], FIELDS[1], 0, _HOURS)[1]
            size = int(self.ints[kernel.SIZE])
            self._cards = np.zeros(max(capacity, size), np.int64)
            self._cards[:size] = _split(values[2], FIELDS[2], size, 0)[0]
        self._places = np.zeros(2 ** math.ceil(math.log2(2 * len(self._cards))), np.int64)
        kernel.index(self.ints, self._cards, self._places)
        self._written: tuple[object, ...] = self._marks() if values[0] is not None else ()

    @property
    def cases(self) -> int:
        """Cards alerted on the day of the clock."""
        return int(self.ints[kernel.CASES])

    @property
    def threshold(self) -> float:
        """The threshold in force at the last transaction, 0 before the first."""
        return float(self.floats[kernel.THRESHOLD])

    def decide(self, time: kernel.Ints, marks: kernel.Ints, card: kernel.Ints, score: kernel.Floats,
               model: kernel.Ints, action: kernel.Bytes, review: float, block: float) -> kernel.Floats:  # fmt: skip
        """Decide transactions in their order, see :func:`features.budget_kernel.decide`; the threshold of each."""
        threshold = np.zeros(len(time))
        kernel.decide(self.ints, self.floats, self.hours, self._cards, self._places, float(self.cases_per_day),
                      float(review), float(block), time, marks, card, score, model, action, threshold)  # fmt: skip
        return threshold

    def fields(self) -> Mapping[bytes, bytes]:
        """What has changed since the last call or since it was read, as bytes by field."""
        marks, before = self._marks(), self._written or (None, None, None)
        self._written = marks
        parts = (
            (self.ints, self.floats),
            (self.ints[:0], self.hours),
            (self._cards[: int(self.ints[kernel.SIZE])], self.hours[:0]),
        )
        return {
            name: bytes([VERSION]) + ints.astype("<i8").tobytes() + floats.astype("<f8").tobytes()
            for name, (ints, floats), new, old in zip(FIELDS, parts, marks, before, strict=True)
            if new != old
        }

    def _marks(self) -> tuple[object, ...]:
        """What tells of each field whether it has changed."""
        ints = self.ints.tolist()
        hour, day, size = ints[kernel.HOUR], ints[kernel.BEGAN], ints[kernel.SIZE]
        return (ints, float(self.floats[kernel.IN_HOUR])), hour, (day, size)


def _split(value: bytes | None, name: bytes, ints: int, floats: int) -> tuple[kernel.Ints, kernel.Floats]:
    where = f"the alert budget's state ({name.decode()})"
    if value is None:
        raise StateMismatch(f"{where} is missing; {_WAY_OUT}")
    if value[:1] != bytes([VERSION]):
        raise StateMismatch(f"{where} begins with {value[:1]!r}, this version reads {bytes([VERSION])!r}; {_WAY_OUT}")
    if len(value) != 1 + 8 * (ints + floats):
        raise StateMismatch(f"{where} has {len(value)} bytes, expected {1 + 8 * (ints + floats)}; {_WAY_OUT}")
    return (
        np.frombuffer(value, "<i8", ints, 1).astype(np.int64),
        np.frombuffer(value, "<f8", floats, 1 + 8 * ints).astype(np.float64),
    )
