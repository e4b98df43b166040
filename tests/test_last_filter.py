"""Nothing forbidden is ever in a list, and a list is never empty while something may be shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import listing
from features.checks import FOREVER_MS
from features.hashing import hash_strings
from features.item_records import Faulty, Gone, ItemFacts
from features.levers import Levers
from features.listing import Clicked, Lister, Lists
from features.recommender import Recommender
from features.shelf import Shelf
from tests.sessions import checkerboard, fitted

MODEL = fitted(checkerboard(groups=3, size=4, sessions=20))
EMPTY = Recommender.empty()
NOW = 1_700_000_000_000
KNOWN = [MODEL.item_id(n) for n in range(MODEL.items)]
FRESH = [f"new-{n}" for n in range(6)]


def listed(lister: Lister, sessions: Sequence[Sequence[str]], times: Sequence[int], k: int = 5,
           bought: Sequence[Sequence[str]] = (), model: Recommender = MODEL) -> Lists:  # fmt: skip
    """The lists after the last item of each session."""
    hashes = np.zeros((len(sessions), 20), np.uint64)
    for row, session in enumerate(sessions):
        hashes[row, : len(session)] = hash_strings(session)
    counts = np.array([len(session) for session in sessions], np.int64)
    viewed = np.array([hash_strings([session[-1]])[0] for session in sessions], np.uint64)
    gone = [[int(value) for value in hash_strings(list(row))] if row else [] for row in bought]
    return lister.lists(model, Clicked(hashes, counts, np.array(times, np.int64), viewed, gone), k)


def ids(lists: Lists) -> list[list[str]]:
    """Their item ids."""
    return [[item.item_id for item in row] for row in lists.items]


def put(shelf: Shelf, *records: ItemFacts | Gone | Faulty) -> None:
    """Apply records and make the orders."""
    with shelf.lock:
        shelf.apply(records)
    shelf.refresh()


def pull(shelf: Shelf, **levers: Any) -> None:
    """Use levers."""
    with shelf.lock:
        shelf.pull(Levers(**levers))


def test_without_items_and_levers_the_lists_are_those_of_the_model_alone() -> None:
    sessions = [["g0-1"], ["g1-0", "g1-2"], ["unheard"], ["g2-3", "unheard", "g2-1"]]
    hashes = np.zeros((4, 20), np.uint64)
    for row, session in enumerate(sessions):
        hashes[row, : len(session)] = hash_strings(session)
    items, scores = MODEL.recommend_many(hashes, np.array([1, 2, 1, 3]), 10)
    lists = listed(Lister(Shelf()), sessions, [NOW] * 4, 10)
    assert ids(lists) == [[MODEL.item_id(n) for n in row] for row in items]
    assert [[item.score for item in row] for row in lists.items] == [
        [round(s, 6) for s in row] for row in scores.tolist()
    ]


item_facts = st.builds(
    ItemFacts,
    item_id=st.sampled_from(KNOWN + FRESH),
    category=st.sampled_from([None, "a", "b", "c"]),
    seller=st.sampled_from([None, "x", "y"]),
    from_ms=st.sampled_from([-FOREVER_MS, NOW - 10, NOW, NOW + 10]),
    until_ms=st.sampled_from([FOREVER_MS, NOW - 5, NOW, NOW + 1]),
    hidden=st.booleans(),
    sold_out=st.booleans(),
)
records = st.one_of(
    item_facts, item_facts, item_facts, st.builds(Gone, st.sampled_from(KNOWN + FRESH)),
    st.builds(Faulty, st.sampled_from([None, *KNOWN, *FRESH]), st.just("wrong_type"), st.just("bad")),
)  # fmt: skip
levers = st.builds(
    Levers,
    items=st.frozensets(st.sampled_from(KNOWN + FRESH), max_size=2),
    categories=st.frozensets(st.sampled_from(["a", "b"]), max_size=1),
    sellers=st.frozensets(st.sampled_from(["x"]), max_size=1),
    factors=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from([0.1, 5.0]), max_size=2),
    category_caps=st.dictionaries(st.sampled_from(["a", "c"]), st.integers(1, 2), max_size=1),
    per_seller=st.sampled_from([1, 3, 2**31 - 1]),
    fresh_ms=st.sampled_from([0, 8]),
    fresh_factor=st.just(3.0),
    new_max=st.integers(0, 3),
)


def allowed(item: str, time: int, facts: dict[str, ItemFacts | Gone | Faulty], unlisted: bool, rules: Levers) -> bool:
    """What the compiled filter should say, in plain words."""
    if item in rules.items:
        return False
    known = facts.get(item)
    if isinstance(known, Faulty):
        return False
    if not isinstance(known, ItemFacts):
        return item in KNOWN and unlisted
    return (
        not known.hidden
        and not known.sold_out
        and known.from_ms <= time < known.until_ms
        and known.category not in rules.categories
        and known.seller not in rules.sellers
    )


@settings(deadline=None, max_examples=300)
@given(
    steps=st.lists(st.tuples(st.lists(records, max_size=12), st.none() | levers), min_size=1, max_size=4),
    hide=st.booleans(),
    viewed=st.sampled_from(["hide", "show", "auto"]),
    sessions=st.lists(
        st.lists(st.sampled_from([*KNOWN, *FRESH, "unheard"]), min_size=1, max_size=4), min_size=1, max_size=3
    ),
    bought=st.lists(st.sampled_from(KNOWN + FRESH), max_size=4),
    moment=st.integers(-12, 12),
    k=st.integers(1, 20),
    model=st.sampled_from([MODEL, EMPTY]),
    which=st.sampled_from([0, 1]),
    pool=st.sampled_from([1, 3, 4096]),
)
def test_nothing_forbidden_is_ever_shown_and_no_list_is_empty_while_something_is_allowed(
    steps: list[tuple[list[Any], Levers | None]], hide: bool, viewed: str, sessions: list[list[str]],
    bought: list[str], moment: int, k: int, model: Recommender, which: int,
    pool: int,
) -> None:  # fmt: skip
    shelf = Shelf(hide_unlisted=hide)
    lister = Lister(shelf, viewed, which)
    with shelf.lock:  # levers of another number are none of this list's
        shelf.pull(Levers(items=frozenset(KNOWN), categories=frozenset("abc"), per_category=1), 1 - which)
    facts: dict[str, Any] = {}
    rules, used = Levers(), False
    for number, (update, pulled) in enumerate(steps):
        with shelf.lock:
            shelf.apply(update)
            if pulled is not None:
                shelf.pull(pulled, which)
        if number % 2:
            shelf.refresh()
        rules = pulled or rules
        for record in update:
            used = True
            if record.item_id is not None:
                facts[record.item_id] = record
        times = [NOW + moment + place for place in range(len(sessions))]
        with patch.object(listing, "_POOL", pool):
            lists = listed(lister, sessions, times, k, [bought] * len(sessions), model)
        hides = viewed == "hide" or (viewed == "auto" and bool(model.settings[6]))
        unlisted = model is MODEL and not (used and hide)
        for session, time, row in zip(sessions, times, ids(lists), strict=True):
            may = {item for item in KNOWN + FRESH if allowed(item, time, facts, unlisted, rules)}
            may -= set(bought)
            rest = may - {session[-1]} if hides else may
            may = rest if rest or viewed == "hide" else may  # the only item is rather repeated than nothing said
            assert set(row) <= may
            assert len(set(row)) == len(row) <= k
            assert bool(row) == bool(may)
            kinds = Counter(_of(facts.get(item), "category") for item in row)
            sellers = Counter(_of(facts.get(item), "seller") for item in row)
            assert all(kinds[category] <= most for category, most in rules.category_caps.items())
            assert all(sellers[seller] <= rules.per_seller for seller in ("x", "y"))
            for item in may - set(row) if len(row) < k and not shelf.stale else ():
                # Only a cap keeps something out of a list that is not full.
                category, seller = (_of(facts.get(item), name) for name in ("category", "seller"))
                full = kinds[category] == rules.category_caps.get(category or "", -1)
                assert full or (seller is not None and sellers[seller] == rules.per_seller)
        for answer in lists.items:
            scores = [item.score for item in answer]
            assert scores == sorted(scores, reverse=True) and all(np.isfinite(scores))


def _of(record: Any, name: str) -> str | None:
    return getattr(record, name) if isinstance(record, ItemFacts) else None


def test_availability_is_judged_at_the_time_of_the_click() -> None:
    shelf = Shelf()
    put(shelf, ItemFacts("g0-1", from_ms=NOW, until_ms=NOW + 100), ItemFacts("g0-2"))
    lists = listed(Lister(shelf), [["g0-0"]] * 4, [NOW - 1, NOW, NOW + 99, NOW + 100])
    assert [("g0-1" in row, "g0-2" in row) for row in ids(lists)] == [
        (False, True), (True, True), (True, True), (False, True),
    ]  # fmt: skip


def test_a_new_item_is_offered_where_its_category_is_viewed_until_the_model_knows_it() -> None:
    shelf = Shelf()
    put(shelf, *(ItemFacts(item, category=item[:2]) for item in KNOWN), ItemFacts("new-0", category="g1"))
    found = listed(Lister(shelf), [["g1-0"], ["g0-0"]], [NOW] * 2, 4).items
    (new,) = [item for item in found[0] if item.item_id == "new-0"]
    assert (new.reason, new.because, new.text) == ("new_in", "g1", "new in g1")
    assert all(item.item_id != "new-0" for item in found[1])


def test_a_session_that_begins_at_a_new_item_is_answered_from_its_category() -> None:
    shelf = Shelf()
    put(shelf, *(ItemFacts(item, category=item[:2]) for item in KNOWN), ItemFacts("new-0", category="g2"))
    (row,) = listed(Lister(shelf), [["new-0"]], [NOW], 4).items
    assert all(item.item_id.startswith("g2") for item in row)
    assert {item.text for item in row} == {"popular in g2"}


def test_where_the_model_knows_nothing_that_may_be_shown_the_newest_items_of_the_catalogue_are() -> None:
    shelf = Shelf()
    put(shelf, *(ItemFacts(f"x-{n}", from_ms=NOW - n, title=f"Thing {n}") for n in range(30)))
    (row,) = listed(Lister(shelf), [["g0-0"]], [NOW], 3).items
    assert [(item.item_id, item.title, item.text) for item in row] == [
        (f"x-{n}", f"Thing {n}", "in the catalogue") for n in range(3)
    ]


def test_an_item_that_came_a_moment_ago_is_shown_where_nothing_else_may_be() -> None:
    shelf = Shelf()
    lister = Lister(shelf)
    put(shelf, *(ItemFacts(item, hidden=True) for item in KNOWN))
    assert ids(listed(lister, [["g0-0"]], [NOW])) == [[]]
    with shelf.lock:
        shelf.apply([ItemFacts("x")])
    assert ids(listed(lister, [["g0-0"]], [NOW])) == [["x"]]


def test_a_reason_names_the_item_of_the_session_that_speaks_most_for_the_recommended_one() -> None:
    shelf = Shelf(hide_unlisted=False)
    put(shelf, ItemFacts("g1-0", title="Kite"))
    (row,) = listed(Lister(shelf), [["g1-0", "g0-3"]], [NOW], 8).items
    because = {item.item_id: item.because for item in row if item.reason == "viewed_after"}
    assert {because[item] for item in because if item.startswith("g1")} == {"g1-0"}
    assert {because[item] for item in because if item.startswith("g0")} == {"g0-3"}
    assert {item.text for item in row if item.because == "g1-0" and item.reason == "viewed_after"} == {
        "often viewed after Kite"
    }


def test_a_boost_moves_its_category_up_and_says_so() -> None:
    shelf = Shelf(hide_unlisted=False)
    put(shelf, *(ItemFacts(item, category=item[:2]) for item in KNOWN))
    plain = ids(listed(Lister(shelf), [["g0-0", "g1-0"]], [NOW], 6))[0]
    boosted = "g0" if plain[0].startswith("g1") else "g1"
    pull(shelf, factors={boosted: 100.0})
    (row,) = listed(Lister(shelf), [["g0-0", "g1-0"]], [NOW], 6).items
    assert (row[0].reason, row[0].text) == ("boosted", f"boosted: {boosted}")
    assert row[0].item_id.startswith(boosted)


def test_a_cap_bounds_its_category_and_tells_what_it_left_out() -> None:
    shelf = Shelf(hide_unlisted=False)
    put(shelf, *(ItemFacts(item, category=item[:2]) for item in KNOWN))
    pull(shelf, category_caps={"g0": 1})
    lists = listed(Lister(shelf), [["g0-0"]], [NOW], 6)
    assert sum(item.item_id.startswith("g0") for item in lists.items[0]) == 1
    left = lists.left_out[0]
    assert isinstance(left, list) and left and all(one.item_id.startswith("g0") for one in left)


def test_what_became_available_of_late_gains_by_the_freshness_lever() -> None:
    shelf = Shelf(hide_unlisted=False)
    put(shelf, ItemFacts("g0-1", from_ms=NOW - 50), ItemFacts("g0-2", from_ms=NOW - 5000))
    pull(shelf, fresh_ms=100, fresh_factor=50.0)
    (row,) = listed(Lister(shelf), [["g0-0"]], [NOW], 6).items
    assert (row[0].item_id, row[0].reason, row[0].text) == ("g0-1", "fresh", "newly available")
    assert all(item.reason != "fresh" for item in row[1:])


@pytest.mark.parametrize("per_seller", [2**31 - 1, 1])
def test_a_list_that_caps_leave_short_is_filled_from_the_rest_however_far_it_lies(per_seller: int) -> None:
    shelf = Shelf()
    put(shelf, *(ItemFacts(f"a-{n}", category="a", seller=f"s{n % 7}", from_ms=n + 100) for n in range(6000)),
        *(ItemFacts(f"b-{n}", category="b", seller=f"t{n // 2}", from_ms=n) for n in range(30)))  # fmt: skip
    pull(shelf, category_caps={"a": 2}, per_seller=per_seller)
    lists = listed(Lister(shelf), [["unheard"], ["a-1"]], [NOW] * 2, 10, model=EMPTY)
    for row in ids(lists):
        assert row[:2] == ["a-5999", "a-5998"] and [item[0] for item in row[2:]] == ["b"] * 8
    pull(shelf, per_category=2)
    assert [len(row) for row in ids(listed(Lister(shelf), [["unheard"]], [NOW], 10, model=EMPTY))] == [4]


def test_what_was_bought_and_what_two_caps_keep_out_does_not_hide_what_fits() -> None:
    shelf = Shelf()
    put(shelf, *(ItemFacts(f"a-{n}", category="a", seller=f"s{n // 10}", from_ms=n) for n in range(40)))
    pull(shelf, category_caps={"a": 3})
    bought = [f"a-{n}" for n in range(39, 29, -1)]
    assert ids(listed(Lister(shelf), [["unheard"]], [NOW], 10, [bought], EMPTY)) == [["a-29", "a-28", "a-27"]]
    pull(shelf, category_caps={"a": 3}, per_seller=1)
    assert ids(listed(Lister(shelf), [["unheard"]], [NOW], 10, model=EMPTY)) == [["a-39", "a-29", "a-19"]]


@pytest.mark.parametrize(("mode", "seen"), [("hide", False), ("show", True)])
def test_the_setting_says_whether_the_viewed_item_may_stand_in_its_own_list(mode: str, seen: bool) -> None:
    lists = listed(Lister(Shelf(), mode), [["g0-0"]], [NOW], MODEL.items)
    assert ("g0-0" in ids(lists)[0]) is seen
