"""The ranking head: a deep part over the network's states and a wide part of smoothed means.

    logit = MLP([state; input]) + bias of the item + mean value of the user's actions so far

The wide part is ours. It gives the network, from its first step, the two means of a baseline: the
item's and the user's. A log's newest users have no training events, so the user's mean comes from
the events that the candidate sees, shrunk towards zero like a smoothed mean.

Shape legend (suffixes of names): T history rows, C candidates, V items, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.packed import Candidates, Packed
from hpgr.model.shapes import Float

PRIOR_EVENTS = 5.0  # of an item's mean; initial value of the learned prior of a user's mean


class RankingHead(nn.Module):
    """pCTR logits of candidates."""

    def __init__(self, dim: int, num_items: int, num_actions: int) -> None:
        super().__init__()
        self.deep = nn.Sequential(nn.Linear(2 * dim, dim), nn.SiLU(), nn.Linear(dim, 1))
        self.item_bias = nn.Parameter(torch.zeros(num_items))
        self.action_value = nn.Parameter(torch.zeros(num_actions))
        self.prior = nn.Parameter(torch.tensor(math.log(math.expm1(PRIOR_EVENTS))))
        self.scale = math.sqrt(dim)  # so that the user's scalars move as fast as vectors do

    @torch.no_grad()
    def start_from(self, events_V: Float[Tensor, "V"], positive_V: Float[Tensor, "V"]) -> None:
        """Set each item's bias to the smoothed log odds of its training events.

        Args:
            events_V: number of training events of each item, [V].
            positive_V: number of positive ones among them, [V].
        """
        common = (positive_V.sum() / events_V.sum().clamp_min(1)).clamp(1e-6, 1 - 1e-6)
        rate_V = (positive_V + PRIOR_EVENTS * common) / (events_V + PRIOR_EVENTS)
        self.item_bias.copy_(torch.logit(rate_V.clamp(1e-6, 1 - 1e-6)))

    def forward(
        self,
        state_CD: Float[Tensor, "C D"],
        entered_CD: Float[Tensor, "C D"],
        packed: Packed,
        candidates: Candidates,
    ) -> Float[Tensor, "C"]:
        """Compute the logits.

        Args:
            state_CD: output of the last block for the candidates, [C, D].
            entered_CD: their input to the first block, [C, D].
            packed: the histories.
            candidates: the visible rows of each.
        """
        value = functional.pad(self.action_value[packed.action], (1, 0)).cumsum(0)
        summed_C = value[candidates.end] - value[candidates.first]
        count_C = (candidates.end - candidates.first).to(summed_C.dtype)
        mean_C = summed_C / (count_C + functional.softplus(self.prior))
        wide_C = self.item_bias[candidates.item] + self.scale * mean_C
        return self.deep(torch.cat([state_CD, entered_CD], dim=-1)).squeeze(-1) + wide_C
