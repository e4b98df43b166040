"""Several workers that begin with the same backlog: each holds its share of the partitions before a record is there.

Started on a topic that is filled already, the first one would decide nearly all of it before the group has the next one
join. So the workers start on an empty topic, stand still (SIGSTOP) while it is filled, and go on together.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Sequence

from bench.stage import Load, Stage
from stream.processes import Child

_SHARED_S = 60.0


def share(log: Sequence[str], topic: str) -> int:
    """How many partitions of a topic a worker holds, by the newest line of its log that says what it reads."""
    said = [line for line in log if " reading " in line]
    return len(re.findall(rf" {re.escape(topic)}-\d+@", said[-1])) if said else 0


def fill_before(stage: Stage, children: Sequence[Child], topic: str, load: Load, partitions: int) -> None:
    """Wait until the workers share all partitions of an empty topic, and fill it while they stand still."""
    deadline = time.monotonic() + _SHARED_S
    while True:
        shares = [share(child.log_tail(50), topic) for child in children]
        if all(shares) and sum(shares) == partitions:
            break
        if time.monotonic() > deadline or not all(child.running() for child in children):
            raise RuntimeError(f"workers hold {shares} of {partitions} partitions: {children[0].log_tail(20)}")
        time.sleep(0.1)
    for child in children:
        os.kill(child.pid, signal.SIGSTOP)
    try:
        asyncio.run(stage.fill(topic, load, partitions))
    finally:
        for child in children:
            os.kill(child.pid, signal.SIGCONT)
