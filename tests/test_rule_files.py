"""Files of rules that are wrong, odd or at the limits: each mistake has its place, and none is more than a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalogue import build_catalogue
from features.errors import SettingsError
from features.rules import Rules
from tests.test_rules import _asked, _problems, _rule, _rules, _schema


@pytest.mark.parametrize(("text", "place", "words"), [
    ("[lists]\nx = 'card'\nstolen = ['card']\n", "3:10", "lists.stolen = ['card']"),
    ("[lists]\nstolen = { of = 'card' }\n", "2:10", "lists.stolen"),
    ("[lists]\nstolen = 'crad'\n", "2:11", "lists.stolen = 'crad'"),
    ("# \u2028 \x85\n[lists]\nstolen = 'crad'\n", "3:11", "lists.stolen = 'crad'"),
    ('[lists]\n["a]b"]\nx = 1\n', "2:1", "unknown key 'a]b'"),
    ("wrong = 1\n", "1:9", "unknown key 'wrong'"),
    ('[[rule]]\nname = "a"\n"wh\\u0065n" = "tpi > 1"\naction = "block"\nreason = "x"\n', "3:16", "'tpi'"),
    ('[[rule]]\nname = "a"\nwhen.x = "tip > 1"\naction = "block"\nreason = "x"\n', "3:11", "when = {'x'"),
    ('[["r\\u0075le"]]\nname = 1\nwhen = "tip > 1"\naction = "block"\nreason = "x"\n', "2:8", "name = 1"),
])  # fmt: skip
def test_whatever_is_wrong_in_a_file_has_a_place_and_ends_in_a_sentence(text: str, place: str, words: str) -> None:
    (problem,) = _problems(text)
    assert problem.startswith(f"rules.toml:{place}: ") and words in problem


@settings(max_examples=300)
@given(st.text(alphabet="[]{}=.'\"\\u0065#\n\u2028 rulewhnamist1,", max_size=60))
def test_any_text_is_rules_or_problems_with_places(text: str) -> None:
    try:
        problems = [f"rules.toml:{len(_rules(_rule('a', 'tip > 1') + text))}"]
    except SettingsError as refused:
        problems = list(refused.problems)
    assert problems and all(problem.startswith("rules.toml:") for problem in problems)


def test_a_condition_may_be_as_long_as_its_text_and_no_number_is_infinite() -> None:
    sums, choices = "amount" + " + 1" * 990 + " > 0", " or ".join(["tip>1"] * 400)
    rules = _rules(_rule("sum", sums) + _rule("either", choices))
    assert [rule.reads for rule in rules.rules] == [("amount",), ("tip",)]
    assert _asked(rules, [0, 0], [-989.0, -990.0]) == [1, 0]
    (problem,) = _problems(_rule("a", "amount > 1e999"))
    assert "1e999 is too large" in problem


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000, "[[" + "rule." * 10**5 + "a]]"])
def test_what_the_reader_of_toml_cannot_hold_is_a_problem_of_the_rules(text: str) -> None:
    (problem,) = _problems(text)
    assert problem.startswith("rules.toml: not valid TOML: ")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(_rule("a", "tip > 1"), encoding="utf-8-sig")
    assert len(Rules.load(tmp_path / "rules.toml", build_catalogue(_schema()))) == 1
