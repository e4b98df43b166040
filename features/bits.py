"""Machine instructions that compiled Python cannot say. Used inside compiled code only."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import raw_memcpy
from numba.core.errors import TypingError
from numba.extending import intrinsic


def _lowest_bit(_: Any, bits: Any) -> Any:
    """Position of the lowest set bit of an integer that is not 0; int64."""

    def build(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), build


def _prefetch(_: Any, array: Any, index: Any) -> Any:
    """Begin to bring the cache line of ``array[index]`` near, and do not wait; the index must lie inside."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        call = builder.module.declare_intrinsic("llvm.prefetch", (byte,), function)
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        builder.call(call, [pointer, *(ir.Constant(word, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), build


def _copy_bytes(_: Any, out: Any, at: Any, data: Any, start: Any, size: Any) -> Any:
    """Copy ``size`` bytes (0 or more) from ``data[start]`` on to ``out[at]``, both inside and apart; returns their end.

    A loop over bytes makes one at a time: it has to heed that indices may be negative and that the two may overlap.
    Arrays of bytes in C order, counted flat.
    """
    for array in (out, data):
        if array.layout != "C" or array.dtype.bitwidth != 8:
            raise TypingError(f"copy_bytes takes arrays of bytes in C order, not {array}")

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        into, at, origin, start, size = arguments
        target = builder.gep(context.make_array(signature.args[0])(context, builder, into).data, [at])
        source = builder.gep(context.make_array(signature.args[2])(context, builder, origin).data, [start])
        raw_memcpy(builder, target, source, size, 1)  # type: ignore[no-untyped-call]
        return builder.add(at, size)

    return types.int64(out, types.int64, data, types.int64, types.int64), build


def _float_bits(_: Any, value: Any) -> Any:
    """The 64 bits of a float64 as an int64."""

    def build(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), build


def _bits_float(_: Any, bits: Any) -> Any:
    """The float64 of 64 bits in an int64."""

    def build(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), build


# Untyped for the checker: compiled code calls them without the typing context.
lowest_bit: Any = intrinsic(_lowest_bit)
prefetch: Any = intrinsic(_prefetch)
copy_bytes: Any = intrinsic(_copy_bytes)
float_bits: Any = intrinsic(_float_bits)
bits_float: Any = intrinsic(_bits_float)
