"""Compiled functions that make no arrays, and so count no references to them.

Else numba counts references to every array of every call that it inlines, and of each that stands in a tuple: dozens
of atomic additions for each operation, which took a third of the kernel's time and more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def counting_nothing(function: _Function, **more: Any) -> _Function:
    """Compile a function that makes no arrays; numba refuses one that does."""
    options: Any = {"cache": True, "nogil": True, "_nrt": False, **more}
    return cast(_Function, njit(**options)(function))


def kernel(function: _Function) -> _Function:
    """The same with numpy's divisions: of a float by zero is infinite or NaN, and no error."""
    return counting_nothing(function, error_model="numpy")


def kernel_part(function: _Function) -> _Function:
    """The same, and always inlined."""
    return counting_nothing(function, error_model="numpy", forceinline=True)
