"""The additive attention over the whole matrix: the oracle that the tests compare with.

Shape legend: Q queries, K keys, H heads, D width of a head.
"""

from __future__ import annotations

from torch import Tensor, einsum
from torch.nn import functional

from hpgr.model.shapes import Bool, Float


def dense_attention(
    q: Float[Tensor, "Q H D"],
    k: Float[Tensor, "K H D"],
    v: Float[Tensor, "K H Dv"],
    *,
    visible: Bool[Tensor, "Q K"],
    bias: Float[Tensor, "Q K"],
    weight: Float[Tensor, "Q K"] | None = None,
    exponential: bool = False,
) -> Float[Tensor, "Q H Dv"]:
    """Compute the sum eagerly over the whole Q x K matrix.

    Args:
        q: [Q, H, D].
        k: [K, H, D].
        v: [K, H, Dv].
        visible: bool [Q, K].
        bias: [Q, K], added to every head's scores.
        weight: [Q, K], multiplies f(score).
        exponential: f is exp instead of SiLU.
    """
    scores = einsum("qhd,khd->hqk", q, k) + bias
    active = scores.exp() if exponential else functional.silu(scores)
    active = active * visible
    if weight is not None:
        active = active * weight
    return einsum("hqk,khd->qhd", active, v)
