"""The faults by number. One function is one fault: its first docstring line is its title, its argument a round.

To add one, write the function in a module of :mod:`chaos.faults` under :func:`fault`; nothing else names it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaos.play import Round

Play = Callable[["Round"], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault. ``short``: part of the selection of ``make test``. ``once``: one round, whatever was asked."""

    number: int
    title: str
    play: Play
    short: bool
    once: bool


_FAULTS: dict[int, Fault] = {}


def fault(number: int, *, short: bool = False, once: bool = False) -> Callable[[Play], Play]:
    """Register a function as the fault of this number.

    Raises
    ------
    ValueError
        If the number is taken.
    """

    def register(play: Play) -> Play:
        if number in _FAULTS:
            raise ValueError(f"fault {number} is registered twice: {_FAULTS[number].title}")
        title = (play.__doc__ or "").splitlines()[0].rstrip(".")
        _FAULTS[number] = Fault(number, title, play, short, once)
        return play

    return register


def faults() -> dict[int, Fault]:
    """All faults by number."""
    package = importlib.import_module("chaos.faults")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"chaos.faults.{module.name}")
    return dict(sorted(_FAULTS.items()))
