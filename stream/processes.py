"""Child processes that never outlive their purpose.

In: a command and a directory. Out: a running process with its log, and a pid file that says who it is. State owned:
``<name>.log`` and ``<name>.pid`` in that directory.

Three things end a child: :meth:`Child.stop`; the death of the process that started it, even by SIGKILL (see
``leash.py``); and :func:`clean_leftovers` at the next start, for systems where the second does not exist. A process is
known by pid *and* start time, so a stranger that got a recycled pid is never signalled.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from features.errors import ServiceUnavailable

# Libraries that would start a thread for every core get one: a worker has its own threads, a trainer steps back.
ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
_LEASH: Final = str(Path(__file__).with_name("leash.py"))
_POLL_S: Final = 0.02
_LOG_TAIL_BYTES: Final = 64 * 1024
_IMPORTED_S: Final = time.monotonic()


def start_mark(pid: int) -> str | None:
    """What tells the process that has ``pid`` now from every other that ever had it; None when there is none.

    On Linux the boot id and the start time in clock ticks since that boot, elsewhere what ``ps`` gives as start time.
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            return None
        state, *fields = stat[stat.rindex(b")") + 2 :].split()  # the name before it may hold spaces and brackets
        return None if state in (b"Z", b"X") else f"{boot}:{int(fields[18])}"
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def seconds_since_start() -> float:
    """Seconds since this process was started; where the system does not tell, since this module was imported."""
    try:
        started_s = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _IMPORTED_S


class Child:
    """One child process on a leash, with a log file and a pid file.

    Parameters
    ----------
    name : str
        Names the log and pid files, and the process in messages.
    command : sequence of str
        The absolute path of a program and its arguments.
    directory : Path
        Where log and pid file go; made when absent.
    env : mapping, optional
        The whole environment of the child; inherited when None.
    """

    def __init__(
        self, name: str, command: Sequence[str], directory: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.directory = directory
        self.env = None if env is None else dict(env)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """Where both output streams of the child go; appended to over restarts."""
        return self.directory / f"{self.name}.log"

    @property
    def pid_path(self) -> Path:
        """Where it is written who the child is while it runs."""
        return self.directory / f"{self.name}.pid"

    @property
    def pid(self) -> int:
        """The process id of the running child.

        Raises
        ------
        RuntimeError
            If it has not been started.
        """
        if self._process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs, else its exit code (minus the signal's number when one ended it)."""
        return None if self._process is None else self._process.poll()

    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the command in a session of its own, so that Ctrl-C in a terminal reaches only the parent.

        Raises
        ------
        RuntimeError
            If it runs already, or when called outside the main thread: the kernel binds the child to the *thread*
            that started it, and would kill it with a thread that ends early.
        ServiceUnavailable
            If the program does not exist or may not be executed.
        """
        if self.running():
            raise RuntimeError(f"{self.name} runs already, as process {self.pid}")
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(f"{self.name} can only be started by the main thread")
        program = Path(self.command[0])
        if not program.is_file() or not os.access(program, os.X_OK):
            raise ServiceUnavailable(f"{self.name}: {program} is missing or not executable")
        self.directory.mkdir(parents=True, exist_ok=True)
        leash = [sys.executable, "-I", "-S", _LEASH, str(os.getpid())]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*leash, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                start_new_session=True,
            )
        self._write_pid()

    def _write_pid(self) -> None:
        facts = {
            "name": self.name,
            "pid": self.pid,
            "start": start_mark(self.pid),
            "parent": os.getpid(),
            "parent_start": start_mark(os.getpid()),
        }
        draft = self.pid_path.with_suffix(".pid.new")
        draft.write_text(json.dumps(facts), encoding="utf-8")
        draft.replace(self.pid_path)

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until ``ready()`` holds.

        Raises
        ------
        ServiceUnavailable
            If the child ends before that, or is not ready in time; it is stopped and its last log lines are shown.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            code = self.exit_code()
            late = time.monotonic() > deadline
            if code is None and not late:
                time.sleep(_POLL_S)
                continue
            what = f"is not ready after {timeout_s:g} s" if code is None else f"ended at start with exit code {code}"
            self.stop(timeout_s=1.0)
            tail = "\n".join(f"  {line}" for line in self.log_tail(10)) or "  (nothing)"
            raise ServiceUnavailable(f"{self.name} {what}; the end of {self.log_path}:\n{tail}")

    def log_tail(self, lines: int) -> list[str]:
        """The last lines that the child wrote."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                return log.read().decode("utf-8", "replace").splitlines()[-lines:]
        except OSError:
            return []

    def stop(self, timeout_s: float = 10.0) -> int | None:
        """SIGTERM, and SIGKILL when that took no effect within ``timeout_s``; the exit code, None if never started."""
        process = self._process
        if process is None:
            return None
        process.terminate()
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill()
        self.pid_path.unlink(missing_ok=True)
        return code

    def kill(self) -> int | None:
        """SIGKILL at once; the exit code, None if never started."""
        process = self._process
        if process is None:
            return None
        process.kill()
        code = process.wait()
        self.pid_path.unlink(missing_ok=True)
        return code


def clean_leftovers(directory: Path, timeout_s: float = 10.0) -> list[str]:
    """End what a killed run left behind in ``directory`` and remove its pid files; the names of what was ended.

    A pid file whose process is gone, or whose pid belongs to another process by now, is only removed.

    Raises
    ------
    ServiceUnavailable
        If the run that owns the directory still lives: two runs cannot share it.
    """
    ended = []
    for path in sorted(directory.glob("*.pid")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            pid, start, name = int(facts["pid"]), str(facts["start"]), str(facts["name"])
            parent, parent_start = int(facts["parent"]), str(facts["parent_start"])
        except (OSError, ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)  # torn by the crash; its process died with its parent
            continue
        if start_mark(pid) == start:
            if parent != os.getpid() and start_mark(parent) == parent_start:
                raise ServiceUnavailable(
                    f"{directory} is in use by process {parent}, whose {name} runs as process {pid}; "
                    f"stop process {parent} or choose another directory"
                )
            if _end_stranger(pid, start, timeout_s):
                ended.append(name)
        path.unlink(missing_ok=True)
    return ended


def _end_stranger(pid: int, start: str, timeout_s: float) -> bool:
    """End a process that is not a child of ours; False when it is another one by now, or gone."""
    if not hasattr(os, "pidfd_open"):
        os.kill(pid, signal.SIGKILL)
        return True
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if start_mark(pid) != start:  # asked again now that the handle pins the process
            return False
        for number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, timeout_s)):
            signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], patience_s)[0]:
                return True
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)
    return False
