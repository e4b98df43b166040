"""Compiled code follows its sources: numba looks at the file of a function, not at those whose functions it inlined.

In: the sources of this package that are compiled, and those that they import: numba takes functions and constants from
them. Out: caches without code that another version of them has made. Runs once a process, before anything is compiled
or loaded; a directory that cannot be written is left as it is.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path

_STAMP = "sources.sha256"
_COMPILED = re.compile(rb"^(?:from|import) (?:numba|features\.uncounted)\b", re.MULTILINE)
_IMPORTED = re.compile(rb"^from (?:\w+\.)?(\w+) import (?:\(([^)]*)\)|(.*))$", re.MULTILINE)


def forget_stale(package: Path) -> bool:
    """Remove the compiled code beside a package's sources if these are not those that it was made of; whether so."""
    sources = {source.stem: source.read_bytes() for source in package.glob("*.py")}
    digest = hashlib.sha256()
    for name in sorted(_that_count(sources)):
        digest.update(name.encode() + b"\0" + sources[name])
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


def _that_count(sources: dict[str, bytes]) -> set[str]:
    """The modules that are compiled and all that they import from the package, directly or not."""
    counted: set[str] = set()
    rest = [name for name, text in sources.items() if _COMPILED.search(text)]
    while rest:
        name = rest.pop()
        if name in counted:
            continue
        counted.add(name)
        for module, several, line in _IMPORTED.findall(sources[name]):
            words = {module, *re.findall(rb"\w+", several or line)}
            rest += [word.decode() for word in words if word.decode() in sources]
    return counted
