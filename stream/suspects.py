"""Cards that this worker knows to be tied to fraud: what they click moves no list.

In: blocked decisions and labels that say fraud, of the fraud lane. Out: which clicks are of such a card. State owned:
the newest :data:`CARDS_MAX` cards, in memory only, of the partitions that this worker holds. Training knows more
(:mod:`trainer.ties`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

CARDS_MAX = 100_000


class Suspects:
    """The cards, by id."""

    def __init__(self) -> None:
        self._cards: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._cards)

    def add(self, cards: Iterable[str]) -> None:
        """Take note of cards; the ones known longest go."""
        for card in cards:
            self._cards.pop(card, None)
            self._cards[card] = None
        while len(self._cards) > CARDS_MAX:
            del self._cards[next(iter(self._cards))]

    def among(self, cards: Sequence[str | None]) -> list[bool]:
        """Which of these are."""
        known = self._cards
        return [card in known for card in cards]
