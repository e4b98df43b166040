"""Business levers: what a file may say, and when a worker takes it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import SettingsError
from features.item_records import ItemFacts
from features.levers import DAY_MS, NO_CAP, Levers, parse_levers
from features.shelf import Shelf
from stream.lever_file import LeverFile
from stream.metrics import Metrics
from tests.sessions import checkerboard, fitted

WORDS = ["[[", "]]", "[", "]", "{", "}", "cap", "exclude", "items", "=", "1e999", "-1", "'a'", "\n", ".", "nan",
         "9" * 5000, "true", "1979-05-27", "factor", "category", "\ufeff"]  # fmt: skip
EXAMPLE = Path(__file__).parents[1] / "examples" / "levers.example.toml"


def test_the_example_says_everything_that_levers_can_say() -> None:
    assert parse_levers(EXAMPLE.read_bytes(), "x") == Levers(
        items=frozenset({"item-13"}), categories=frozenset({"recalled"}), factors={"toys": 1.5},
        category_caps={"gift-cards": 2}, per_category=12, per_seller=6,
        fresh_ms=7 * DAY_MS, fresh_factor=1.2, new_max=1,
    )  # fmt: skip


def test_an_empty_file_leaves_lists_as_they_are() -> None:
    levers = parse_levers(b"", "x")
    assert levers == Levers() and levers.idle


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[exclude", "not TOML"),
        ("[[boost]]\ncategory = 'a'\nfactor = 0\n", "> 0"),
        ("[[boost]]\ncategory = 'a'\nfactor = 'x'\n", "Expected `float`"),
        ("[[cap]]\nat_most = 1\n", "either category or seller"),
        ("[[cap]]\nat_most = 1\ncategory = 'a'\nseller = 'b'\n", "either category or seller"),
        ("[[cap]]\nat_most = 1\nseller = 'b'\n[[cap]]\nat_most = 2\nseller = 'b'\n", "'b' stands twice"),
        ("[[boost]]\ncategory='a'\nfactor=2\n[[boost]]\ncategory='a'\nfactor=3\n", "'a' stands twice"),
        ("[limits]\nper_brand = 1\n", "per_brand"),
        ("[boosts]\n", "boosts"),
        ("[freshness]\ndays = 7\n", "factor"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_name_of_the_lever(text: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_levers(text.encode(), "levers.toml")
    assert expected in str(caught.value) and "levers.toml" in str(caught.value)


def test_all_problems_are_told_together() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_levers(b"[limits]\nper_seller = 0\n[freshness]\ndays = 1\nfactor = -1\n", "x")
    assert "per_seller" in str(caught.value) and "factor" in str(caught.value)


def watched(file: Path, steps: list[tuple[bytes, int, int]]) -> None:
    """Watch a file that comes to hold what each step says; wait for its cap by seller and the refusals until then."""
    shelf, metrics = Shelf(), Metrics()
    file.write_bytes(steps[0][0])

    async def run() -> None:
        levers = LeverFile(file, shelf, metrics)
        levers.load()
        task = asyncio.create_task(levers.watch(0.005))
        for data, per_seller, refused in steps:
            await asyncio.to_thread(file.write_bytes, data)
            async with asyncio.timeout(10):
                while (shelf.levers().per_seller, _refused(metrics)) != (per_seller, refused):
                    await asyncio.sleep(0.005)
        task.cancel()

    asyncio.run(run())


def test_a_change_is_taken_and_a_wrong_one_leaves_the_levers_as_they_were(tmp_path: Path) -> None:
    watched(tmp_path / "levers.toml", [
        (b"[limits]\nper_seller = 3\n", 3, 0), (b"[limits]\nper_seller = 4\n", 4, 0),
        (b"[limits]\nper_seller = 0\n", 4, 1), (b"[limits]\nper_seller = 5\n", 5, 1),
    ])  # fmt: skip


@given(st.one_of(
    st.binary(max_size=60), st.text(max_size=60).map(str.encode),
    st.lists(st.sampled_from(WORDS), max_size=30).map(lambda words: " ".join(words).encode()),
))  # fmt: skip
def test_whatever_a_file_holds_is_levers_or_a_sentence(data: bytes) -> None:
    try:
        found: Levers | str = parse_levers(data, "levers.toml")
    except SettingsError as error:
        found = str(error)
    assert isinstance(found, Levers) or found.startswith("levers.toml: ")


@pytest.mark.parametrize(
    "bad",
    ["a = " + "[" * 100_000, "[limits]\nper_seller = " + "9" * 5000, "a = \0", "a" + ".a" * 10**5 + " = 1", "\ud800"],
)
def test_no_file_ends_the_watch(tmp_path: Path, bad: str) -> None:
    watched(tmp_path / "levers.toml", [
        (b"", NO_CAP, 0), (bad.encode("utf-8", "surrogatepass"), NO_CAP, 1),
        ("\ufeff[limits]\nper_seller = 4\n".encode(), 4, 1),
    ])  # fmt: skip


def test_two_files_hold_beside_each_other_on_one_shelf(tmp_path: Path) -> None:
    shelf, metrics = Shelf(), Metrics()
    for which, setting in enumerate(("worker.levers", "ab.levers")):
        file = tmp_path / f"{which}.toml"
        file.write_text(f"[limits]\nper_seller = {which + 3}\n[exclude]\nitems = ['item-{which}']\n", encoding="utf-8")
        LeverFile(file, shelf, metrics, setting, which).load()
    shelf.apply([ItemFacts(f"item-{n}", seller=f"s{n}", category="c") for n in range(200)])
    assert [shelf.levers(which).per_seller for which in (0, 1)] == [3, 4]
    model = fitted(checkerboard())
    for which in (0, 1):
        view = shelf.view(model, which)
        assert (shelf.ids[int(view.barred.argmax())], view.barred.sum()) == (f"item-{which}", 1)
        assert len(view.barred) == len(view.state) and (view.seller_caps == which + 3).all()
        assert len(view.seller_caps) == 200
    with pytest.raises(SettingsError, match=r"ab\.levers = .*cannot be read"):
        LeverFile(tmp_path / "none.toml", shelf, metrics, "ab.levers", 1).load()


def _refused(metrics: Metrics) -> int:
    return int(metrics.registry.get_sample_value("headrace_lever_refusals_total") or 0)


def test_a_file_that_is_not_there_is_refused_by_the_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"worker\.levers = .*cannot be read"):
        LeverFile(tmp_path / "none.toml", Shelf(), Metrics()).load()
