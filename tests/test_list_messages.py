"""Recommendations that many clicks share are written once, and read as if each had been written by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.decode import ClickBatch
from features.hashing import hash_strings
from features.item_records import Gone, ItemFacts
from features.list_gate import LEFT_OUT, Filled
from features.listing import Clicked, Lister, Lists
from features.messages import Degraded, LeftOut, RecommendedItem
from features.recommender import Recommender
from features.rungs import Asking, Rung
from features.same_lists import first_of_each
from features.shelf import Shelf
from stream.click_answers import newest, one_by_one, together
from tests.sessions import checkerboard, fitted

_ids = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
_items = st.lists(st.builds(RecommendedItem, _ids, st.floats(0, 1), st.just("popular"), st.none() | _ids, _ids,
                            _ids | st.just(msgspec.UNSET)), max_size=4)  # fmt: skip
_lists = st.lists(st.tuples(_items, st.just(msgspec.UNSET) | st.lists(st.builds(LeftOut, item_id=_ids,
                  reason=st.just("capped")), max_size=2)), min_size=1, max_size=4)  # fmt: skip


@settings(deadline=None)  # compiled on first use
@given(_lists, st.data(), st.sampled_from([None, "popular"]))
def test_what_is_written_together_is_byte_for_byte_what_is_written_one_by_one(
    lists: list[tuple[Any, Any]], data: st.DataObject, degraded: Degraded | None
) -> None:
    clicks = data.draw(st.lists(st.tuples(st.integers(0, len(lists) - 1), _ids, _ids, st.none() | _ids, _ids,
                                          st.integers(946_684_800_000, 4_102_444_800_000), st.booleans(),
                                          st.integers(0, 2**40)), min_size=1, max_size=6))  # fmt: skip
    which, event, session, user, item, time, long, offset = (list(column) for column in zip(*clicks, strict=True))
    batch = ClickBatch(list(range(len(clicks))), event, np.array(time, np.int64), session, user, [None] * len(clicks),
                       item, np.zeros(len(clicks), np.int8))  # fmt: skip
    part: Any = SimpleNamespace(partition=3, batch=batch, long_session=long,
                                records=[SimpleNamespace(offset=each) for each in offset])  # fmt: skip
    same = np.array([0, *which], np.int64)  # those of another partition come first
    found = Lists([lists[n][0] for n in same], [lists[n][1] for n in same], same)
    alone = list(one_by_one("clicks", part, 1, found, "000007", degraded))
    messages = together("clicks", part, 1, found, same, "000007", degraded)
    assert [value for _, value in messages] == [msgspec.json.encode(answer) for answer in alone]
    assert [key.decode() for key, _ in messages] == [answer.user_id or answer.session_id for answer in alone]
    last = {f"session:{answer.session_id}": msgspec.json.encode(answer) for answer in alone}
    last |= {f"user:{answer.user_id}": msgspec.json.encode(answer) for answer in alone if answer.user_id is not None}
    assert newest(batch, messages.values.raw) == last


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 1)] * 5), max_size=30))
def test_lists_share_a_number_where_they_say_the_same(rows: list[tuple[int, ...]]) -> None:
    columns = np.array(rows, np.int64).reshape(len(rows), 5)
    wide = [np.repeat(columns[:, [n]], 3, axis=1) for n in range(4)]
    left_out = np.repeat(columns[:, [4]], LEFT_OUT, axis=1).astype(np.int32)
    filled = Filled(wide[0].astype(np.int32), wide[1].astype(np.float32), wide[2].astype(np.int8),
                    wide[3].astype(np.int32), left_out)  # fmt: skip
    same = np.full(len(rows), -1, np.int64)
    firsts = first_of_each(filled, same)
    assert [rows[firsts[n]] for n in same.tolist()] == rows
    assert len(firsts) == len(set(rows)) and same[firsts].tolist() == list(range(len(firsts)))


@pytest.fixture(scope="module")
def model() -> Recommender:
    return fitted(checkerboard(sessions=300))


def test_the_cheapest_lists_pass_the_filter_of_each_click(model: Recommender) -> None:
    """What one click must not be shown is left out of its list alone, though all lists are made together."""
    shelf = Shelf(hide_unlisted=False)
    ids = [model.item_id(n) for n in range(model.items)]
    shelf.apply([ItemFacts(ids[0], until_ms=1_000), ItemFacts(ids[1], hidden=True), Gone(ids[2])])
    times, viewed = np.array([999, 1_000, 1_000, 1_000], np.int64), hash_strings([ids[5], ids[5], ids[5], ids[3]])
    bought = [[], [], hash_strings([ids[4], ids[6]]).tolist(), []]
    clicked = Clicked(viewed[:, None].copy(), np.ones(4, np.int64), times, viewed, bought)
    found = Lister(shelf, "hide").lists(model, clicked, 6, Asking(Rung.POPULAR))
    shown = [[item.item_id for item in items] for items in found.items]
    forbidden = [{1, 5}, {0, 1, 5}, {0, 1, 4, 5, 6}, {0, 1, 3}]
    for row, out in zip(shown, forbidden, strict=True):
        assert row == [ids[n] for n in range(model.items) if n not in out][:6]
    assert found.same is not None and len(set(found.same.tolist())) == 4
    assert all(item.reason == "popular" for items in found.items for item in items)
