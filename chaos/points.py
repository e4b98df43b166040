"""Fail points: stop a worker at an exact step. ``python -m chaos.points worker`` is the worker with them.

The variable ``CHAOS_POINT`` is ``STEP:NUMBER:ACT[:SECONDS]``: at the so-many-th passage of the step, do it. Steps are
below. Acts: ``kill`` and ``stop`` send SIGKILL and SIGSTOP to the process itself, ``sleep`` blocks from then on at
every passage. Several are separated by commas. Of all workers that share the file ``CHAOS_ONCE`` only the
first one kills or stops itself: it creates the file. Nothing of this is in the product: a worker that is not started by
this module has no such code in its way.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from features.scoring import FraudModel
from stream.cli import main
from stream.publisher import Publisher
from stream.store import StateStore
from stream.tails import TailReader


class _Point:
    def __init__(self, text: str) -> None:
        step, number, act, *seconds = text.split(":")
        self.step, self.number, self.act = step, int(number), act
        self.seconds = float(seconds[0]) if seconds else 0.0
        self.passed = 0

    def due(self) -> bool:
        """Count a passage; whether the act is due."""
        self.passed += 1
        return self.passed == self.number or (self.act == "sleep" and self.passed > self.number)

    def do(self) -> None:
        """Act, for certain before another instruction of this process runs."""
        if self.act == "sleep":
            time.sleep(self.seconds)
        elif _first_of_all():
            os.kill(os.getpid(), signal.SIGKILL if self.act == "kill" else signal.SIGSTOP)


def _first_of_all() -> bool:
    """Whether no other worker with the same fail points was stopped by one: only one of them may be."""
    try:
        Path(os.environ["CHAOS_ONCE"]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _computed(point: _Point) -> None:
    """Before the answers of a cycle are handed over: nothing of it has left the process."""
    send = Publisher.send

    async def wrapped(self: Publisher, outputs: Any) -> Any:
        if outputs and point.due():
            point.do()
        return await send(self, outputs)

    _put(Publisher, "send", wrapped)


def _half_sent(point: _Point) -> None:
    """Every second batch of a cycle is acknowledged, the others are not sent."""
    send = Publisher.send

    async def wrapped(self: Publisher, outputs: Any) -> Any:
        if len(outputs) > 1 and point.due():
            half = dict(list(outputs.items())[::2])
            _ = await Publisher.acknowledged(await send(self, half))
            point.do()
        return await send(self, outputs)

    _put(Publisher, "send", wrapped)


def _acknowledged(point: _Point) -> None:
    """Every answer of a cycle is acknowledged, nothing of it is applied."""
    acknowledged = Publisher.acknowledged

    async def wrapped(pending: Any) -> Any:
        positions = await acknowledged(pending)
        if pending and point.due():
            point.do()
        return positions

    _put(Publisher, "acknowledged", staticmethod(wrapped))


def _around_apply(point: _Point, *, half: bool) -> None:
    apply = StateStore.apply

    async def wrapped(self: StateStore, writes: Any) -> None:
        if not any(write.fields for write in writes):
            await apply(self, writes)  # a fence
            return
        due = (not half or len(writes) > 1) and point.due()
        await apply(self, writes[: len(writes) // 2] if due and half else writes)
        if due:
            point.do()

    _put(StateStore, "apply", wrapped)


def _half_applied(point: _Point) -> None:
    """Half of the partitions of a cycle are applied."""
    _around_apply(point, half=True)


def _applied(point: _Point) -> None:
    """A cycle is applied, and not committed."""
    _around_apply(point, half=False)


def _fenced(point: _Point) -> None:
    """Partitions are fenced by this worker, their tails not read yet."""
    read = TailReader.read

    async def wrapped(self: TailReader, positions: Any) -> Any:
        if point.due():
            point.do()
        return await read(self, positions)

    _put(TailReader, "read", wrapped)


def _model(point: _Point) -> None:
    """The model is asked for scores."""
    score = FraudModel.score_many

    def wrapped(self: FraudModel, x: Any, *more: Any, **named: Any) -> Any:
        if len(x) and point.due():
            point.do()
        return score(self, x, *more, **named)

    _put(FraudModel, "score_many", wrapped)


STEPS: dict[str, Callable[[_Point], None]] = {
    "computed": _computed,
    "half-sent": _half_sent,
    "acknowledged": _acknowledged,
    "half-applied": _half_applied,
    "applied": _applied,
    "fenced": _fenced,
    "model": _model,
}


def _put(owner: type, name: str, value: Any) -> None:
    setattr(owner, name, value)


def install(text: str) -> None:
    """Put the fail points that ``text`` names into this process."""
    for part in text.split(",") if text else ():
        point = _Point(part)
        STEPS[point.step](point)


if __name__ == "__main__":
    install(os.environ.get("CHAOS_POINT", ""))
    main()
