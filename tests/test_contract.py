"""The contract in words, the types, the JSON Schema and the decoder say the same."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from features.decode import ClickDecoder, LabelDecoder, Limits, TransactionDecoder
from features.messages import ID_BYTES_MAX, DeadLetterReason
from features.scan import TIME_MAX_MS, TIME_MIN_MS
from features.schema import load_schema
from stream.contract import json_schemas, message_types
from stream.settings import TopicSettings

TEXT = (Path(__file__).parents[1] / "docs" / "contract.md").read_text(encoding="utf-8")
TOPICS = tuple(message_types(load_schema(), TopicSettings()))
SCHEMAS = json_schemas(load_schema(), TopicSettings())
NOW_MS = 1_800_000_000_000


SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]}


def _examples(topic: str) -> list[bytes]:
    return [found.encode() for found in re.findall(rf"^```json {topic}\n(.*?)\n```$", TEXT, re.MULTILINE | re.DOTALL)]


def _fields(schema: Any, definition: Any, prefix: str = "") -> Iterator[str]:
    """Every field of a JSON Schema, those of objects inside lists as ``list[].field``."""
    if "$ref" in definition:
        definition = schema["$defs"][definition["$ref"].rpartition("/")[2]]
    for name, inner in definition.get("properties", {}).items():
        yield prefix + name
        if "items" in inner:
            yield from _fields(schema, inner["items"], f"{prefix}{name}[].")


@pytest.mark.parametrize("topic", TOPICS)
def test_every_example_is_a_message_of_its_topic_with_all_of_its_fields(topic: str) -> None:
    kind = message_types(load_schema(), TopicSettings())[topic]
    examples = _examples(topic)
    assert examples
    for example in examples:
        decoded = msgspec.json.decode(example, type=kind)
        unknown = set(json.loads(example)) - {field.name for field in msgspec.structs.fields(kind)}
        assert unknown == set()
        assert msgspec.json.decode(msgspec.json.encode(decoded), type=kind) == decoded


@pytest.mark.parametrize("topic", TOPICS)
def test_the_page_has_a_table_row_for_every_field_and_for_no_other(topic: str) -> None:
    schema = SCHEMAS[topic]
    rows = re.findall(r"^\| (`.*?) \| ", SECTIONS[topic].partition("| reason |")[0], re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert told == set(_fields(schema, schema))


def test_the_page_has_a_section_and_an_overview_row_for_every_topic() -> None:
    assert set(TOPICS) <= set(SECTIONS)
    assert re.findall(r"^\| \[`(.*?)`\]\(#(.*?)\)", TEXT, re.MULTILINE) == [(topic, topic) for topic in TOPICS]


def test_the_page_explains_every_reason_of_a_dead_letter() -> None:
    table = SECTIONS["dead-letters"].partition("| reason |")[2]
    assert tuple(re.findall(r"^\| `(\w+)` \| ", table, re.MULTILINE)) == get_args(DeadLetterReason)


def test_the_page_says_which_fields_may_be_left_out() -> None:
    for topic in ("transactions", "labels", "clicks", "items"):
        schema = SCHEMAS[topic]
        (definition,) = schema["$defs"].values()
        optional = set(definition["properties"]) - set(definition["required"])
        rows = re.findall(r"^\| `(\w+)` \| .*?(?:optional|when absent)", SECTIONS[topic], re.MULTILINE)
        assert set(rows) == optional


def test_the_input_examples_are_accepted_by_the_decoders() -> None:
    schema = load_schema().transactions
    for topic, decoder in (
        ("transactions", TransactionDecoder(schema, Limits())),
        ("labels", LabelDecoder(schema, Limits())),
        ("clicks", ClickDecoder(Limits())),
    ):
        examples = _examples(topic)
        batch: Any = decoder.decode(examples, [NOW_MS] * len(examples))
        assert batch.bad == [] and batch.unknown_fields == 0


def test_the_limits_on_the_page_are_the_limits_in_the_code() -> None:
    assert f"1 to {ID_BYTES_MAX} bytes" in TEXT
    assert (TIME_MIN_MS, TIME_MAX_MS) == (946_684_800_000, 4_102_444_800_000) and "from 2000 up\nto 2100" in TEXT
    (amount,) = load_schema().transactions.numeric
    assert f"{amount.minimum:g} to {amount.maximum:,.0f}" in TEXT


def test_the_dead_letter_in_the_example_describes_its_own_value() -> None:
    (example,) = map(json.loads, _examples("dead-letters"))
    value = base64.b64decode(example["value"])
    assert (len(value), hashlib.sha256(value).hexdigest()) == (example["length"], example["sha256"])


@pytest.mark.parametrize("topic", TOPICS)
def test_the_json_schema_stands_by_itself(topic: str) -> None:
    text = json.dumps(SCHEMAS[topic])
    for reference in re.findall(r'"\$ref": "#/\$defs/(\w+)"', text):
        assert reference in SCHEMAS[topic]["$defs"]
