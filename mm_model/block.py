"""Comparing and copying blocks of bytes in compiled code, as fast as the C library does.

A store of a whole page is mostly its bytes. Loops over bytes come out of the compiler several times
slower than ``memcmp`` and ``memcpy``, which it can call as well.

A small store to a page that nobody looked at lately is mostly waiting for memory: `fetch_early`
asks for what a later store will need.
"""

from __future__ import annotations

from typing import Any

import numba as _numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from mm_model.state import Int

numba: Any = _numba

if numba.config.DISABLE_JIT:

    def same_bytes(
        here: NDArray[np.uint8], at: Int, there: NDArray[np.uint8], start: Int, size: Int
    ) -> bool:
        """Whether ``size`` bytes at ``here.flat[at]`` equal those at ``there.flat[start]``."""
        one, other = here.reshape(-1)[at : at + size], there.reshape(-1)[start : start + size]
        return bool(np.array_equal(one, other))

    def copy_bytes(
        here: NDArray[np.uint8], at: Int, there: NDArray[np.uint8], start: Int, size: Int
    ) -> None:
        """Put ``size`` bytes at ``there.flat[start]`` to ``here.flat[at]``; they do not overlap."""
        here.reshape(-1)[at : at + size] = there.reshape(-1)[start : start + size]

    def fetch_early(array: NDArray[Any], at: Int) -> None:
        """Ask for ``array.flat[at]``, to be written soon; nothing is read."""

else:
    _BYTE = ir.IntType(8).as_pointer()
    _SIZE = ir.IntType(64)

    def _call(name: str, result: Any) -> Any:
        """Code that calls a C function of two blocks and a size."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def pointer(array: int, offset: int) -> Any:
                made = context.make_array(signature.args[array])(context, builder, arguments[array])
                data = builder.bitcast(made.data, _BYTE)
                return builder.gep(data, [arguments[offset]])

            kind = ir.FunctionType(result, [_BYTE, _BYTE, _SIZE])
            function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            return builder.call(function, [pointer(0, 1), pointer(2, 3), arguments[4]])

        return generate

    def _signature(result: Any, here: Any, there: Any) -> Any:
        integer = numba.types.int64
        return result(here, integer, there, integer, integer)

    @intrinsic
    def same_bytes(
        typing_context: Any, here: Any, at: Any, there: Any, start: Any, size: Any
    ) -> Any:
        """Whether ``size`` bytes at ``here.flat[at]`` equal those at ``there.flat[start]``."""
        compare = _call("memcmp", ir.IntType(32))

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found = compare(context, builder, signature, arguments)
            return builder.icmp_signed("==", found, ir.IntType(32)(0))

        return _signature(numba.types.boolean, here, there), generate

    @intrinsic
    def copy_bytes(
        typing_context: Any, here: Any, at: Any, there: Any, start: Any, size: Any
    ) -> Any:
        """Put ``size`` bytes at ``there.flat[start]`` to ``here.flat[at]``; they do not overlap."""
        copy = _call("memcpy", _BYTE)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            copy(context, builder, signature, arguments)
            return context.get_dummy_value()

        return _signature(numba.types.void, here, there), generate

    @intrinsic
    def fetch_early(typing_context: Any, array: Any, at: Any) -> Any:
        """Ask for ``array.flat[at]``, to be written soon; nothing is read.

        ``at`` may be anything: the processor asks for no memory that there is not.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            made = context.make_array(signature.args[0])(context, builder, arguments[0])
            place = builder.bitcast(builder.gep(made.data, [arguments[1]]), _BYTE)
            number = ir.IntType(32)
            prefetch = builder.module.declare_intrinsic(
                "llvm.prefetch",
                [_BYTE],
                ir.FunctionType(ir.VoidType(), [_BYTE, number, number, number]),
            )
            builder.call(prefetch, [place, number(1), number(3), number(1)])  # data, to be written
            return context.get_dummy_value()

        return numba.types.void(array, numba.types.int64), generate
