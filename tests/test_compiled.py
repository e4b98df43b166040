"""Compiled code that another version of the sources has made is not used."""

from __future__ import annotations

import importlib
from pathlib import Path

from numba.core.dispatcher import Dispatcher

import features
from features.compiled import _that_count, forget_stale


def _package(folder: Path) -> Path:
    (folder / "__pycache__").mkdir()
    (folder / "inlined.py").write_text("ONE = 1\n")
    (folder / "caller.py").write_text("from numba import njit\n\nfrom features.between import TWO\n")
    (folder / "between.py").write_text("from features import inlined\n\nTWO = inlined.ONE + 1\n")
    (folder / "apart.py").write_text("from features.caller import TWO\n")
    return folder


def test_code_goes_when_a_source_changes_that_it_was_made_of_and_stays_when_none_does(tmp_path: Path) -> None:
    package = _package(tmp_path)
    assert forget_stale(package)
    compiled = package / "__pycache__" / "caller.py311.1.nbc"
    compiled.write_bytes(b"code")
    assert not forget_stale(package) and compiled.exists()
    (package / "apart.py").write_text("from features.caller import TWO as two\n")  # is not compiled, only calls it
    assert not forget_stale(package) and compiled.exists()
    (package / "inlined.py").write_text("ONE = 2\n")
    assert forget_stale(package) and not compiled.exists()
    assert not forget_stale(package)


def test_a_source_that_is_added_or_renamed_counts_too(tmp_path: Path) -> None:
    package = _package(tmp_path)
    assert forget_stale(package)
    (package / "inlined.py").rename(package / "moved.py")
    assert forget_stale(package)


def test_a_package_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__pycache__").write_text("a file where a directory should be")
    assert forget_stale(package)
    assert (package / "__pycache__").is_file()


def test_every_source_that_holds_a_compiled_function_counts() -> None:
    sources = {source.stem: source.read_bytes() for source in Path(features.__path__[0]).glob("*.py")}
    modules = [importlib.import_module(f"features.{name}") for name in sources if name != "__init__"]
    compiled = {
        module.__name__.rpartition(".")[2]
        for module in modules
        if any(isinstance(f, Dispatcher) and f.py_func.__module__ == module.__name__ for f in vars(module).values())
    }
    assert {"kernel", "event", "sources"} <= compiled <= _that_count(sources)
