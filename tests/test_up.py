"""``headrace up`` end to end: nothing is lost, models are swapped on the way, and nothing is ever left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from stream.embedded import RedisServer
from stream.processes import start_mark
from tests.servers import KafkaServer, fresh_name

DATA = Path(__file__).parents[2] / "shared" / "data"
ROOT = Path(__file__).parents[1]
_LIVE_S = 120.0


class Up:
    """One ``headrace up`` in a folder of its own."""

    def __init__(self, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.state = folder / "state"
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stream.cli", "up", "--state-dir", str(self.state), *arguments],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env=kept | {"PYTHONPATH": str(ROOT)} | dict(environment or {}),
            )  # fmt: skip

    @property
    def out(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def until(self, words: str, times: int = 1, log: str | None = None) -> None:
        """Wait until it says so on standard error, or one of its children in a log, so many times."""
        deadline = time.monotonic() + _LIVE_S
        while (self.err if log is None else (self.state / log).read_text(encoding="utf-8")).count(words) < times:
            assert self.process.poll() is None, self.err
            assert time.monotonic() < deadline, self.err
            time.sleep(0.05)

    def children(self) -> dict[str, tuple[int, str | None]]:
        """Pid and start mark of each child that runs."""
        found = {}
        for path in self.state.glob("*.pid"):
            facts = json.loads(path.read_text())
            found[facts["name"]] = (int(facts["pid"]), start_mark(int(facts["pid"])))
        return found

    def end(self) -> int:
        return self.process.wait(_LIVE_S)

    def summary(self) -> dict[str, Any]:
        """What it printed at its end."""
        code = self.end()
        assert code == 0, f"{code}\n{self.out}\n{self.err}"
        facts: dict[str, Any] = json.loads(self.out)
        return facts


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts runs, and ends those that a failed test leaves."""
    runs: list[Up] = []

    def begin(*arguments: str, **options: Any) -> Up:
        runs.append(Up(tmp_path, *arguments, **options))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


def gone(children: Mapping[str, tuple[int, str | None]]) -> bool:
    """Whether all of them end, which the kernel may need a moment for."""
    deadline = time.monotonic() + 15
    while any(mark is not None and start_mark(pid) == mark for pid, mark in children.values()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def answered(facts: Mapping[str, Any]) -> None:
    """Every valid event has its answer, every malformed message its dead letter."""
    assert facts["decisions"] == facts["sent"]["transactions"] > 0
    assert facts["recommendations"] == facts["sent"]["clicks"] > 0
    assert facts["dead_letters"] == facts["sent"]["malformed"]
    assert facts["lost"] == {"decisions": 0, "recommendations": 0, "dead_letters": 0}
    assert sum(facts["model_versions"].values()) == facts["decisions"]


def test_nothing_is_lost_while_bad_messages_come_and_models_change(start: Any) -> None:
    run = start("--json", "--rate", "150", "--every", "1s", "--malformed", "0.01", "--history-rows", "20000")
    run.until("replaying")
    run.until("is in use, after", times=3, log="worker.log")
    run.process.terminate()
    facts = run.summary()
    answered(facts)
    assert facts["dead_letters"] > 0
    assert len(facts["model_versions"]) >= 3  # the last swap may come after the last decision
    assert facts["seconds_to_first_decision"] > 0 and facts["seconds_to_first_recommendation"] > 0
    assert 0 < facts["latency_ms"]["p50"] <= facts["latency_ms"]["p90"] <= facts["latency_ms"]["p99"]
    assert facts["events"] <= facts["sent"]["transactions"] + facts["sent"]["clicks"] + facts["sent"]["malformed"]


def test_it_runs_on_the_servers_that_it_is_given(start: Any, kafka: KafkaServer, redis_server: RedisServer) -> None:
    name = fresh_name("up")
    topics = ("transactions", "labels", "clicks", "items", "decisions", "alerts", "recommendations", "dead_letters")
    environment = {f"HEADRACE_TOPICS_{topic.upper()}": f"{name}-{topic}" for topic in topics}
    environment |= {"HEADRACE_REDIS_NAMESPACE": name, "HEADRACE_WORKER_GROUP": name}
    run = start(
        "--duration", "5", "--json", "--kafka", kafka.bootstrap, "--redis", redis_server.url, environment=environment
    )  # fmt: skip
    run.until("replaying")
    assert set(run.children()) == {"worker", "trainer"}
    answered(run.summary())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_and_sigterm_stop_everything_in_order(start: Any, how: signal.Signals) -> None:
    run = start()
    run.until("replaying")
    children = run.children()
    assert set(children) == {"redis", "broker", "worker", "trainer", "archive"}
    time.sleep(2)
    run.process.send_signal(how)
    assert run.end() == 0, run.err
    assert gone(children) and not run.children()
    assert "got " in run.err and "stopped" in (run.state / "worker.log").read_text()


@pytest.mark.parametrize("needed", [DATA / "handbook" / "transactions.parquet"])
def test_it_runs_on_real_payments_and_clicks(start: Any, needed: Path) -> None:
    if not needed.exists():
        pytest.skip(f"{needed} is absent")
    clicks, examples = DATA / "serenade" / "train.txt", ROOT / "examples"
    schemas = ("--schema", str(examples / "handbook.toml"), "--schema", str(examples / "serenade.toml"))
    files = ("--transactions", str(needed), "--clicks", str(clicks))
    facts = start("--duration", "5", "--json", "--rate", "300", *files, *schemas).summary()
    answered(facts)
    assert facts["decisions"] > 0 and facts["recommendations"] > 0


def test_nothing_outlives_a_run_that_is_killed_and_the_next_one_works(start: Any) -> None:
    killed = start()
    killed.until("replaying")
    children = killed.children()
    killed.process.kill()
    killed.end()
    assert gone(children)
    answered(start("--duration", "3", "--json", "--rate", "50").summary())


def test_sigterm_during_training_is_obeyed_at_once(start: Any) -> None:
    run = start("--history-rows", "57000")
    run.until("before the split train")
    children = run.children()
    run.process.terminate()
    assert run.end() == 130
    assert gone(children)


def test_a_worker_that_dies_ends_the_run_with_its_last_words(start: Any) -> None:
    run = start("--json")
    run.until("replaying")
    children = run.children()
    os.kill(children["worker"][0], signal.SIGKILL)
    assert run.end() == 2
    assert "the worker ended with signal 9" in run.err and "reading " in run.err
    assert run.out == "" and gone(children)


def test_two_runs_do_not_share_a_state_directory(start: Any, tmp_path: Path) -> None:
    first = start()
    first.until("Redis and the broker run")
    second = subprocess.run(
        [sys.executable, "-m", "stream.cli", "up", "--state-dir", str(first.state)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert second.returncode == 2
    assert f"in use by another `headrace up`, process {first.process.pid}" in second.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--transactions", "nowhere.parquet"), "nowhere.parquet"),
        (("--transactions", "empty.csv"), "empty.csv"),
        (("--schema", "broken.toml"), "broken.toml: not valid TOML"),
        (("--schema", str(ROOT / "examples" / "logins.toml")), "give --transactions FILE"),
        (("--kafka", "127.0.0.1:1"), "expected --redis URL too"),
    ],
)
def test_what_cannot_begin_says_why_in_one_line(
    start: Any, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "empty.csv").write_text("event_id,event_time,card_id,merchant_id,amount\n")
    (tmp_path / "broken.toml").write_text("[transactions\n")
    run = start(*arguments)
    assert run.end() == 2
    assert words in run.err.splitlines()[-1] and "Traceback" not in run.err
    assert gone(run.children())
