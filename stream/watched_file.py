"""A file that people edit while the worker runs: rules, levers.

In: its path. Out: its bytes, once for each change. Whoever saves a file may empty it or move it away for a moment, and
a worker that took that moment at its word would run without a rule or a cap; so a change counts once it has rested.
What it holds at the start counts at once.
"""

from __future__ import annotations

from pathlib import Path

from features.errors import SettingsError


class WatchedFile:
    """The file at ``path``, which the setting ``setting`` names."""

    def __init__(self, path: Path, setting: str) -> None:
        self.path = path
        self._setting = setting
        self._seen: bytes | str = b""  # at the last look; text says why it could not be read
        self._given: bytes | str = b""

    def read(self) -> bytes:
        """What it holds now; later looks tell of changes since.

        Raises
        ------
        SettingsError
            If it cannot be read.
        """
        self._seen = self._given = self._read()
        return _bytes(self._given)

    def look(self) -> bytes | None:
        """What it has come to hold, once two looks running have found the same; None otherwise.

        Raises
        ------
        SettingsError
            If it has come to be unreadable; once.
        """
        before, self._seen = self._seen, self._read()
        if self._seen != before or self._seen == self._given:
            return None
        self._given = self._seen
        return _bytes(self._given)

    def _read(self) -> bytes | str:
        try:
            return self.path.read_bytes()
        except OSError as error:
            return f"{self._setting} = '{self.path}': cannot be read: {error.strerror}"


def _bytes(found: bytes | str) -> bytes:
    if isinstance(found, str):
        raise SettingsError([found])
    return found
