"""Number types under autocast: which parts keep float32, and the type of an attention's products.

autocast decides by operation, and differently on a CPU and on CUDA. Where a result must not depend
on that (logits that are exponentiated, sums over many rows, what a custom backward pass recomputes)
the code says its types itself.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def autocast_off(x: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of `x`; types are then as the code gives them."""
    if not torch.amp.is_autocast_available(x.device.type):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product_type(*factors: Tensor) -> torch.dtype:
    """Autocast's type where it is on, else the widest of the factors'."""
    kind = factors[0].device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    dtype = factors[0].dtype
    for factor in factors[1:]:
        dtype = torch.promote_types(dtype, factor.dtype)
    return dtype
