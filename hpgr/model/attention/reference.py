"""The additive attention over the whole matrix: the oracle that the tests compare with.

Shape legend (suffixes of names): Q queries, K keys, H heads, d width of a head's queries and keys,
e of its values.
"""

from __future__ import annotations

from torch import Tensor, einsum
from torch.nn import functional

from hpgr.model.shapes import Bool, Float


def dense_attention(
    q_QHd: Float[Tensor, "Q H d"],
    k_KHd: Float[Tensor, "K H d"],
    v_KHe: Float[Tensor, "K H e"],
    *,
    visible: Bool[Tensor, "Q K"],
    bias: Float[Tensor, "Q K"],
    weight: Float[Tensor, "Q K"] | None = None,
    exponential: bool = False,
) -> Float[Tensor, "Q H e"]:
    """Compute the sum eagerly over the whole Q x K matrix.

    Args:
        q_QHd: [Q, H, d].
        k_KHd: [K, H, d].
        v_KHe: [K, H, e].
        visible: bool [Q, K].
        bias: [Q, K], added to every head's scores.
        weight: [Q, K], multiplies f(score).
        exponential: f is exp instead of SiLU.
    """
    scores_HQK = einsum("qhd,khd->hqk", q_QHd, k_KHd) + bias
    active_HQK = scores_HQK.exp() if exponential else functional.silu(scores_HQK)
    active_HQK = active_HQK * visible
    if weight is not None:
        active_HQK = active_HQK * weight
    return einsum("hqk,khd->qhd", active_HQK, v_KHe)
