"""Tensors that say they are on a CUDA device and are computed on the CPU, by CUDA's rules.

The rules kept are those that code written on a CPU breaks: an operation takes tensors of one device
(numbers without a dimension, and indices into a tensor of the device, may stay behind), matrices of
integers are not multiplied but by `_int_mm`, in its sizes, and nothing becomes NumPy's before it is
brought back. What kernels of a real device do (their rounding, memory, speed) is not seen here, nor
what copies storages instead of tensors, as the background writing of checkpoints does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")

_aten = torch.ops.aten
_MOVES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
_TO_THE_HOST = {_aten._local_scalar_dense.default, _aten.equal.default}
_PRODUCTS = {
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten.baddbmm.default,
    _aten.mv.default,
    _aten.dot.default,
}


class PretendedTensor(Tensor):
    """A tensor of the CPU under the name of another device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendedTensor:
        # made in inference mode it could be given no version, and views of weights want one
        with torch.inference_mode(False):
            made: PretendedTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                layout=inner.layout,
                device=DEVICE,
            )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendedTensor({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"{DEVICE} is not the host: use Tensor.cpu() first")
        return self.inner.numpy(force=True)


class Pretending(TorchDispatchMode):
    """Tensors made on `cuda`, or moved there, are `PretendedTensor`s."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # what is not derived by itself falls apart here: in inference mode it comes whole
        if func._can_decompose():
            with self:
                found = func.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func is _aten._fused_sdp_choice.default:
        return 0  # the form of plain products: fused kernels have names that the CPU does not know
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    _refuse_what_cuda_refuses(func, args, given)
    is_there = any(map(_is_pretended, given))
    if func in _INDEXED or func is _aten.copy_.default:
        is_there = _is_pretended(args[0])
    if func in _TO_THE_HOST:
        is_there = False
    if (asked := kwargs.get("device")) is not None:
        is_there = torch.device(asked).type == DEVICE.type
        kwargs = {**kwargs, "device": CPU if is_there else asked}
    found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not is_there:
        return found
    found = tree_map(_outer, found)
    if any(
        one.alias_info is not None and one.alias_info.is_write for one in func._schema.arguments
    ):
        return return_and_correct_aliasing(func, args, kwargs, found)
    return found


def _refuse_what_cuda_refuses(func: Any, args: tuple[Any, ...], given: list[Tensor]) -> None:
    there = [tensor for tensor in given if _is_pretended(tensor)]
    here = [tensor for tensor in given if not _is_pretended(tensor) and tensor.dim()]
    if not there:
        return
    if func in _INDEXED:
        beside = [args[0], *args[2:3]]  # what is indexed, and what is put there
        mixed = len({_is_pretended(one) for one in beside if one is args[0] or one.dim()}) > 1
        mixed = mixed or not _is_pretended(args[0])
    else:
        mixed = bool(here) and func not in _MOVES
    if mixed:
        stayed = [tuple(tensor.shape) for tensor in here]
        raise RuntimeError(f"{func}: tensors of {DEVICE} and, of shape {stayed}, of the CPU")
    if func in _PRODUCTS and not there[0].is_floating_point():
        raise RuntimeError(f"{func} is not implemented on {DEVICE} for {there[0].dtype}")
    if func is _aten._int_mm.default:
        (rows, inside), (_, columns) = args[0].shape, args[1].shape
        if rows <= 16 or inside % 8 or columns % 8:
            raise RuntimeError(f"{func} does not take {rows}x{inside} by {inside}x{columns}")


def _is_pretended(value: Any) -> bool:
    return isinstance(value, PretendedTensor)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, PretendedTensor) else value


def _outer(value: Any) -> Any:
    is_plain = isinstance(value, Tensor) and not isinstance(value, PretendedTensor)
    return PretendedTensor(value) if is_plain else value
