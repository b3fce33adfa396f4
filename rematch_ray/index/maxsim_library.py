"""The compiled 8-bit MaxSim library: finding it, and what it can run here.

`_maxsim.c` is built with the package where there is a C compiler; without one everything here says
so and `maxsim_int8` serves from its fallback. Knows nothing of documents. Middle floor.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rematch_ray.index.maxsim_device import Held

MODULE = "rematch_ray.index._maxsim"
# fastest first; which of them a machine has, the library says
PATHS = ("avx512vnni", "avx2", "c")
# those that read float16 faster than numpy does
EXACT_PATHS = PATHS[:1]
# part of every symbol: a library built from older sources counts as none at all
_PREFIX = "maxsim_int8_5_"
_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_NOTHING = ctypes.c_char * 0
_ARGUMENTS = {
    "has": (ctypes.c_char_p,),
    "carry": (
        *(ctypes.c_char_p, _POINTER, _INT, _INT, _POINTER, _POINTER, _INT),
        *(_POINTER, _LONG, _POINTER, _LONG),
    ),
    "mean": (_POINTER, _LONG, _LONG, _POINTER, _INT, _POINTER),
    "best": (
        *(ctypes.c_char_p, _POINTER, _INT, _INT, _INT, _POINTER, _INT, _POINTER, _LONG),
        *(_POINTER, _POINTER, _LONG, _POINTER, _POINTER, _POINTER, _POINTER),
    ),
    "rough": (
        *(ctypes.c_char_p, _POINTER, _INT, _LONG, _POINTER, _POINTER, ctypes.c_float),
        *(ctypes.c_float, _POINTER, _LONG, _POINTER, _POINTER, _POINTER),
    ),
    "climb": (
        *(ctypes.c_char_p, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT),
        *(_POINTER, _POINTER, _LONG, _POINTER, _POINTER, _POINTER),
    ),
    "code": (_POINTER, _LONG, _INT, *5 * (_POINTER,)),
    "certify": (
        *(ctypes.c_char_p, _POINTER, _INT, _INT, _POINTER, _INT, _POINTER, _POINTER),
        *(_POINTER, _POINTER, _LONG, _LONG, _LONG, *3 * (ctypes.c_double,), *3 * (_POINTER,)),
    ),
    "exact": (*(ctypes.c_char_p, _POINTER, _INT, _INT, _POINTER, _INT, _POINTER, _LONG, _POINTER),),
}


@dataclass(frozen=True)
class Vectors:
    """One plane as the kernel reads it.

    Args:
        values: (N, n, D) codes + 128 as uint8, or originals as float16; packed, what
            `quantisation.pack` makes of (N, 1, D) codes.
        scales: (N, n) float32 of codes; None of originals.
        is_packed: whether values are packed.
        device: of torch, where codes are to be held and scored; None: the CPU, where they lie.
        file: of all the codes, which several generations may have open: they are copied once.
    """

    values: NDArray[Any]
    scales: NDArray[np.float32] | None = None
    is_packed: bool = False
    device: str | None = None
    file: Path | None = None

    @functools.cached_property
    def held(self) -> Held:
        """The codes on the device, copied when first asked for.

        Raises:
            UserError: they do not fit there.
        """
        from rematch_ray.index.maxsim_device import hold

        return hold(self)

    @functools.cached_property
    def described(self) -> tuple[int, int, int, int]:
        """Addresses, vectors per document and form, as `struct plane` has them."""
        scales = 0 if self.scales is None else address(self.scales)
        return address(self.values), scales, self.values.shape[1], int(self.is_packed)


@functools.cache
def functions() -> dict[str, Callable[..., int]] | None:
    """What the library does, by name; None where it is not built, or from other sources."""
    found = importlib.util.find_spec(MODULE)
    if found is None or found.origin is None:
        return None
    library: Any = ctypes.CDLL(found.origin)
    if not all(hasattr(library, _PREFIX + name) for name in _ARGUMENTS):
        return None
    found_functions = {name: library[_PREFIX + name] for name in _ARGUMENTS}
    for name, function in found_functions.items():
        function.argtypes, function.restype = _ARGUMENTS[name], _INT
    found_functions["mean"].restype = found_functions["code"].restype = None
    return found_functions


def is_built() -> bool:
    """Whether the compiled kernel is there."""
    return functions() is not None


@functools.cache
def compiled_paths() -> tuple[str, ...]:
    """Which instruction sets of the compiled kernel this machine can run, fastest first."""
    known = functions()
    if known is None:
        return ()
    return tuple(path for path in PATHS if known["has"](path.encode()))


def check(status: int, path: str, shape: tuple[int, ...]) -> None:
    """MemoryError where a call had none; any other status is a mistake of ours."""
    if status == 1:
        raise MemoryError(f"no memory to lay out a query of shape {shape}")
    assert status == 0, (status, path)


def address(array: NDArray[Any]) -> int:
    """Where the entries of an array lie; it has to be kept for as long as they are read."""
    # what numpy offers builds objects each time: microseconds, for calls that take tens of them
    try:
        return ctypes.addressof(_NOTHING.from_buffer(cast("Any", array)))
    except (TypeError, ValueError, BufferError):
        # one that cannot be written to, or whose entries do not lie side by side
        return int(array.__array_interface__["data"][0])
