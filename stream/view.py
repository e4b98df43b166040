"""placeholder"""
from __future__ import annotations
from contextlib import contextmanager
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stream.answers import AnswerCounter
from stream.replay import Sent
from stream.scrape import Page
from stream.settings import Settings


@dataclass(frozen=True, slots=True)
class Glance:
    """What the view looks at."""

    settings: Settings
    directory: Path
    rate: float
    total: int
    sent: Sent
    counter: AnswerCounter


@contextmanager
def make_view(glance: Glance, items: Path | None, *, as_json: bool) -> Iterator[Callable[[Page | None], None]]:
    yield lambda page: None
