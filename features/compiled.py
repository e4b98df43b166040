"""Compiled code follows its sources: numba looks at the file of a function, not at those whose functions it inlined.

In: the sources of this package. Out: caches without code that another version of them has made. Runs once a process,
before anything is compiled or loaded; a directory that cannot be written is left as it is.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

_STAMP = "sources.sha256"


def forget_stale(package: Path) -> bool:
    """Remove the compiled code beside a package's sources if these are not those that it was made of; whether so."""
    digest = hashlib.sha256()
    for source in sorted(package.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    cache = package / "__pycache__"
    stamp, found = cache / _STAMP, digest.hexdigest()
    with suppress(OSError):
        if stamp.exists() and stamp.read_text(encoding="ascii") == found:
            return False
        cache.mkdir(exist_ok=True)
        for file in [*cache.glob("*.nbi"), *cache.glob("*.nbc")]:
            file.unlink(missing_ok=True)  # another process may do the same
        stamp.write_text(found, encoding="ascii")
    return True
