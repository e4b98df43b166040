"""Settings come from file, environment and flags; mistakes are reported all at once; secrets are never shown."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from features.errors import SettingsError
from stream.settings import KafkaSettings, RedisSettings, Settings, TopicSettings, WorkerSettings, load_settings

EXAMPLE = Path(__file__).parents[1] / "examples" / "headrace.example.toml"


def _problems(
    text: str = "", environment: dict[str, str] | None = None, flags: dict[str, object] | None = None,
    *, folder: Path,
) -> tuple[str, ...]:  # fmt: skip
    file = folder / "headrace.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(file, environment or {}, flags)
    return caught.value.problems


def test_without_any_source_the_defaults_hold() -> None:
    assert load_settings(None, {}) == Settings()


def test_flags_win_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text('[worker]\ngroup = "file"\nmetrics_port = 1\ncycles_in_flight = 7\n')
    environment = {"HEADRACE_WORKER_GROUP": "environment", "HEADRACE_WORKER_METRICS_PORT": "2", "PATH": "/bin"}
    settings = load_settings(file, environment, {"worker.metrics_port": 3, "worker.group": None})
    worker = settings.worker
    assert (worker.group, worker.metrics_port, worker.cycles_in_flight) == ("environment", 3, 7)


def test_text_of_the_environment_becomes_numbers_booleans_paths_and_lists() -> None:
    settings = load_settings(
        None,
        {
            "HEADRACE_KAFKA_IDEMPOTENCE": "false",
            "HEADRACE_REDIS_TIMEOUT_S": "2.5",
            "HEADRACE_SCHEMA": "a.toml:b.toml",
            "HEADRACE_WORKER_REVIEW_SCORE": "0.5",
            "HEADRACE_TRAINER_TRANSACTIONS": "t.csv",
        },
    )
    assert settings.kafka.idempotence is False
    assert settings.redis.timeout_s == 2.5
    assert settings.schema == (Path("a.toml"), Path("b.toml"))
    assert settings.worker.review_score == 0.5
    assert settings.trainer.transactions == Path("t.csv")


def test_relative_paths_in_the_file_are_relative_to_the_file_and_others_to_where_one_stands(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text('schema = ["s.toml"]\n[trainer]\ntransactions = "/data/t.csv"\n')
    settings = load_settings(file, {"HEADRACE_TRAINER_CLICKS": "c.csv"})
    assert settings.schema == (tmp_path / "s.toml",)
    assert settings.artifacts == tmp_path / ".headrace/artifacts"
    assert settings.trainer.transactions == Path("/data/t.csv")
    assert settings.trainer.clicks == Path("c.csv")


def test_every_problem_is_reported_with_its_name_source_value_and_what_was_expected(tmp_path: Path) -> None:
    problems = _problems(
        'artifacts = 5\nkafka = 3\n[topics]\ntransaction_partitions = 0\nlabels = "a b"\n[worker]\ngruop = "x"\n',
        {"HEADRACE_KAFKA_SECURITY_PROTOCOL": "ssl", "HEADRACE_REDIS_URI": "x"},
        {"kafka.bootstrap": "broker", "trainer.every_s": 0.0},
        folder=tmp_path,
    )
    file = tmp_path / "headrace.toml"
    protocol, known = "HEADRACE_KAFKA_SECURITY_PROTOCOL", "PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"
    assert set(problems) == {
        f"artifacts = 5 ({file}): expected a path",
        f"kafka ({file}): expected a table, written as [kafka]",
        f"topics.transaction_partitions = 0 ({file}): expected a whole number >= 1",
        f"topics.labels = 'a b' ({file}): expected 1 to 249 letters, digits, '.', '_' or '-'",
        f"worker.gruop ({file}): no such setting; did you mean worker.group?",
        "environment variable HEADRACE_REDIS_URI: no such setting; did you mean HEADRACE_REDIS_URL?",
        f"kafka.security_protocol = 'ssl' (environment variable {protocol}): expected one of {known}",
        "kafka.bootstrap = 'broker' (flag --kafka): expected HOST:PORT, or several with commas between them",
        "trainer.every_s = 0.0 (flag --every): expected a number > 0.0",
    }


def test_broken_toml_names_the_file_the_line_and_what_was_expected(tmp_path: Path) -> None:
    (problem,) = _problems("[kafka]\nbootstrap\n", folder=tmp_path)
    assert str(tmp_path / "headrace.toml") in problem
    assert "line 2" in problem and "Expected '='" in problem


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "headrace.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match="cannot be read") as caught:
        load_settings(file, {})
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[kafka]\nsecurity_protocol = "SASL_SSL"\n', "kafka.sasl_username and kafka.sasl_password"),
        ('[kafka]\nssl_keyfile = "k.pem"\n', "kafka.ssl_certfile too"),
        ('[redis]\nssl_cafile = "ca.pem"\n', "expected a PEM file; there is none"),
        ('[topics]\nlabels = "clicks"\n', "expected different names"),
        ("[worker]\nreview_score = 0.9\nblock_score = 0.5\n", "at most worker.block_score"),
        ("[trainer]\nevery_s = nan\n", "expected a number > 0.0"),
        ("[worker]\nreview_score = inf\n", "expected a number <= 1.0"),
        ("[worker]\nmetrics_port = 70000\n", "expected a whole number <= 65535"),
        ("[worker]\nmetrics_port = true\n", "expected a whole number, got true or false"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert any(expected in problem for problem in _problems(text, folder=tmp_path))


@pytest.mark.parametrize("bootstrap", ["broker", "broker:", "broker:0", "broker:65536", "a:1,,b:2", "u@h:1", "a:1, b"])
def test_bootstrap_servers_are_hosts_with_ports(tmp_path: Path, bootstrap: str) -> None:
    assert _problems("", {"HEADRACE_KAFKA_BOOTSTRAP": bootstrap}, folder=tmp_path)


@pytest.mark.parametrize("bootstrap", ["broker:9092", "a.b-c:1,d:2", "[::1]:9092", "a:1, b:2"])
def test_good_bootstrap_servers_are_taken(bootstrap: str) -> None:
    assert load_settings(None, {"HEADRACE_KAFKA_BOOTSTRAP": bootstrap}).kafka.bootstrap == bootstrap


SECRET = "s3cr:et@/%"
QUOTED = "s3cr%3Aet%40%2F%25"


@pytest.mark.parametrize(
    ("given", "url", "username"),
    [
        (f"rediss://bob:{QUOTED}@cache:6380/2?ssl_cert_reqs=none", "rediss://cache:6380/2?ssl_cert_reqs=none", "bob"),
        (f"redis://:{QUOTED}@cache/", "redis://cache/", None),
        (f"unix:///run/redis.sock?db=1&password={QUOTED}", "unix:///run/redis.sock?db=1", None),
        (f"redis://cache:1?username=bob&password={QUOTED}", "redis://cache:1", "bob"),
    ],
)
def test_user_and_password_leave_the_redis_url_for_their_fields(given: str, url: str, username: str | None) -> None:
    redis = load_settings(None, {"HEADRACE_REDIS_URL": given, "HEADRACE_REDIS_PASSWORD": "other"}).redis
    assert (redis.url, redis.username, redis.password) == (url, username, SECRET)
    assert redis == RedisSettings(url=given)


def test_secrets_are_in_no_repr() -> None:
    settings = Settings(
        kafka=KafkaSettings(sasl_password=SECRET), redis=RedisSettings(url=f"redis://u:{QUOTED}@h:1", password=SECRET)
    )
    for shown in (repr(settings), str(settings), f"{settings.redis}", repr(settings.kafka)):
        assert SECRET not in shown and QUOTED not in shown


def test_secrets_are_in_no_error(tmp_path: Path) -> None:
    problems = _problems(
        f'[kafka]\nsasl_password = ["{SECRET}"]\n[redis]\npassword = 12345678\n',
        {"HEADRACE_REDIS_URL": f"http://u:{SECRET}@h"},
        folder=tmp_path,
    )
    assert len(problems) == 3
    for problem in problems:
        assert SECRET not in problem and "12345678" not in problem
        assert "not shown" in problem


def test_partition_counts_follow_the_two_keys() -> None:
    topics = TopicSettings(transaction_partitions=3, click_partitions=5)
    assert list(topics.partitions().values()) == [3, 3, 5, 1, 3, 3, 5, 5]


def test_a_cycle_of_many_partitions_may_be_larger_up_to_twice() -> None:
    worker = WorkerSettings(cycle_events_max=4096)
    assert [worker.cycle_events(n) for n in (0, 4, 16, 24, 32, 1024)] == [4096, 4096, 4096, 6144, 8192, 8192]


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(value):
        inner = getattr(value, field.name)
        found |= _leaves(inner, f"{field.name}.") if is_dataclass(inner) else {prefix + field.name: inner}
    return found


def test_the_example_file_names_every_setting_with_its_default_and_a_word_about_it() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert load_settings(None, {}) == Settings()
    given: dict[str, Any] = {}
    for name, value in tomllib.loads(text).items():
        given |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    section = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = heading[1] + "."
        elif absent := re.match(r"# (\w+) =", line):
            given[section + absent[1]] = None
        if re.match(r"(?:# )?\w+ =", line):
            assert re.search(r"\S\s+# \S", line), f"{line!r} says nothing about the setting"
    defaults = {name: str(v) if isinstance(v, Path) else v for name, v in _leaves(Settings()).items()}
    assert given | {"schema": tuple(given["schema"])} == defaults


def test_the_example_file_can_be_used_as_it_is() -> None:
    settings = load_settings(EXAMPLE, {})
    assert settings.artifacts == EXAMPLE.parent / ".headrace/artifacts"
    assert settings.kafka == KafkaSettings() and settings.topics == TopicSettings()
