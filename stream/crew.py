"""The worker, the trainer and the archive as child processes, with the settings of the process that starts them.

In: settings. Out: running children whose logs lie in the state directory. No state of its own. Settings travel by
environment, so that no secret reaches a command line or a file.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from features.errors import HeadraceError
from stream.processes import ONE_THREAD, Child
from stream.scrape import scrape
from stream.settings import Settings
from stream.settings_reader import environment_name

_READY_S = 120.0
_POLL_S = 0.05
_LOG_LINES = 10


class ChildDied(HeadraceError):
    """A child ended that should have gone on; the text holds the end of its log."""


def settings_environment(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with every setting in it, and nothing that could change one."""
    kept = {name: value for name, value in environment.items() if not name.startswith("HEADRACE_")}
    # Where the package is not installed, the child finds it where this process found it.
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    kept |= {"HEADRACE_CONFIG": os.devnull, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    for name, value in _values(settings):
        if value is not None and value != ():
            kept[environment_name(name)] = _text(value)
    return kept


def _values(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for field in fields(node):
        value = getattr(node, field.name)
        if is_dataclass(value):
            yield from _values(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return os.pathsep.join(_text(item) for item in value)
    return str(value.absolute()) if isinstance(value, Path) else str(value)


def worker_child(settings: Settings, directory: Path, environment: Mapping[str, str]) -> Child:
    """``headrace worker`` with these settings."""
    return Child("worker", _command("worker"), directory, settings_environment(settings, environment))


def trainer_child(settings: Settings, directory: Path, environment: Mapping[str, str]) -> Child:
    """``headrace trainer`` with these settings, on one thread whatever the libraries would like."""
    return Child("trainer", _command("trainer"), directory, settings_environment(settings, environment) | ONE_THREAD)


def archive_child(settings: Settings, directory: Path, environment: Mapping[str, str]) -> Child:
    """``headrace archive`` with these settings, on one thread."""
    return Child("archive", _command("archive"), directory, settings_environment(settings, environment) | ONE_THREAD)


def _command(name: str) -> list[str]:
    return [sys.executable, "-P", "-m", "stream.cli", name]


def require_running(children: Iterable[Child]) -> None:
    """Refuses to go on without a child.

    Raises
    ------
    ChildDied
        With its exit code and the end of its log.
    """
    for child in children:
        code = child.exit_code()
        if code is not None:
            tail = "\n".join(f"  {line}" for line in child.log_tail(_LOG_LINES)) or "  (nothing)"
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ChildDied(f"the {child.name} ended with {how}; the end of {child.log_path}:\n{tail}")


async def worker_ready(worker: Child, port: int) -> None:
    """Wait until the worker holds partitions.

    Raises
    ------
    ChildDied
        If it ends before that.
    HeadraceError
        If it is not ready within two minutes.
    """
    deadline = time.monotonic() + _READY_S
    while True:
        require_running([worker])
        page = await asyncio.to_thread(scrape, port)
        if page is not None and page.value("headrace_ready") == 1:
            return
        if time.monotonic() > deadline:
            raise HeadraceError(f"the worker is not ready after {_READY_S:.0f} s; see {worker.log_path}")
        await asyncio.sleep(_POLL_S)
