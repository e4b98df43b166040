"""The settings of ``[ab]``: two ways to recommend side by side. See :mod:`stream.settings` for how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta


@dataclass(frozen=True, slots=True, kw_only=True)
class AbSettings:
    """A ``share`` of 0 is no experiment. ``model`` is a version or a directory, for B.

    ``levers``, ``recommendations_k`` and ``online_learning`` are those of B, in the place of the worker's.
    """

    name: Annotated[str, Meta(min_length=1)] = "ab"
    share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    by: Literal["session", "user"] = "session"
    model: Annotated[str, Meta(min_length=1)] | None = None
    ranker: bool = True
    levers: Path | None = None
    recommendations_k: Annotated[int, Meta(ge=1, le=1000)] | None = None
    online_learning: bool | None = None
    window_s: Annotated[float, Meta(gt=0, le=31_536_000)] = 1800.0
    alpha: Annotated[float, Meta(gt=0, lt=1)] = 0.05
