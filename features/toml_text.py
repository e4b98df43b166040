"""TOML text to tables, without what its reader cannot hold. Pure."""

from __future__ import annotations

import re
import tomllib
from typing import Any

KEY_PARTS_MAX = 2000  # tomllib remembers each beginning of a key: of 100,000 parts it would take 40 GB
_SPACE, _ENDS = re.compile(r"[ \t]+"), re.compile(r"[\s=\[\]{},#]+")


def read_toml(text: str) -> dict[str, Any]:
    """The tables of a text.

    Raises
    ------
    ValueError
        If it is no TOML (:class:`tomllib.TOMLDecodeError`), holds a number or a key that is too long, or is nested too
        deeply.
    """
    if any(word.count(".") > KEY_PARTS_MAX for word in _ENDS.split(_SPACE.sub("", text))):
        raise ValueError(f"a key or value has more than {KEY_PARTS_MAX} dots")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None
