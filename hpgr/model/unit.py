"""Vectors of length one, with a backward pass of a few operations on a CPU.

Shape legend (suffixes of names): D width of a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpgr.model.shapes import Float

SHORTEST = 1e-12  # length that a shorter vector is divided by, as in torch


def unit(x: Float[Tensor, "*any D"]) -> Float[Tensor, "*any D"]:
    """Divide each vector along the last dimension by its L2 length; zero stays zero."""
    return _Unit.apply(x)


class _Unit(torch.autograd.Function):
    """The gradient of x / |x|: the part orthogonal to x of what comes back, over |x|."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[override]
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(SHORTEST)
        direction = x / length
        ctx.save_for_backward(direction, length)
        ctx.dtype = x.dtype
        return direction

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        direction, length = ctx.saved_tensors
        along = (grad * direction).sum(-1, keepdim=True)
        return torch.addcmul(grad, direction, along, value=-1).div_(length).to(ctx.dtype)
