"""Redis emptied under a running deployment: refused, and made anew by ``headrace rebuild``."""

from __future__ import annotations

import subprocess
import sys
import time

from chaos.play import Broken, Round, redis_of
from chaos.registry import fault
from stream.processes import Child

_REBUILD_S = 60.0


@fault(12, short=True)
def redis_emptied(play: Round) -> None:
    """FLUSHALL under committed offsets: refused, and rebuilt from the archive and the topics."""
    play.begin(1 if play.turn % 2 else 2)
    archive = _archive(play)
    try:
        play.feed(4000)
        play.pace(1500 + play.random.randrange(1500))
        if play.random.random() < 0.5:
            archive.kill()  # from here on only the topics have it
        with redis_of(play) as redis:
            redis.flushall()
        injury = play.injury()
        for worker in play.workers:
            code = play.wait_for_end(worker, "every worker refuses to go on")
            told = play.says(worker, "Was Redis emptied?", "`headrace rebuild`")
            play.expect(code == 2 and told, f"a worker ended with {code}: {worker.log_tail(3)}")
        _rebuild(play)
        play.start()
        play.recovered(injury)
        play.finish()
    finally:
        archive.kill()


def _environment(play: Round) -> dict[str, str]:
    ours = {"ARCHIVE_URL": (play.directory / "archive").as_uri(), "ARCHIVE_EVERY_S": "0.5",
            "ARCHIVE_METRICS_PORT": "0"}  # fmt: skip
    return play.deployment.environment() | {f"HEADRACE_{name}": value for name, value in ours.items()}


def _archive(play: Round) -> Child:
    """An archive that has begun."""
    command = [sys.executable, "-m", "stream.cli", "archive"]
    archive = Child("archive", command, play.directory / "archiver", _environment(play))
    archive.start()
    play.wait(lambda: play.says(archive, " archiving "), "the archive begins")
    return archive


def _rebuild(play: Round) -> None:
    """Run ``headrace rebuild`` as soon as the group knows that its workers are gone."""
    deadline = time.monotonic() + _REBUILD_S
    while True:
        done = subprocess.run([sys.executable, "-m", "stream.cli", "rebuild"], env=_environment(play), text=True,
                              capture_output=True, check=False, timeout=_REBUILD_S)  # fmt: skip
        if done.returncode == 0:
            play.notes.append(done.stderr.strip())
            return
        if "workers of group" not in done.stderr or time.monotonic() > deadline:
            raise Broken(f"the rebuilding ended with {done.returncode}: {done.stderr}")
        time.sleep(0.2)
