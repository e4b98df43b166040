"""Redis: killed, torn, emptied, slow, unreachable, full, and silent after it has done what it was told."""

from __future__ import annotations

import resource
import time

from chaos.play import Round, redis_of
from chaos.proxy import Mood
from chaos.registry import fault


@fault(9, short=True)
def redis_killed(play: Round) -> None:
    """Redis is killed by SIGKILL and restarted."""
    play.begin(2)
    play.feed(4000)
    play.pace(500)
    play.redis.kill()
    time.sleep(play.random.uniform(0.1, 1.5))
    play.redis.start()
    play.recovered(play.injury())
    play.finish()


def _tear(play: Round, *, at_most: int) -> int:
    """Kill Redis, cut bytes from the end of its log, and start it; how many records of input it has forgotten."""
    before = play.progress()
    play.redis.kill()
    log = play.redis.log_files()[-1]
    size = log.stat().st_size
    # Never all of it: a Redis that has forgotten everything is another fault.
    cut = min(play.random.choice((1, 7, play.random.randrange(1, at_most))), size * 2 // 3)
    with log.open("r+b") as file:
        file.truncate(size - cut)
    play.redis.start()
    return before - play.progress()


@fault(10, short=True)
def redis_lost_its_tail(play: Round) -> None:
    """Redis loses the tail of its log, torn at many positions."""
    play.begin(1 if play.turn % 2 else 2)
    play.feed(4800)
    lost = []
    for tear in range(4):
        play.pace(500 + 700 * tear)
        lost.append(_tear(play, at_most=120_000))
        play.recovered(play.injury())
    play.finish()
    play.expect(max(lost) > 0, f"nothing was lost by any of the tears ({lost})")


@fault(11)
def redis_lost_its_tail_twice(play: Round) -> None:
    """Redis loses its tail a second time before the first loss is made good."""
    play.begin()
    play.feed(4800)
    for tear in range(2):
        play.pace(500 + 1200 * tear)
        _tear(play, at_most=120_000)
        time.sleep(play.random.uniform(0, 0.6))
        _tear(play, at_most=60_000)
        play.recovered(play.injury())
    play.finish()


@fault(13)
def redis_slow_and_unreachable(play: Round) -> None:
    """Redis is slow, then a black hole."""
    play.begin(1 if play.turn % 2 else 2)
    play.feed(5000)
    play.pace(500)
    play.redis_proxy.mood = Mood(delay_s=play.random.uniform(0.1, 0.4))
    time.sleep(2.0)
    play.redis_proxy.mood = Mood(swallow=True)
    time.sleep(4.0)  # more than the client's patience of 2 s
    play.redis_proxy.mood = Mood()  # what was swallowed arrives now, late
    play.recovered(play.injury())
    play.finish()


@fault(14, short=True)
def reply_lost(play: Round) -> None:
    """The reply of Redis is lost after the script has run."""
    play.begin(1 if play.turn % 2 else 2)
    play.feed(4000)
    lost = 0
    for loss in range(3):
        play.pace(400 + 600 * loss)
        play.lose_once(lambda chunk: "mute" if b"EVAL" in chunk else "pass", play.redis_proxy)
        play.recovered(play.injury())
        lost += 1
    play.finish()
    play.expect(lost == 3, f"{lost} replies were lost, not 3")


@fault(15)
def redis_out_of_memory(play: Round) -> None:
    """Redis is out of memory and evicts nothing."""
    play.begin()
    play.feed(4000)
    play.pace(500)
    with redis_of(play) as redis:
        used = int(redis.info("memory")["used_memory"])
        redis.config_set("maxmemory", max(used - 100_000, 1))
        play.wait(lambda: play.says(play.workers[0], "retrying, nothing is lost"), "the worker tells it")
        time.sleep(2.0)
        redis.config_set("maxmemory", 0)
    play.recovered(play.injury())
    play.finish()


@fault(30)
def redis_disk_full(play: Round) -> None:
    """The disk of Redis is full: the kernel refuses what its log would grow by."""
    play.begin()
    play.feed(4000)
    play.pace(500)
    size = play.redis.log_files()[-1].stat().st_size
    limits = resource.prlimit(play.redis.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(play.redis.pid, resource.RLIMIT_FSIZE, (size + 2_000, limits[1]))
    play.wait(lambda: play.says(play.workers[0], "retrying, nothing is lost"), "the worker tells it")
    time.sleep(2.0)
    play.expect(play.redis.running(), "Redis ended")
    resource.prlimit(play.redis.pid, resource.RLIMIT_FSIZE, limits)
    play.recovered(play.injury())
    play.finish()
