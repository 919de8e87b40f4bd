"""Dropout that is cheap on a CPU: eight masks from one random number.

torch draws one number an element on one thread, which took a tenth of a training step. On other
devices this is torch's own dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.shapes import Float


def dropout(x: Float[Tensor, "*any"], share: float, training: bool) -> Float[Tensor, "*any"]:
    """Zero a `share` of the elements of `x` and scale up the rest, when `training`.

    On a CPU the share is rounded to a 256th and the scale follows the rounded share.
    """
    if not training or share == 0.0:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, share, training)
    cut = round(share * 256)
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= cut
    return x * kept.to(x.dtype).mul_(256 / (256 - cut))


class Dropout(nn.Module):
    """The function above as a layer."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Zero a share of the elements in training."""
        return dropout(x, self.share, self.training)
