from __future__ import annotations

from pathlib import Path

import pytest

from features.errors import SettingsError
from stream.watched_file import WatchedFile


@pytest.fixture
def watched(tmp_path: Path) -> WatchedFile:
    file = tmp_path / "levers.toml"
    file.write_bytes(b"first")
    watched = WatchedFile(file, "worker.levers")
    assert watched.read() == b"first"
    return watched


def test_a_change_is_told_once_it_has_rested(watched: WatchedFile) -> None:
    watched.path.write_bytes(b"second")
    assert [watched.look() for _ in range(4)] == [None, b"second", None, None]
    watched.path.write_bytes(b"first")
    assert [watched.look() for _ in range(3)] == [None, b"first", None]


def test_the_moment_in_which_an_editor_has_emptied_or_removed_it_is_no_change(watched: WatchedFile) -> None:
    watched.path.write_bytes(b"")
    assert watched.look() is None
    watched.path.unlink()
    assert watched.look() is None
    watched.path.write_bytes(b"first")
    assert [watched.look() for _ in range(3)] == [None, None, None]


def test_a_file_that_stays_away_is_told_once_and_its_return_is_a_change(watched: WatchedFile) -> None:
    watched.path.unlink()
    assert watched.look() is None
    with pytest.raises(SettingsError, match=r"worker.levers = '.*levers.toml': cannot be read: No such file"):
        watched.look()
    assert watched.look() is None
    watched.path.write_bytes(b"first")
    assert [watched.look() for _ in range(3)] == [None, b"first", None]


def test_a_file_that_is_not_there_at_first_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="worker.rules = .* cannot be read"):
        WatchedFile(tmp_path / "none", "worker.rules").read()
