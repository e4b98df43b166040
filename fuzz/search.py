"""The child of :mod:`fuzz`: ``python -m fuzz.search TARGET CORPUS... -OPTION...``, as libFuzzer takes them."""

from __future__ import annotations

import sys

import atheris

# Not what numba compiles: it cannot read instrumented functions.
with atheris.instrument_imports(include=["features.checks", "features.decode", "features.schema", "tomllib", "json"]):
    from fuzz.targets import TARGETS

if __name__ == "__main__":
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()
