"""Features at mean 0 and variance 1.

Shape legend (suffixes of names): C candidates, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpgr.model.shapes import Float

CLIP = 6.0  # standard deviations
MOMENTUM = 0.02  # of the running mean and variance of the features


class Standardise(nn.Module):
    """Features at mean 0 and variance 1, by the batch in training and by its running average after.

    The averages are parameters without a gradient: a warm start keeps them.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_features), requires_grad=False)
        self.variance = nn.Parameter(torch.ones(num_features), requires_grad=False)
        self.seen = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x_CF: Float[Tensor, "C F"]) -> Float[Tensor, "C F"]:
        """Standardise and clip the rows."""
        mean: Tensor = self.mean
        variance: Tensor = self.variance
        if self.training and len(x_CF) > 1:
            mean, variance = x_CF.mean(0), x_CF.var(0, correction=0)
            with torch.no_grad():
                share = torch.clamp(1 / (self.seen + 1), min=MOMENTUM)
                self.mean.lerp_(mean, share)
                self.variance.lerp_(variance, share)
                self.seen.add_(1)
        return ((x_CF - mean) / (variance + 1e-6).sqrt()).clamp(-CLIP, CLIP)
