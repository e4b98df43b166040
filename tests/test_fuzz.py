"""Whatever bytes come: nothing raises, nothing hangs, and nothing outside the contract is accepted. See :mod:`fuzz`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import SettingsError
from features.schema import parse_schema
from fuzz.__main__ import main
from fuzz.targets import GOOD, TARGETS
from stream.malformed import Target, kinds

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
DEFAULT = (Path(__file__).parents[1] / "features" / "default.toml").read_text(encoding="utf-8")
SEEDS = sorted(path for path in CORPUS.rglob("*") if path.is_file())
QUICK = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.integers(10**12, 5 * 10**12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_names = st.sampled_from([*sorted({name for message in GOOD.values() for name in message}), "colour", "session_id"])


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """A good message with some fields changed, said twice or left out, and then some bytes changed."""
    message = dict(GOOD[draw(st.sampled_from(sorted(GOOD)))])
    changed = draw(st.lists(st.tuples(_names, _values), max_size=3))
    pairs = [*message.items(), *changed] if draw(st.booleans()) else list((message | dict(changed)).items())
    text = "{" + ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs) + "}"
    return spliced(draw, text.encode())


def spliced(draw: st.DrawFn, data: bytes) -> bytes:
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=6)) + data[at + draw(st.integers(0, 4)) :]
    return data


@st.composite
def schemas(draw: st.DrawFn) -> bytes:
    """The shipped schema with values, names and bytes changed."""
    lines = DEFAULT.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        name, equals, _ = lines[at].partition("=")
        value = draw(st.sampled_from(["0", "-1", "1e400", "nan", "[]", '""', '"x"', '["7s"]', '["0s"]', '["99999999d"]',
                                      "true", "9" * 5000, '["card_id", "card_id"]', "{a = 1}", '"\\u0000"',
                                      "[" * 300 + "]" * 300, str(10**18), "32", '["count", "count"]']))  # fmt: skip
        lines[at] = name + equals + value if equals else draw(st.sampled_from([lines[at] * 2, "", "[transactions]"]))
    return spliced(draw, "\n".join(lines).encode())


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_once_found_breaks_nothing(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_the_corpus_is_small_and_has_something_for_every_target() -> None:
    assert {path.parent.name for path in SEEDS} == TARGETS.keys()
    assert sum(path.stat().st_size for path in SEEDS) < 200_000 and len(SEEDS) < 200


@given(records() | st.binary(max_size=200))
@QUICK
def test_no_record_breaks_the_decoder_or_is_accepted_against_the_contract(data: bytes) -> None:
    TARGETS["decoder"](data)


@given(schemas() | st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@QUICK
def test_no_schema_breaks_its_reader(data: bytes) -> None:
    TARGETS["schema"](data)


@pytest.mark.parametrize("topic", sorted(GOOD))
def test_every_known_way_to_break_a_message_is_refused_by_a_target_that_would_tell(topic: str) -> None:
    names = {"transactions": ("event_time", "amount"), "labels": ("label_time", "label_time"),
             "clicks": ("event_time", "event_time")}[topic]  # fmt: skip
    for break_ in kinds(Target("event_id", *names, 0.0)).values():
        TARGETS["decoder"](break_(dict(GOOD[topic])) or b"")


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000 + "]" * 5000,
        "a = " + "9" * 5000,
        "a = " + "{a = " * 3000,
        "a" + ".a" * 10**5 + " = 1",
        "[" + "a . " * 10**5 + "a]",
    ],
)
def test_toml_that_breaks_the_reader_of_toml_is_a_problem_of_the_schema(text: str) -> None:
    with pytest.raises(SettingsError, match="not valid TOML"):
        parse_schema(text)


def test_a_target_does_tell_what_it_is_there_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that lets a repeated field pass is found out by the next input that holds one."""
    import features.decode

    twice = b'{"event_id": "x", ' + json.dumps(GOOD["clicks"]).encode()[1:]
    TARGETS["decoder"](twice)
    monkeypatch.setattr(features.decode, "check_names", lambda *_: None)
    with pytest.raises(AssertionError, match="a field stands twice"):
        TARGETS["decoder"](twice)


@pytest.mark.skipif(sys.platform != "linux", reason="atheris has wheels for Linux only")
def test_a_coverage_guided_search_of_some_seconds_finds_nothing(tmp_path: Path, capfd: Any) -> None:
    pytest.importorskip("atheris")
    assert main(["--seconds", "4", "--out", str(tmp_path)]) == 0, capfd.readouterr()
    assert any((tmp_path / "corpus").rglob("*"))
