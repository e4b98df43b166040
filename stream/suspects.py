"""Cards that this worker knows to be tied to fraud: what they click moves no list.

In: blocked decisions and labels that say fraud, of the fraud lane. Out: which clicks are of such a card, for
:data:`features.ties.TIE_DAYS` of event time. State owned: the newest :data:`CARDS_MAX` cards, in memory only, of the
partitions that this worker holds. Training knows more (:mod:`trainer.ties`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from features.ties import TIE_MS

CARDS_MAX = 100_000


class Suspects:
    """The cards, by id."""

    def __init__(self) -> None:
        self._cards: dict[str, int] = {}  # the newest time of a fraud, in ms

    def __len__(self) -> int:
        return len(self._cards)

    def add(self, cards: Iterable[str], times_ms: Iterable[int]) -> None:
        """Take note of cards and when they were blocked, or said to be defrauded; the ones known longest go."""
        known = self._cards
        for card, time_ms in zip(cards, times_ms, strict=True):
            known[card] = max(known.pop(card, time_ms), time_ms)
        while len(known) > CARDS_MAX:
            del known[next(iter(known))]

    def among(self, cards: Sequence[str | None], times_ms: Sequence[int]) -> list[bool]:
        """Which clicks, by card and event time, are of one."""
        known = self._cards
        return [card in known and time_ms - known[card] <= TIE_MS
                for card, time_ms in zip(cards, times_ms, strict=True)]  # fmt: skip
