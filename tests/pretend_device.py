"""A second device on any machine: tensors that say they are elsewhere and compute on the CPU.

Everything that a real device refuses is refused: an operation on tensors of both places (numbers
apart), and reading one as numpy. The name is torch's `meta`, the only device without hardware that
autograd knows.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Elsewhere(torch.Tensor):
    """A tensor on the second device; its numbers lie in `inner`."""

    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=ELSEWHERE,
            requires_grad=requires_grad,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """While it is active, what is made on ELSEWHERE is an `Elsewhere`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = any(isinstance(x, Elsewhere) for x in tensors)
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.dim()]
    if there and here and func not in MOVES:
        raise RuntimeError(f"{func}: tensors on two devices")
    asked = kwargs.get("device")
    goes_there = there if asked is None else torch.device(asked) == ELSEWHERE
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain = tree_map(
        lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs)
    )
    out = func(*plain_args, **plain)
    if func is torch.ops.aten.copy_.default:
        return args[0]
    if func is torch.ops.aten._to_copy.default and out.data_ptr() == plain_args[0].data_ptr():
        out = out.clone()
    if not goes_there:
        return out
    wrapped = tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped
