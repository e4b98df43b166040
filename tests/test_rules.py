"""Rules: the language against a naive reading of it, the places of mistakes, missing values, and what hits decide."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from features.catalogue import build_catalogue
from features.encoding import MISSING_TEXT
from features.errors import SettingsError
from features.expressions import Mistake, Names, Node, parse
from features.rule_machine import NEVER, Columns
from features.rule_program import compiled, text_hash
from features.rules import Rules
from features.schema import TransactionSchema, load_schema, parse_schema
from stream.cli import app
from tests.world import World

_SCHEMA = """
[transactions]
numeric = ["amount", { name = "tip", required = false }]
categorical = ["country", "ip_country"]

[[transactions.entities]]
name = "card"
fields = ["card_id"]

[[transactions.entities]]
name = "network"
fields = ["asn", "region"]
"""
_EXAMPLE = Path(__file__).parents[1] / "examples" / "rules.example.toml"
_NAMES = Names({"a": 0, "b": 1, "score": -1}, {"card": 0, "country": 1}, {"stolen": 0, "risky": 1})
_WORDS = ("x", "y", "z")
_LISTS = {"stolen": {"x": 100}, "risky": {"x": NEVER, "y": NEVER}}

_numbers = st.one_of(st.sampled_from([0.0, 1.0, 2.0, -1.0, 0.5]), st.floats(-1e6, 1e6, width=32))
_constants = _numbers.map(lambda value: f"{abs(value)!r}" if value >= 0 else f"-{abs(value)!r}")
_operands = st.one_of(_constants, st.sampled_from(["a", "b", "score"]))
_arithmetic = st.recursive(
    _operands,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
        inner.map(lambda text: f"abs({text})"),
        inner.map(lambda text: f"-({text})"),
    ),
    max_leaves=4,
)
_texts = st.sampled_from(["card", "country"])
_atoms = st.one_of(
    st.tuples(_arithmetic, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), st.sampled_from(["a", "b", "score"]))
    .map(lambda t: f"{t[0]} {t[1]} {t[2]}"),
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["in", "not in"]), _constants, _constants)
    .map(lambda t: f"{t[0]} {t[1]} [{t[2]}, {t[3]}]"),
    st.tuples(_texts, st.sampled_from(["==", "!="]), st.sampled_from([*(f"'{w}'" for w in _WORDS), "card", "country"]))
    .map(lambda t: f"{t[0]} {t[1]} {t[2]}"),
    st.tuples(_texts, st.sampled_from(["in", "not in"]), st.sampled_from(_WORDS))
    .map(lambda t: f"{t[0]} {t[1]} ['{t[2]}', 'w']"),
    st.sampled_from(["card in stolen", "card not in stolen", "country in risky", "country not in risky", "true"]),
    st.sampled_from(["a", "b", "a / b", "card", "country"]).map(lambda text: f"missing({text})"),
)  # fmt: skip
_conditions = st.recursive(
    _atoms,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})"),
        inner.map(lambda text: f"not ({text})"),
    ),
    max_leaves=8,
)
_number_or_none = st.one_of(st.none(), _numbers)
_text_or_none = st.one_of(st.none(), st.sampled_from(_WORDS))
_row = st.fixed_dictionaries({
    "a": _number_or_none, "b": _number_or_none, "score": st.floats(0, 1), "card": _text_or_none,
    "country": _text_or_none, "time": st.integers(98, 102),
})  # fmt: skip


def _value(node: Node, row: dict[str, object]) -> object:
    """The value of a tree for one transaction, read from the words of docs/rules.md; None is missing."""
    numbers, texts = {0: "a", 1: "b", -1: "score"}, {0: "card", 1: "country"}
    if node.op == "constant":
        return bool(node.value) if node.kind == "truth" else node.value
    if node.op == "column":
        return row[(numbers if node.kind == "number" else texts)[node.value]]  # type: ignore[index]
    values = [_value(part, row) for part in node.parts]
    if node.op == "missing":
        return values[0] is None
    if node.op in ("and", "or", "not"):
        return {"and": all, "or": any}[node.op](values) if node.op != "not" else not values[0]
    if None in values:
        return None if node.kind == "number" else False
    if node.op in ("in", "not in"):
        held: object = node.value
        if isinstance(held, str):
            held = [text for text, until in _LISTS[held].items() if int(str(row["time"])) < until]
        assert isinstance(held, list | tuple)
        return (values[0] in held) == (node.op == "in")
    return _calculated(node.op, *values)


_OPERATORS: dict[str, Callable[..., object]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "min": min, "max": max,
    "abs": abs, "negative": operator.neg,
}  # fmt: skip


def _calculated(op: str, *values: object) -> object:
    if op == "/" and values[1] == 0.0:
        return None
    with np.errstate(all="ignore"):
        found = _OPERATORS[op](*(np.float64(v) if isinstance(v, float) else v for v in values))
    return None if found != found else found


def _columns(rows: list[dict[str, object]]) -> Columns:
    def number(name: str) -> list[float]:
        return [math.nan if row[name] is None else float(row[name]) for row in rows]  # type: ignore[arg-type]

    def text(name: str) -> list[int]:
        return [int(MISSING_TEXT) if row[name] is None else text_hash(str(row[name])) for row in rows]

    return Columns(
        x=np.array([number("a"), number("b")]).T.copy(),
        score=np.array(number("score")),
        anomaly=np.zeros(len(rows)),
        time=np.array([row["time"] for row in rows], np.int64),
        texts=np.array([text("card"), text("country")], np.int64).T.copy(),
    )


@settings(deadline=None)
@given(st.lists(_conditions, min_size=1, max_size=4), st.lists(_row, min_size=1, max_size=70))
def test_rules_over_columns_hit_what_a_naive_reading_of_each_transaction_says(
    texts: list[str], rows: list[dict[str, object]]
) -> None:
    trees = [parse(text, _NAMES) for text in texts]
    program = compiled(trees, ["stolen", "risky"])
    lists = {name: {text_hash(word): until for word, until in held.items()} for name, held in _LISTS.items()}
    hits, best = program.run(_columns(rows), program.sets(lists), np.arange(1, len(trees) + 1))
    expected = [[_value(tree, row) for tree in trees] for row in rows]
    assert hits.tolist() == expected
    assert best.tolist() == [max((r + 1 for r, hit in enumerate(row) if hit), default=0) for row in expected]


@pytest.mark.parametrize(("condition", "at", "words"), [
    ("", 0, "expected a name, a number, a text or '(', not the end"),
    ("a > ", 4, "not the end"),
    ("a > 1 b", 6, "expected 'and', 'or' or the end, not 'b'"),
    ("a = 1", 2, "write '=='"),
    ("a > 1 && b > 1", 6, "write 'and'"),
    ("card_i == 'x'", 0, "no feature or field 'card_i'; did you mean card?"),
    ("1 < a < 2", 6, "write a < b and b < c"),
    ("a > 10m", 4, "'10m' is neither a number nor a name"),
    ("card == 17", 5, "write '17' in quotes"),
    ("card in [17]", 9, "write '17' in quotes"),
    ("card > 'x'", 5, "'>' compares numbers, and this is a text"),
    ("a + card > 1", 4, "'+' takes a number, and this is a text"),
    ("a", 0, "a condition is true or false, and this is a number"),
    ("not a", 4, "'not' takes true or false"),
    ("1 > 2", 2, "always the same"),
    ("a in stolen", 0, "the list stolen holds ids of card"),
    ("country in stolen", 0, "the list stolen holds ids of card"),
    ("card in stole", 8, "no list 'stole' under [lists]; did you mean stolen?"),
    ("stolen == 'x'", 0, "stolen is a list and stands behind 'in'"),
    ("a in []", 5, "an empty list"),
    ("a in [1, b]", 9, "a list holds numbers or texts"),
    ("abs(a, b) > 1", 0, "abs takes 1, not 2"),
    ("exec(a) > 1", 0, "no function 'exec'; there are missing, abs, min, max"),
    ("missing(1)", 8, "never missing"),
    ("(a > 1", 6, "expected ')' for the '(' at character 1, not the end"),
    ("card == 'x", 8, "a text that does not end"),
    ("a > 1 and a.b > 1", 11, "'.' means nothing here"),
    ("a > __import__", 4, "no feature or field '__import__'"),
    ("(" * 60 + "a > 1" + ")" * 60, 50, "more than 50"),
    ("a > 1 or " * 1000 + "true", 4000, "at most 4000"),
])  # fmt: skip
def test_a_mistake_is_told_with_its_place(condition: str, at: int, words: str) -> None:
    with pytest.raises(Mistake) as told:
        parse(condition, _NAMES)
    assert words in str(told.value)
    assert told.value.at == at


@settings(deadline=None)
@given(st.text(alphabet="ab><=!()[],'\"+-*/ 1.notinrmsgcdy", max_size=40))
def test_any_text_is_a_condition_or_one_mistake_within_it(text: str) -> None:
    try:
        parse(text, _NAMES)
    except Mistake as mistake:
        at = mistake.at
    else:
        at = 0
    assert 0 <= at <= len(text)


def _schema() -> TransactionSchema:
    schema = parse_schema(_SCHEMA)["transactions"]
    assert isinstance(schema, TransactionSchema)
    return schema


def _rules(text: str) -> Rules:
    return Rules.parse(text, build_catalogue(_schema()), "rules.toml")


def _rule(name: str, when: str, action: str = "review", more: str = "") -> str:
    return f'[[rule]]\nname = "{name}"\nwhen = "{when}"\naction = "{action}"\nreason = "of {name}"\n{more}\n'


def _problems(text: str) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        _rules(text)
    return list(refused.value.problems)


def test_a_problem_names_file_line_and_column_and_points_at_the_word() -> None:
    (problem,) = _problems("# one\n\n" + _rule("fast", "amount > 1 and card_count_2h > 3"))
    assert problem == (
        "rules.toml:5:24: rule 'fast': no feature or field 'card_count_2h'; "
        "did you mean card_count_1h or card_count_7d or card_count_1d?\n"
        'when = "amount > 1 and card_count_2h > 3"\n'
        "                       ^"
    )


@pytest.mark.parametrize("quoted", [
    "'''\namount > 1 and\n  \"é\" == crad'''",
    '"""\namount > 1 and\n  \\"\\u00e9\\" == crad"""',
    '"""\\\n   amount > 1 and\n  \'"\' == crad"""',
])  # fmt: skip
def test_places_are_right_in_every_form_of_string(quoted: str) -> None:
    text = f'[[rule]]\n"name" = "r" # when = "no"\nwhen = {quoted}\naction = "block"\nreason = "x"\n'
    (problem,) = _problems(text)
    line, column = map(int, problem.split(":")[1:3])
    assert text.splitlines()[line - 1][column - 1 :].startswith("crad")


def test_places_are_found_beside_every_other_value() -> None:
    text = (
        "lists = { x = 'card' } # [[rule]]\n" + _rule("a", "tip > 1", more="priority = 1 # = 2\nshadow = true#")
        + "# [[rule]]\n" + _rule("b", "tpi > 1").replace("[[rule]]", "  [[ rule ]] # c")
    )  # fmt: skip
    (problem,) = _problems(text)
    line, column = map(int, problem.split(":")[1:3])
    assert text.splitlines()[line - 1][column - 1 :].startswith("tpi")


def test_all_problems_of_a_file_are_told_together() -> None:
    text = _rule("A", "amount >") + _rule("b", "asn == '1'", "blck") + _rule("b", "tip > 0", "block", "wen = 1")
    text += "[other]\n[[rule]]\nname = 'c'\npriority = 1.5\nshadow = 1\n[lists]\nx = 'crd'\nY = 'card'\n"
    told = "\n".join(_problems(text))
    for words in (
        "unknown key 'other'", "lists.x = 'crd'", "lists.Y", "name = 'A'", "not the end", "part of network",
        "action = 'blck'", "unknown key 'wen'; did you mean when?", "rule 'b' is there already, in line 7", "no when",
        "no action", "no reason", "priority = 1.5", "shadow = 1",
    ):  # fmt: skip
        assert words in told, words


def test_what_is_no_toml_is_told_with_its_line() -> None:
    (problem,) = _problems("[[rule]]\nname = velocity\n")
    assert problem.startswith("rules.toml:2:8: not valid TOML")


def test_rules_that_are_no_tables_of_their_own_are_refused() -> None:
    (problem,) = _problems('rule = [{ name = "a", when = "amount > 1", action = "allow", reason = "x" }]\n')
    assert "begins with [[rule]]" in problem


def _asked(rules: Rules, action: list[int], amounts: list[float]) -> list[int]:
    n = len(amounts)
    x = np.full((n, len(build_catalogue(_schema()).features)), np.nan)
    x[:, 0] = amounts
    columns = Columns(x, np.zeros(n), np.zeros(n), np.zeros(n, np.int64), np.zeros((n, 4), np.int64))
    found: list[int] = rules.evaluate(columns, rules.sets()).applied(np.array(action, np.int8)).tolist()
    return found


def test_the_strongest_of_the_highest_priority_decides_and_only_allow_lowers() -> None:
    allow, review, block = 0, 1, 2
    rules = _rules(
        _rule("good", "amount >= 1", "allow")
        + _rule("look", "amount >= 2 and amount != 5", "review")
        + _rule("stop", "amount >= 3 and amount != 5", "block")
        + _rule("vip", "amount == 4", "allow", "priority = 1")
        + _rule("test", "amount >= 0", "block", "priority = 9\nshadow = true")
    )
    amounts = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert _asked(rules, [allow] * 6, amounts) == [allow, allow, review, block, allow, allow]
    assert _asked(rules, [block] * 6, amounts) == [block, allow, block, block, allow, allow]
    assert _asked(rules, [review] * 6, amounts) == [review, allow, review, block, allow, allow]


def test_a_rule_in_shadow_hits_and_is_named_apart() -> None:
    rules = _rules(_rule("real", "amount > 1", "review") + _rule("trial", "amount > 2", "block", "shadow = true"))
    assert rules.named(np.array([True, True])) == (["real"], ["trial"])
    assert [rule.reason for rule in rules.reasons(np.array([True, True]), 1)] == ["of real"]
    assert rules.reasons(np.array([True, True]), 2) == []


def test_an_entity_goes_by_its_name_and_by_its_only_field() -> None:
    rules = _rules("[lists]\nbad = 'network'\n" + _rule("a", "card_id == 'x' or card == 'y' or network in bad"))
    assert rules.rules[0].reads == ("card", "network", "bad")
    with pytest.raises(SettingsError, match="holds ids of network"):
        _rules("[lists]\nbad = 'network'\n" + _rule("a", "card in bad"))


def test_the_version_is_that_of_the_text() -> None:
    text = _rule("a", "amount > 1")
    assert _rules(text).version == _rules(text).version != _rules(text + "\n").version


def test_no_rules_hit_nothing() -> None:
    assert _asked(_rules(""), [0, 1, 2], [1.0, 1.0, 1.0]) == [0, 1, 2]


def test_the_example_reads_what_it_says_and_can_be_checked_from_the_command_line() -> None:
    rules = Rules.load(_EXAMPLE, build_catalogue(load_schema().transactions))
    assert rules.lists == {"stolen_cards": "card", "trusted_merchants": "merchant"}
    assert [rule.name for rule in rules.rules if rule.shadow] == ["night-spree"]
    done = CliRunner().invoke(app, ["rules", "check", str(_EXAMPLE)])
    assert done.exit_code == 0
    assert "first-large" in done.output and "card_amount_mean_30d" in done.output and rules.version in done.output


def test_the_command_line_tells_a_mistake_with_its_caret(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(_rule("fast", "amuont > 1"))
    done = CliRunner().invoke(app, ["rules", "check", str(file)])
    assert done.exit_code == 2
    first, second, third = done.stderr.splitlines()
    assert first.startswith(f"headrace: {file}:3:9: rule 'fast': no feature or field 'amuont'; did you mean amount")
    assert third.index("^") == second.index("amuont")


def test_rules_are_tried_on_a_history(world: World, tmp_path: Path) -> None:
    table = world.later_payments.slice(0, 3000)
    history = tmp_path / "history.parquet"
    pq.write_table(table, history)
    amounts, labels = table["amount"].to_numpy(), table["is_fraud"].to_pylist()
    card = str(table["card_id"][0])
    (tmp_path / "rules.toml").write_text(
        "[lists]\nsome = 'card'\n" + _rule("high", "amount > 100") + _rule("sure", "score >= 0", "allow")
        + _rule("listed", "card in some", more="shadow = true")
    )  # fmt: skip
    (tmp_path / "cards").write_text(f"{card}\nnobody\n")
    done = CliRunner().invoke(app, [
        "rules", "test", str(tmp_path / "rules.toml"), "--transactions", str(history),
        "--list", f"some={tmp_path / 'cards'}", "--artifacts", str(world.artifacts),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    high = [label for amount, label in zip(amounts, labels, strict=True) if amount > 100]
    judged = [label for label in high if label is not None]
    precision = sum(judged) / len(judged)
    assert rows["high"][2:6] == [f"{len(high):,}", f"{len(judged):,}", f"{sum(judged):,}", f"{precision:.3f}"]
    assert rows["listed"][3] == f"{table['card_id'].to_pylist().count(card):,}" and rows["listed"][2] == "(shadow)"
    assert rows["sure"][2] == f"{len(amounts):,}"
    refused = CliRunner().invoke(app, ["rules", "test", str(tmp_path / "rules.toml"), "--transactions", "none",
                                       "--list", "sme=x"])  # fmt: skip
    assert refused.exit_code == 2 and "did you mean some?" in refused.stderr
