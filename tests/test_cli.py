"""The command line: complete help at once, every mistake in one line, exit codes that scripts can use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import stream.topics
from features.schema import load_schema
from stream.cli import app
from stream.contract import message_types
from stream.embedded import Broker, RedisServer, free_port
from stream.settings import TopicSettings
from tests.servers import fresh_name

COMMANDS = ("up", "train", "trainer", "worker", "replay", "watch", "topics", "doctor", "schema", "repartition",
            "recommend", "similar")  # fmt: skip
LOGINS = Path(__file__).parents[1] / "examples" / "logins.toml"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where no headrace.toml lies."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_help_names_every_command_and_each_has_help_of_its_own() -> None:
    shown = _run("--help").output
    for command in COMMANDS:
        assert command in shown
        result = _run(command, "--help")
        assert result.exit_code == 0 and "Usage" in result.output


def test_help_imports_no_library_that_takes_long_to_load() -> None:
    code = (
        "import sys; from stream.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    for name in ("numpy", "numba", "pyarrow", "faust", "aiokafka", "redis", "sklearn", "lightgbm"):
        assert f"'{name}'" not in done.stderr


def test_all_mistakes_in_the_settings_are_lines_on_stderr_and_exit_code_2(empty_folder: Path) -> None:
    (empty_folder / "headrace.toml").write_text("[worker]\ncycles_in_flight = 0\n[topics]\nreplication = -1\n")
    result = _run("topics", "--kafka", "nowhere")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("headrace: ") for line in lines)
    assert "worker.cycles_in_flight = 0 (headrace.toml)" in result.stderr
    assert "flag --kafka" in result.stderr


def test_broken_toml_names_file_and_line(empty_folder: Path) -> None:
    (empty_folder / "mine.toml").write_text("[worker\n")
    result = _run("schema", "--config", "mine.toml")
    assert result.exit_code == 2
    assert "mine.toml" in result.stderr and "line 1" in result.stderr


def test_an_unknown_flag_and_an_unknown_choice_are_exit_code_2() -> None:
    assert _run("topics", "--nonsense").exit_code == 2
    assert _run("watch", "nonsense").exit_code == 2
    result = _run("trainer", "--every", "soon")
    assert result.exit_code == 2 and "soon" in result.stderr


def test_an_unreachable_broker_is_one_line_and_no_stack_trace() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stream.cli", "topics", "--kafka", f"127.0.0.1:{free_port()}"],
        capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "cannot be used" in line


def test_ctrl_c_ends_a_command_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(stream.topics, "run", interrupted)
    assert _run("topics").exit_code == 130


def test_history_that_cannot_be_read_is_refused(empty_folder: Path) -> None:
    (empty_folder / "empty.csv").write_text("")
    for file in ("empty.csv", "absent.csv"):
        result = _run("replay", file, "--to", "transactions")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"headrace: {file}")


def test_schema_prints_one_json_document_with_the_schema_of_every_topic() -> None:
    result = _run("schema")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert set(document) == set(message_types(load_schema(), TopicSettings()))
    properties = document["transactions"]["$defs"]["Transaction"]["properties"]
    assert {"event_id", "event_time", "card_id", "merchant_id", "amount"} <= set(properties)


def test_schema_respects_the_schema_file_and_the_topic_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TOPICS_TRANSACTIONS", "logins")
    document = json.loads(_run("schema", "--schema", str(LOGINS)).stdout)
    properties = document["logins"]["$defs"]["Transaction"]["properties"]
    assert {"login_id", "account_id", "asn", "method"} <= set(properties)
    assert "amount" not in properties


def test_topics_are_created_and_checked_from_the_command_line(
    embedded_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("transactions", "labels", "clicks", "decisions", "alerts", "recommendations", "dead_letters"):
        monkeypatch.setenv(f"HEADRACE_TOPICS_{name.upper()}", fresh_name(name))
    flags = ("--kafka", embedded_broker.bootstrap)
    missing = _run("topics", *flags)
    assert missing.exit_code == 1 and "headrace topics --create" in missing.stdout
    assert _run("topics", "--create", *flags).exit_code == 0
    checked = _run("topics", "--check", "--json", *flags)
    assert checked.exit_code == 0
    assert {topic["state"] for topic in json.loads(checked.stdout)} == {"ok"}


def test_replay_sends_a_file_and_says_how_much(
    embedded_broker: Broker, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA_IDEMPOTENCE", "false")
    for name in ("transactions", "labels", "clicks"):
        monkeypatch.setenv(f"HEADRACE_TOPICS_{name.upper()}", fresh_name(name))
    (empty_folder / "clicks.tsv").write_text(
        "session_id\titem_id\tevent_time\n" + "".join(f"s{i % 3}\ti{i}\t{1_700_000_000 + i}\n" for i in range(50))
    )
    flags = ("--kafka", embedded_broker.bootstrap)
    refused = _run("replay", "clicks.tsv", "--to", "clicks", "--fast", *flags)
    assert refused.exit_code == 2 and "is missing; create it" in refused.stderr
    assert _run("topics", "--create", *flags).exit_code == 0
    result = _run("replay", "clicks.tsv", "--to", "clicks", "--fast", "--limit", "40", *flags)
    assert result.exit_code == 0, result.stderr
    assert "sent 40 to clicks" in result.stderr


def test_doctor_says_what_to_do_and_exits_with_1_while_something_is_wrong(
    embedded_broker: Broker, embedded_redis: RedisServer
) -> None:
    flags = ("--kafka", embedded_broker.bootstrap, "--redis", embedded_redis.url, "--artifacts", "nowhere")
    result = _run("doctor", *flags)
    assert result.exit_code == 1
    assert "headrace train" in result.stdout
    findings = {finding["name"]: finding for finding in json.loads(_run("doctor", "--json", *flags).stdout)}
    assert findings["redis"]["ok"] and findings["kafka"]["ok"] and not findings["models"]["ok"]
