"""What is read again: from where, what is missing, and which labels each transaction gets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import TopicPartition

from stream.archived import ArchivedRecord
from stream.intake import Emitted
from stream.refeed import About, Decided, FraudFeed, Reach, Records


@pytest.mark.parametrize(
    ("archived", "first", "end", "goal", "start", "gaps"),
    [
        ([], 0, 10, 10, 0, []),
        ([(0, 6)], 4, 10, 10, 0, []),
        ([(0, 4)], 6, 10, 9, 0, [(4, 6)]),
        ([(2, 4), (5, 20)], 8, 30, 30, 2, [(0, 2), (4, 5)]),
        ([(0, 4)], 9, 9, 7, 0, [(4, 7)]),
        ([(0, 9)], 9, 9, 9, 0, []),
        ([(3, 9)], 0, 30, 20, 0, []),
        ([], 5, 9, 5, 5, [(0, 5)]),
        ([], 5, 9, 3, 5, [(0, 5)]),
    ],
)
def test_what_is_neither_in_the_archive_nor_in_the_topic_is_a_gap(
    archived: list[tuple[int, int]], first: int, end: int, goal: int, start: int, gaps: list[tuple[int, int]]
) -> None:
    reach = Reach(TopicPartition("t", 0), "transactions", archived, first, end)
    assert reach.start == start
    assert reach.gaps(goal) == gaps


class Windows:
    """A reader of items that come a few at a time."""

    def __init__(self, items: list[Any], size: int) -> None:
        self.items, self.size = items, size
        self.at, self.end = 0, len(items)
        self._reach = Reach(TopicPartition("t", 0), "transactions", [], 0, len(items))

    async def window(self) -> list[Any]:
        """The next ones."""
        found = self.items[self.at : self.at + self.size]
        self.at += len(found)
        return found


def record(offset: int) -> ArchivedRecord:
    return ArchivedRecord(offset, 0, b"k", b"v")


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_each_transaction_comes_with_the_labels_that_its_decision_had_seen(size: int, limit: int) -> None:
    positions = [0, 0, 3, 3, 9, None, 9, 14]  # by transaction; None: a dead letter
    decisions = [About(n, Emitted("", 0.0, 0.0, "allow", "1", p)) for n, p in enumerate(positions) if p is not None]
    decisions.insert(4, About(2, Emitted("", 1.0, 0.0, "block", "2", 11)))  # a zombie's copy: the first counts
    transactions, labels = [Windows([record(i) for i in range(n)], size) for n in (8, 20)]
    fraud = FraudFeed(("t", "l"), Records(transactions), Records(labels),  # type: ignore[arg-type]
                      Decided(Windows(decisions, size), "t"), labels_end=17)  # type: ignore[arg-type]  # fmt: skip

    async def all_chunks() -> list[Any]:
        found = []
        while (chunk := await fraud.chunk(limit)) is not None:
            found.append(chunk)
        return found

    chunks = asyncio.run(all_chunks())
    assert [r.offset for chunk in chunks for r in chunk.records["t"]] == list(range(8))
    assert [r.offset for chunk in chunks for r in chunk.records["l"]] == list(range(17))
    known = 0
    for chunk in chunks:
        assert len(chunk.records["t"]) <= limit and len(chunk.records["l"]) <= limit
        before = known
        known += len(chunk.records["l"])
        for transaction in chunk.records["t"]:
            position = positions[transaction.offset]
            if position is not None:
                assert chunk.emitted[transaction.offset].label_position == position
                assert before <= position <= known
