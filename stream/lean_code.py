"""Compiled code without what it was compiled from: numba keeps LLVM's form of each function that its cache gives.

That form serves to compile others that call the function, which a worker hardly ever does, and takes 20 MB. It is kept
as bytes instead, and built again for the function that is asked for. In: numba's private
names, which ``tests/test_lean_code.py`` pins; a version without them keeps everything. No state of its own.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen

NEEDED = {
    JITCPUCodegen: ("_library_class",),
    JITCodeLibrary: ("_unserialize", "_get_module_for_linking"),
}


class _Lean(JITCodeLibrary):
    _bitcode = b""

    @classmethod
    def _unserialize(cls, codegen: Any, state: tuple[str, str, Any]) -> Any:
        library = super()._unserialize(codegen, state)  # type: ignore[no-untyped-call]
        _, kind, data = state
        if kind == "object":
            library._shared_module, library._bitcode = None, data[1]
        return library

    def _get_module_for_linking(self) -> Any:
        if self._shared_module is None and self._bitcode:
            self._shared_module, self._bitcode = binding.parse_bitcode(self._bitcode), b""
        return super()._get_module_for_linking()  # type: ignore[no-untyped-call]


def load_lean() -> None:
    """Have numba load functions without LLVM's form of them from now on."""
    if all(hasattr(kind, name) for kind, names in NEEDED.items() for name in names):
        JITCPUCodegen._library_class = _Lean
