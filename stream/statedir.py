"""The state directory of ``headrace up``: one run at a time, and nothing left of a run that was killed.

In: a path. Out: a locked directory. State owned: ``lock``, held by the kernel for as long as the process lives, so
that no crash leaves it locked.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from features.errors import ServiceUnavailable, SettingsError
from stream.processes import clean_leftovers


class StateDirectory:
    """``with StateDirectory(path) as place``: made, locked and cleaned up.

    Raises
    ------
    SettingsError
        If it cannot be made or written.
    ServiceUnavailable
        If another run uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.ended: list[str] = []

    @property
    def history(self) -> Path:
        """Simulated history, and the part of history that trains."""
        return self.path / "history"

    @property
    def artifacts(self) -> Path:
        """The models."""
        return self.path / "artifacts"

    @property
    def archive(self) -> Path:
        """The archive of a run on embedded servers."""
        return self.path / "archive"

    def __enter__(self) -> StateDirectory:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise SettingsError([f"--state-dir {self.path}: cannot be used: {error.strerror}"]) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise ServiceUnavailable(
                f"{self.path} is in use by another `headrace up`, process {owner}; stop it, or give --state-dir DIR"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        self.ended = clean_leftovers(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
                 ) -> None:  # fmt: skip
        self._lock.close()
