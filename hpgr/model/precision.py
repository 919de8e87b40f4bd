"""Number types under autocast: which parts keep float32, and the type of an attention's products.

autocast decides by operation, and differently on a CPU and on CUDA. Where a result must not depend
on that (logits that are exponentiated, sums over many rows, scores that a custom backward pass
recomputes) the code sets the types itself.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from functools import reduce

import torch
from torch import Tensor


def autocast_off(x: Tensor) -> AbstractContextManager:
    """Return a context without autocast on the device of `x`: the code decides the types."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def wide(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged if its type is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product_type(*factors: Tensor) -> torch.dtype:
    """Return autocast's type if it is on, else the widest type of the factors."""
    kind = factors[0].device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return reduce(torch.promote_types, [factor.dtype for factor in factors])
