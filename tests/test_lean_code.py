"""A worker keeps of a compiled function that comes from numba's cache only what runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stream.lean_code import NEEDED

_FUNCTIONS = """
from numba import njit

@njit(cache=True)
def doubled(x):
    return 2 * x

@njit
def doubled_and_one(x):
    return doubled(x) + 1
"""
_PROGRAM = """
from stream.lean_code import load_lean
load_lean()
from functions import doubled, doubled_and_one

assert doubled(4) == 8
(found,) = doubled.overloads.values()
print("from the cache:", sum(doubled.stats.cache_hits.values()), "kept:", found.library._shared_module is not None)
print("called by a function that is compiled now:", doubled_and_one(4))
"""


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NEEDED.items() for name in names])
def test_numba_has_the_private_names_that_are_relied_on(kind: type, name: str) -> None:
    assert hasattr(kind, name)


def test_a_function_from_the_cache_keeps_no_llvm_form_and_is_still_compiled_into_others(tmp_path: Path) -> None:
    (tmp_path / "functions.py").write_text(_FUNCTIONS)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run() -> list[str]:
        done = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True,
                              timeout=120, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    first, second = run(), run()
    assert first[0] == "from the cache: 0 kept: True"
    assert second[0] == "from the cache: 1 kept: False"
    assert first[1:] == second[1:] == ["called by a function that is compiled now: 9"]
