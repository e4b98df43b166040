"""The child of :mod:`fuzz`: ``python -m fuzz.search TARGET CORPUS... -OPTION...``, as libFuzzer takes them."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

# Numba cannot read instrumented functions, so what it compiles is run without.
_COMPILED = [f"features.{path.stem}" for path in Path("features").glob("*.py") if "njit" in path.read_text("utf-8")]

with atheris.instrument_imports(include=["features", "tomllib", "json"], exclude=_COMPILED):
    from fuzz.targets import TARGETS

if __name__ == "__main__":
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()
