"""The consumer group: zombies, rebalances, idle members, offsets and partitions that somebody changes."""

from __future__ import annotations

import signal
import time

from chaos.admin import add_partitions, move_committed
from chaos.play import Round, state_of
from chaos.registry import fault
from chaos.traffic import Input
from tests.workers import SESSION_TIMEOUT_S

_ASLEEP_S = SESSION_TIMEOUT_S + 1.5


@fault(6, short=True)
def paused_beyond_its_session(play: Round) -> None:
    """SIGSTOP for longer than the session, then SIGCONT: a zombie."""
    single = play.turn % 2 == 1  # with one partition a copy is determined by its label position and its model
    play.allowed.zombies, play.allowed.one_partition = True, single
    step = play.random.choice(("computed", "acknowledged"))
    play.begin(2, partitions=1 if single else 4, point=f"{step}:{play.random.randrange(5, 15)}:stop")
    play.wait(lambda: play.says(play.workers[1], "metrics on"), "the second worker starts")
    time.sleep(2.0)  # and joins the group
    feeder = play.feed(4500)
    play.wait(lambda: any(state_of(worker) == "T" for worker in play.workers), "a worker stops itself")
    zombie = next(worker for worker in play.workers if state_of(worker) == "T")
    injury = play.injury()
    play.allowed.duplicates_max = feeder.sent - sum(injury.applied.values())  # whatever it may have had in hand
    time.sleep(_ASLEEP_S)
    play.recovered(injury)
    if single:
        play.settle()  # so that whatever it still writes would be the last word
    play.kill(zombie, signal.SIGCONT)
    time.sleep(2.0)
    play.finish()
    play.expect(play.says(zombie, "was written by another worker") or play.says(zombie, " reading "), "no sign of it")


@fault(7)
def rebalanced_all_the_time(play: Round) -> None:
    """A rebalance every 3 s."""
    play.begin(2)
    feeder = play.feed(9000, 900)
    leaving = play.workers[1]
    injury = play.injury()
    while feeder.running:
        time.sleep(3.0)
        play.wait_reading(leaving)
        code = leaving.stop()
        play.expect(code == 0, f"a worker that left ended with {code}: {leaving.log_tail(3)}")
        time.sleep(3.0)
        leaving = play.start(wait=False)
    play.wait_reading(leaving)
    play.recovered(injury)
    play.finish()


@fault(8)
def more_workers_than_partitions(play: Round) -> None:
    """Five workers on four partitions: the idle one takes over."""
    play.begin(5)
    play.wait(lambda: all(play.ready(worker) for worker in play.workers), "all are ready, the idle one too")
    play.feed(4000)
    play.pace(1000)
    busy = next(worker for worker in play.workers if play.reads(worker))
    play.kill(busy)
    injury = play.injury()
    play.recovered(injury)
    play.finish()


@fault(27)
def partitions_added_under_the_group(play: Round) -> None:
    """Partitions are added to an input under the group: refused with the way out."""
    play.begin()
    feeder = play.feed(2000)
    feeder.join()
    play.finish()
    worker = play.start()
    add_partitions(play.deployment, play.deployment.topics.transactions, 6)
    play.kafka_proxy.cut()  # a client that connects again asks for the topics anew; else it does every five minutes
    for what in ("a worker that runs ends", "a worker does not start"):
        code = play.wait_for_end(worker, what)
        play.expect(code == 2 and play.says(worker, "the count is fixed at creation"),
                    f"{what} with {code} on 6 partitions: {worker.log_tail(2)}")  # fmt: skip
        worker = play.start(wait=False)
    play.wait_for_end(worker, "the last worker ends")


@fault(28)
def offsets_reset_by_an_operator(play: Round) -> None:
    """An operator moves the group's offsets back and forward: Redis' count."""
    play.begin()
    for move in (-200, 100):
        play.feed(1500, 200)
        play.settle()
        code = play.workers[-1].stop()
        play.expect(code == 0, f"exit code {code} on SIGTERM")
        move_committed(play.deployment, move)
        injury = play.injury()
        play.feed(500, 50)
        play.start()
        play.recovered(injury)
    play.finish()


@fault(29)
def labels_that_lag(play: Round) -> None:
    """A labels topic that lags by an hour of the events' time."""
    play.begin()
    inputs = play.source.draw(3000, 200)  # over 25 hours of the events' time
    held: list[Input] = []
    for start in range(0, len(inputs), 300):
        part = inputs[start : start + 300]
        feeder = play.send([item for item in part if item.topic != "labels"], rate=None)
        feeder.join()
        play.send(held).join()
        held = [item for item in part if item.topic == "labels"]
    play.send(held)
    play.finish()
