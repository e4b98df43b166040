"""Workers that end: killed anywhere and at exact steps of a cycle, or stopped with work in hand."""

from __future__ import annotations

import json
import re
import signal
import time

from chaos.play import Round
from chaos.registry import fault
from stream.processes import Child

_DEADLINE_S = 3.0
_GRACE_S = 4.0  # of the process itself: what a stop costs beside the cycles in flight


def _killed_at(play: Round, step: str, *, standby: bool) -> None:
    """Kill a worker at a step; the other one, running or started then, takes its partitions over."""
    play.begin(2 if standby else 1, point=f"{step}:{play.random.randrange(3, 15)}:kill")
    play.feed(4000)
    play.wait(lambda: any(not worker.running() for worker in play.workers), f"a worker reaches {step}")
    codes = [worker.exit_code() for worker in play.workers if not worker.running()]
    play.expect(codes == [-signal.SIGKILL], f"the worker ended with {codes}, not by SIGKILL")
    injury = play.injury()
    if not standby:  # with other thresholds, as after a deployment: what was emitted holds all the same
        play.start(WORKER_REVIEW_SCORE=str(2 * play.arena.review_score))
    play.recovered(injury)


@fault(1, short=True)
def killed_in_a_cycle(play: Round) -> None:
    """SIGKILL in the middle of a cycle."""
    _killed_at(play, play.random.choice(("computed", "half-sent", "half-applied")), standby=play.turn % 2 == 0)
    play.kill(next(worker for worker in play.workers if worker.running()))
    injury = play.injury()
    play.start()
    play.recovered(injury)
    play.finish()


@fault(2, short=True)
def killed_between_produce_and_apply(play: Round) -> None:
    """SIGKILL after the answers are acknowledged, before they are applied."""
    _killed_at(play, "acknowledged", standby=play.turn % 2 == 0)
    play.finish()


@fault(3, short=True)
def killed_between_apply_and_commit(play: Round) -> None:
    """SIGKILL after the state is applied, before the offset is committed."""
    play.begin(point=f"applied:{play.random.randrange(5, 15)}:kill")
    play.feed(4000)
    play.wait_for_end(play.workers[0], "the worker applies")
    applied, injury = play.applied(), play.injury()
    second = play.start()
    play.recovered(injury)
    (told,) = [text for text in second.log_tail(50) if " reading " in text]
    places = re.findall(r"(\S+)-(\d+)@(\d+)", told)
    seeks = {(topic, int(partition)): int(offset) for topic, partition, offset in places}
    play.expect(applied.items() <= seeks.items(), f"the next owner reads from {seeks}, Redis had {applied}")
    play.finish()


@fault(32)
def killed_again_while_adopting(play: Round) -> None:
    """SIGKILL before the very first cycle is applied, and again when a part of it is."""
    play.begin(0)
    play.feed(1000, rate=None).join()  # nobody is there yet, so the first cycle is a large one
    # The others decide by another threshold: of what was answered the first decisions must hold all the same.
    other = str(2 * play.arena.review_score)
    _killed(play, play.start("acknowledged:1:kill", wait=False))
    injury = play.injury()
    answered, _ = _decided_and_applied(play)
    play.expect(answered >= 100, f"{answered} decisions in the cycle that was not applied")
    small = play.start("applied:2:kill", wait=False, WORKER_CYCLE_EVENTS_MAX="16", WORKER_REVIEW_SCORE=other)
    _killed(play, small)
    _, applied = _decided_and_applied(play)
    play.expect(0 < applied < answered, f"{applied} of {answered} answered transactions are applied, not a part")
    play.start(WORKER_REVIEW_SCORE=other)
    play.recovered(injury)
    play.finish()


@fault(33, short=True)
def killed_with_an_alert_budget(play: Round) -> None:
    """SIGKILL with an alert budget, before a cycle is applied and after one."""
    play.budget(60)
    small = "64"  # or a slow machine's backlog would be fewer cycles than the points count
    play.begin(point=f"acknowledged:{play.random.randrange(5, 15)}:kill", WORKER_CYCLE_EVENTS_MAX=small)
    play.feed(4000)  # over a midnight of the events' time
    _killed(play, play.workers[0])
    injury = play.injury()
    second = play.start(f"applied:{play.random.randrange(5, 15)}:kill", wait=False, WORKER_CYCLE_EVENTS_MAX=small)
    _killed(play, second)
    play.start()
    play.recovered(injury)
    play.finish()
    told = [
        json.loads(record.value)["review_score"] for record in play.deployment.read(play.deployment.topics.decisions)
    ]
    play.expect(len(set(told)) > 50, f"{len(set(told))} thresholds were in force; the budget did nothing")


def _killed(play: Round, worker: Child) -> None:
    code = play.wait_for_end(worker, "a worker comes to its fail point")
    play.expect(code == -signal.SIGKILL, f"the worker ended with {code}, not by SIGKILL: {worker.log_tail(3)}")


def _decided_and_applied(play: Round) -> tuple[int, int]:
    """How many decisions there are, and how many transactions are applied."""
    topics = play.deployment.topics
    applied = sum(offset for (topic, _), offset in play.applied().items() if topic == topics.transactions)
    return len(play.deployment.read(topics.decisions)), applied


@fault(4)
def stopped_with_a_slow_model(play: Round) -> None:
    """SIGTERM in the middle of a cycle with a slow model."""
    play.begin(point="model:5:sleep:0.4", WORKER_DRAIN_DEADLINE_S="10")
    play.feed(3000)
    play.pace(300)
    injury = play.injury()
    code = play.workers[0].stop(timeout_s=10.0 + _GRACE_S)
    took_s = time.monotonic() - injury.at_s
    play.expect(code == 0, f"exit code {code} on SIGTERM")
    play.expect(took_s <= 10.0, f"the worker took {took_s:.1f} s to end, its deadline is 10 s")
    play.start()
    play.recovered(injury)
    play.finish()


@fault(5)
def stopped_with_a_hung_model(play: Round) -> None:
    """SIGTERM with a hung model: exit at the deadline."""
    large = play.turn % 2 == 0  # a large cycle hangs in a thread, a small one on the event loop
    at = 2 if large else 10  # a backlog is a few cycles in all
    play.begin(point=f"model:{at}:sleep:10000", WORKER_DRAIN_DEADLINE_S=str(_DEADLINE_S))
    play.feed(3000, rate=None if large else 300.0)
    before = -1
    while (now := play.progress()) != before:  # until it hangs: nothing more is applied
        before = now
        time.sleep(1.0)
    injury = play.injury()
    play.workers[0].stop(timeout_s=_DEADLINE_S + _GRACE_S)
    took_s, code = time.monotonic() - injury.at_s, play.workers[0].exit_code()
    play.expect(code == 1, f"exit code {code}, after {took_s:.1f} s; the deadline is {_DEADLINE_S} s")
    play.expect(play.applied() == injury.applied, "something was applied by a hung worker")
    play.start()
    play.recovered(injury)
    play.finish()
