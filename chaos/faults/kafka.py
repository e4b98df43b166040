"""Kafka: restarted, emptied, refusing answers and commits, and topics with gaps."""

from __future__ import annotations

import resource
import struct
import time

from chaos.admin import configure, send_transactional
from chaos.play import Round
from chaos.proxy import Mood
from chaos.registry import fault

_PRODUCE, _COMMIT = 0, 8
_CODES = (14, 16, 22, 25, 27)  # loading, not the coordinator, old generation, unknown member, rebalancing


def api_of(frame: bytes) -> int:
    """The number of the request in a frame of Kafka's protocol."""
    return int(struct.unpack_from(">h", frame, 4)[0])


@fault(16)
def broker_restarted_and_emptied(play: Round) -> None:
    """The broker restarts; then it comes back empty and is refused."""
    play.own_broker()
    play.begin()
    play.feed(3000)
    play.pace(500)
    if play.turn % 2:
        play.kafka.stop(timeout_s=20.0)
    else:
        play.kafka.kill()
    play.kafka.start()
    play.recovered(play.injury())
    play.finish()
    worker = play.start()
    play.empty_broker()
    code = play.wait_for_end(worker, "the worker ends on a broker that came back empty")
    known = ("lies beyond its end", "the broker lost data", "is missing")
    play.expect(code == 2 and any(play.says(worker, text) for text in known),
                f"exit code {code} on an emptied broker: {worker.log_tail(3)}")  # fmt: skip


@fault(31)
def broker_disk_full(play: Round) -> None:
    """The disk of the broker is full: the kernel refuses what its log would grow by, and it ends."""
    play.own_broker()
    play.begin()
    play.feed(3000)
    play.pace(500)
    limits = resource.prlimit(play.kafka.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(play.kafka.pid, resource.RLIMIT_FSIZE, (20_000, limits[1]))
    play.wait(lambda: not play.kafka.running(), "the broker ends")
    play.kafka.start()  # without the limit: somebody has made room
    play.recovered(play.injury())
    play.finish()


@fault(17, short=True)
def answers_refused(play: Round) -> None:
    """The broker refuses answers for a while, loses acknowledgements, and finds an answer too large."""
    topics = play.deployment.topics
    play.begin(KAFKA_REQUEST_TIMEOUT_S="3")
    play.feed(6000)
    play.pace(300)
    configure(play.deployment, topics.decisions, {"min.insync.replicas": "2"})  # there is one
    time.sleep(4.0)
    configure(play.deployment, topics.decisions, {"min.insync.replicas": "1"})
    play.recovered(play.injury())
    play.lose_once(lambda frame: "lose" if api_of(frame) == _PRODUCE else "pass")
    play.recovered(play.injury())
    play.lose_once(lambda frame: "mute" if api_of(frame) == _PRODUCE else "pass")
    play.recovered(play.injury())
    configure(play.deployment, topics.decisions, {"max.message.bytes": "150"})
    code = play.wait_for_end(play.workers[0], "the worker ends on an answer that is too large")
    play.expect(code == 2 and play.says(play.workers[0], "and a retry does not mend it"),
                f"exit code {code}: {play.workers[0].log_tail(2)}")  # fmt: skip
    configure(play.deployment, topics.decisions, {"max.message.bytes": "1048588"})
    injury = play.injury()
    play.start()
    play.recovered(injury)
    play.finish()


class _CommitErrors:
    """Turns every answer to a commit into an error, one kind after the other."""

    def __init__(self) -> None:
        self.asked: set[int] = set()
        self.spoilt = 0

    def judge(self, frame: bytes) -> str:
        """Note a commit's number."""
        if api_of(frame) == _COMMIT:
            self.asked.add(int(struct.unpack_from(">i", frame, 8)[0]))
        return "pass"

    def change(self, frame: bytes) -> bytes:
        """The frame, or one with an error for each partition."""
        if int(struct.unpack_from(">i", frame, 4)[0]) not in self.asked:
            return frame
        out, at = bytearray(frame), 8
        if len(frame) > 12 and struct.unpack_from(">i", frame, 8)[0] == 0:
            at = 12  # a throttle time comes first
        (topics,) = struct.unpack_from(">i", frame, at)
        at += 4
        for _ in range(topics):
            (name,) = struct.unpack_from(">h", frame, at)
            at += 2 + name
            (partitions,) = struct.unpack_from(">i", frame, at)
            at += 4
            for _ in range(partitions):
                struct.pack_into(">h", out, at + 4, _CODES[self.spoilt % len(_CODES)])
                at += 6
        self.spoilt += 1
        return bytes(out)


@fault(18)
def commits_refused(play: Round) -> None:
    """Commits fail, with every kind of error, and their replies are lost."""
    play.begin(1 if play.turn % 2 else 2)
    play.feed(6000, rate=500.0)
    play.pace(300)
    errors = _CommitErrors()
    injury = play.injury()
    play.kafka_proxy.mood = Mood(judge=errors.judge, change=errors.change)
    play.wait(lambda: errors.spoilt >= len(_CODES), "every kind of error was given")
    play.kafka_proxy.mood = Mood()
    play.lose_once(lambda frame: "mute" if api_of(frame) == _COMMIT else "pass")
    play.lose_once(lambda frame: "lose" if api_of(frame) == _COMMIT else "pass")
    play.recovered(injury)
    play.finish()


@fault(20)
def offsets_with_gaps(play: Round) -> None:
    """Offsets have gaps, as those of topics that are written in Kafka's transactions."""
    play.begin()
    d, inputs = play.deployment, play.source.draw(1500, 200)
    named = [(str(getattr(d.topics, item.topic)), item) for item in inputs]
    send_transactional(d.kafka, d.name, [named[at : at + 50] for at in range(0, len(named), 50)])
    play.pace(200)
    injury = play.injury()
    play.kill(play.workers[0])
    play.start()
    play.feed(600, 100)
    play.recovered(injury)
    play.finish()
