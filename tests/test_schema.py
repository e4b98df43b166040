"""A schema is read whole or refused whole: every problem at once, each with its place and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import SettingsError
from features.schema import (
    TIME_UNITS,
    ClickSchema,
    Schema,
    TransactionSchema,
    format_duration,
    load_schema,
    parse_duration_ms,
    parse_schema,
)

MINIMAL = """
[transactions]
[[transactions.entities]]
name = "card"
fields = ["card_id"]
"""
EXAMPLES = Path(__file__).parents[1] / "examples"


def problems(text: str) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        parse_schema(text, "my.toml")
    return list(refused.value.problems)


def transactions(text: str) -> TransactionSchema:
    found = parse_schema(text)["transactions"]
    assert isinstance(found, TransactionSchema)
    return found


def test_one_entity_is_enough() -> None:
    schema = transactions(MINIMAL)
    assert schema.key.name == "card" and schema.numeric == () and schema.id_fields == ("card_id",)


def test_every_problem_is_reported_at_once_with_file_place_and_way_out() -> None:
    found = problems("""
        [transactions]
        id = "Event Id"
        numeric = [7, { name = "amount", minimum = 5, maximum = 5, colour = "red" }, { name = "tip", maximum = nan }]
        memory = 0
        time_unit = "weeks"
        windows = ["1h"]
        [transactions.columns]
        nothing = "x"
        [[transactions.entities]]
        name = "card"
        fields = []
        windows = ["1h", "1 hour", 10, "0s"]
        aggregates = ["count", "median"]
        [[transactions.entities]]
        fields = ["a", "a"]
        label_windows = "30d"
        [clicks]
        speed = 1
        [other]
    """)
    text = "\n".join(found)
    assert all(problem.startswith("my.toml: ") for problem in found)
    for place, way_out in (
        ("transactions.id", "'Event Id' is not a name (lower-case letters, digits and _"),
        ("transactions.numeric[0]", "7 is not a name or a table such as {name = 'amount', maximum = 1e6}"),
        ("transactions.numeric[1].colour", "unknown setting; known are name, minimum, maximum, required"),
        ("transactions.numeric[1]", "minimum 5.0 is not below maximum 5.0"),
        ("transactions.numeric[2].maximum", "nan is not a number"),
        ("transactions.memory", "0 is not a whole number of events from 1 to 1024"),
        ("transactions.time_unit", "'weeks' is not one of auto, s, ms, us, ns"),
        ("transactions.windows", "unknown setting; known are id, time"),
        ("transactions.columns.nothing", "unknown setting; known are"),
        ("transactions.entities[0].fields", "names no field; an entity is a field or a combination of fields"),
        ("transactions.entities[0].windows", "'1 hour' is not a duration; write a whole number and s, m, h or d"),
        ("transactions.entities[0].windows", "'10' is not a duration"),
        ("transactions.entities[0].windows", "'0s' is not a duration"),
        ("transactions.entities[0].aggregates", "is not a list out of count, sum, mean"),
        ("transactions.entities[1].name", "None is not a name"),
        ("transactions.entities[1].fields", "a name stands twice"),
        ("transactions.entities[1].label_windows", "'30d' is not a list of durations such as ['1h', '7d']"),
        ("clicks.speed", "unknown setting"),
        ("schema.other", "unknown setting; known are transactions, clicks"),
    ):
        assert any(p.startswith(f"my.toml: {place}: ") and way_out in p for p in found), f"{place}: {way_out}\n{text}"
    assert len(found) == 19, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[transactions]\nid = \n", "not valid TOML.*line 2"),
        ("", r"declares neither \[transactions\] nor \[clicks\]"),
        ("transactions = 3", "transactions: is not a table"),
        ("[transactions]", "names no entity; the first"),
        ("[transactions]\nentities = [3]", r"entities\[0\]: is not a table"),
        (MINIMAL.replace("[transactions]", "[transactions]\nnumeric = 'amount'"), "numeric: 'amount' is not a list"),
        (MINIMAL.replace("[transactions]", "[transactions]\ncategorical = ['card_id']"), "'card_id' has two roles"),
        (MINIMAL.replace("[transactions]", "[transactions]\nid = 'event_time'"), "'event_time' has two roles"),
        (MINIMAL * 1 + MINIMAL.replace("[transactions]", ""), "two entities have the same name"),
        (MINIMAL.replace('"card"', '"event"'), "'event' names the features of the transaction itself"),
        (MINIMAL.replace("[transactions]", "[transactions]\nnumeric = ['hour']"), "event_hour, which is taken; rename"),
        (MINIMAL + "windows = ['99999999999999d']", "is too long; at most 3650d"),
        (MINIMAL + "windows = ['3651d']", "is too long; at most 3650d"),
        (MINIMAL + f"windows = {[f'{i}h' for i in range(1, 14)]}", "13 windows; at most 12"),
        (MINIMAL.replace("[transactions]", "[transactions]\nnumeric = [{name = 'a', maximum = inf}]"), "inf is not a"),
        (MINIMAL + "".join(f"[[transactions.entities]]\nname='e{i}'\nfields=['f{i}']\n" for i in range(8)), "9 entiti"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_used_says_why(text: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        parse_schema(text)


def test_names_that_would_give_two_features_one_name_are_refused() -> None:
    text = MINIMAL.replace("[transactions]", "[transactions]\nnumeric = ['amount', 'x_amount']")
    (problem,) = problems(text + "[[transactions.entities]]\nname = 'card_x'\nfields = ['x']\n")
    assert "'card' and 'x_amount' name the same features (card_x_amount_...) as 'card_x' and 'amount'" in problem
    transactions(MINIMAL + "[[transactions.entities]]\nname = 'card_x'\nfields = ['x']\n")


@given(st.integers(1, 3650), st.sampled_from("smhd"))
def test_a_duration_reads_back_as_itself(number: int, unit: str) -> None:
    milliseconds = parse_duration_ms(f"{number}{unit}")
    assert parse_duration_ms(format_duration(milliseconds)) == milliseconds


BASE = """
[transactions]
id = "event_id"
numeric = [{ name = "amount", maximum = 100 }]
categorical = ["channel"]
memory = 32
[[transactions.entities]]
name = "card"
fields = ["card_id"]
windows = ["1h", "1d"]
aggregates = ["count", "mean"]
label_windows = ["7d"]
[[transactions.entities]]
name = "shop"
fields = ["shop_id", "city"]
"""


def hash_of(text: str) -> str:
    return Schema(transactions(text), ClickSchema()).hash


@pytest.mark.parametrize(
    ("old", "new"),
    [('["1h", "1d"]', '["1h", "2d"]'), ('"amount"', '"total"'), ('["channel"]', "[]"), ("memory = 32", "memory = 16"),
     ('"card"', '"account"'), ('["card_id"]', '["card_no"]'), ('"mean"]', '"mean", "max"]'), ('["7d"]', '["8d"]'),
     ('["shop_id", "city"]', '["city", "shop_id"]'), ('name = "shop"', 'name = "store"')],
)  # fmt: skip
def test_the_hash_changes_with_what_decides_a_vector(old: str, new: str) -> None:
    assert old in BASE
    assert hash_of(BASE.replace(old, new)) != hash_of(BASE)


@pytest.mark.parametrize(
    ("old", "new"),
    [('id = "event_id"', 'id = "tx"'), ("memory = 32", 'memory = 32\ntime_unit = "s"'),
     ("memory = 32", 'memory = 32\nlabel = "chargeback"\nlabel_time = "known_at"\ntime = "at"'),
     ("memory = 32", 'memory = 32\ncolumns = { amount = "TX_AMOUNT" }'), ('["1h", "1d"]', '["1d", "60m"]'),
     ('["count", "mean"]', '["mean", "count", "count"]')],
)  # fmt: skip
def test_the_hash_stays_with_what_does_not(old: str, new: str) -> None:
    assert old in BASE
    assert hash_of(BASE.replace(old, new)) == hash_of(BASE)


def test_later_files_win_and_the_problems_of_all_files_come_together(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(MINIMAL, encoding="utf-8")
    bad.write_text("[clicks]\nspeed = 1\n", encoding="utf-8")
    assert load_schema([good]).transactions.numeric == ()
    assert load_schema([good]).clicks == load_schema().clicks
    with pytest.raises(SettingsError) as refused:
        load_schema([bad, tmp_path / "absent.toml", tmp_path])
    assert [p.partition(": ")[0] for p in refused.value.problems] == [
        str(bad), str(tmp_path / "absent.toml"), str(tmp_path)]  # fmt: skip


SCHEMAS = sorted(set(EXAMPLES.glob("*.toml")) - set(EXAMPLES.glob("*.example.toml")))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_the_shipped_examples_are_valid(path: Path) -> None:
    schema = load_schema([path])
    assert schema.transactions.time_unit in TIME_UNITS
