"""Cards, sessions and users that this worker knows to be tied to fraud: what they click moves no list.

In: blocked decisions and labels that say fraud, of the fraud lane. Out: which clicks are tied, for
:data:`features.ties.TIE_DAYS` of event time after the fraud. A tied click ties its session and its user, as in training
(:mod:`trainer.ties`, which looks back as well). State owned: the newest :data:`KNOWN_MAX` cards, sessions and users, in
memory only, of the partitions that this worker holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from features.ties import TIE_MS

KNOWN_MAX = 100_000  # of each kind
Visitor = tuple[str | None, str | None, str | None]  # card, session, user


class _Visit(msgspec.Struct):
    session_id: str | int | None = None
    user_id: str | int | None = None


def visitor(card: str, transaction: bytes) -> Visitor:
    """Who made a transaction: its card, and what its record says of session and user."""
    try:
        said = msgspec.json.decode(transaction, type=_Visit)
    except msgspec.DecodeError:  # these two are read by nobody else, so nobody else has checked them
        return card, None, None
    session, user = (None if id_ is None else str(id_) for id_ in (said.session_id, said.user_id))
    return card, session, user


class Suspects:
    """Who is tied, by card, session and user."""

    def __init__(self) -> None:
        self._known: tuple[dict[str, int], ...] = {}, {}, {}  # the newest time of a fraud, in ms

    def __bool__(self) -> bool:
        return any(self._known)

    def add(self, visitors: Iterable[Visitor], times_ms: Iterable[int]) -> None:
        """Take note of who was blocked, or defrauded, and when; those known longest go."""
        for ids, time_ms in zip(visitors, times_ms, strict=True):
            for known, id_ in zip(self._known, ids, strict=True):
                if id_ is not None:
                    known[id_] = max(known.pop(id_, time_ms), time_ms)
                    if len(known) > KNOWN_MAX:
                        del known[next(iter(known))]

    def among(self, visitors: Sequence[Visitor], times_ms: Sequence[int]) -> list[bool]:
        """Which clicks, by who made them and when, are tied; they tie their sessions and users."""
        found = []
        for ids, time_ms in zip(visitors, times_ms, strict=True):
            frauds = [known[id_] for known, id_ in zip(self._known, ids, strict=True) if id_ in known]
            near = [fraud_ms for fraud_ms in frauds if time_ms - fraud_ms <= TIE_MS]
            if near:
                self.add([(None, *ids[1:])], [max(near)])  # of the fraud, or each click would tie for longer
            found.append(bool(near))
        return found
