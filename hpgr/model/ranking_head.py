"""The ranking head: a wide part that starts at a table of means, and a deep part that starts at 0.

    logit = bias of the item + evidence of the user + MLP([state; input; features])

With the preference read-out the evidence is its fold-in and its anchors; without it, the mean value
of the user's actions so far, shrunk towards zero. The last layer of the MLP starts at zero, so step
0 is a strong baseline and training leaves it upwards. A log's newest users have no training events,
so all evidence comes from the events that the candidate sees. Ours, not the paper's.

Shape legend (suffixes of names): T history rows, C candidates, V items, D width, F features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.catalogue import Catalogue
from hpgr.model.list_features import ListFeatures, log_odds
from hpgr.model.packed import Candidates, Packed
from hpgr.model.readout import PreferenceReadout
from hpgr.model.shapes import Float
from hpgr.model.standardise import Standardise
from hpgr.model.tastes import ItemFactors

PRIOR_EVENTS = 5.0  # of an item's mean; initial value of the learned prior of a user's mean
# Of the mean of an item in shown lists: where lists show an item a few times, its rate tells the
# label of each, and the rest of the head would learn that nothing else matters.
PRIOR_SHOWN = 100.0


class RankingHead(nn.Module):
    """pCTR logits of candidates."""

    def __init__(
        self, dim: int, num_items: int, num_actions: int, readout: PreferenceReadout | None = None
    ) -> None:
        super().__init__()
        self.dim, self.readout = dim, readout
        num_features = readout.num_features if readout else 0
        self.standardise = Standardise(num_features) if readout else None
        last = nn.Linear(2 * dim, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.deep = nn.Sequential(
            nn.Linear(2 * dim + num_features, 2 * dim),
            nn.SiLU(),
            nn.Linear(2 * dim, 2 * dim),
            nn.SiLU(),
            last,
        )
        self.lists: ListFeatures | None = None
        self.item_bias = nn.Parameter(torch.zeros(num_items))
        if readout is None:
            self.action_value = nn.Parameter(torch.zeros(num_actions))
            self.prior = nn.Parameter(torch.tensor(math.log(math.expm1(PRIOR_EVENTS))))
            self.scale = math.sqrt(dim)  # so that the user's scalars move as fast as vectors do

    def add_lists(self) -> None:
        """Let the head read the features of shown lists; what it has stays as it is."""
        self.lists = ListFeatures(2 * self.dim)

    def start_places(self, shown_P: Float[Tensor, "P"], taken_P: Float[Tensor, "P"]) -> None:
        """Start at the shares taken at each place; see `ListFeatures.start_from`."""
        assert self.lists is not None
        self.lists.start_from(shown_P, taken_P)

    @torch.no_grad()
    def start_from(
        self,
        events_V: Float[Tensor, "V"],
        positive_V: Float[Tensor, "V"],
        factors: ItemFactors | None,
    ) -> None:
        """Set each item's bias: to what the fit says, else to the smoothed log odds of its counts.

        The fit's biases are of values, at equal tastes; the items' likes also tell who met them.
        What was shown has a label of its own, of which the fit says nothing.

        Args:
            events_V: number of training events of each item, [V].
            positive_V: number of positive ones among them, [V].
            factors: start of the read-out; None leaves it random.
        """
        if self.readout is not None and factors is not None:
            self.readout.start_from(factors)
            if self.lists is None:
                common = (positive_V.sum() / events_V.sum().clamp_min(1)).clamp(1e-6, 1 - 1e-6)
                self.item_bias.copy_(torch.logit(common) + self.readout.log_odds(factors.bias))
                return
        prior = PRIOR_EVENTS if self.lists is None else PRIOR_SHOWN
        self.item_bias.copy_(log_odds(events_V, positive_V, prior))

    def forward(
        self,
        state_CD: Float[Tensor, "C D"],
        entered_CD: Float[Tensor, "C D"],
        packed: Packed,
        candidates: Candidates,
        anchors: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "C"]:
        """Compute the logits.

        Args:
            state_CD: output of the last block for the candidates, [C, D].
            entered_CD: their input to the first block, [C, D].
            packed: the histories.
            candidates: the visible rows of each.
            anchors: rows [C, A] and cosines [C, A] for the read-out; None: it selects its own.
        """
        width = state_CD.shape[-1:]
        deep = [functional.layer_norm(x, width) for x in (state_CD, entered_CD)]
        if self.readout is not None and self.standardise is not None:
            anchors = anchors or self.readout.select(packed, candidates)
            evidence = self.readout(packed, candidates, *anchors)
            user_C = evidence.logit
            deep.append(self.standardise(evidence.features))
        else:
            user_C = self._mean_value(packed, candidates)
        first, *others = self.deep
        hidden, wide_C = first(torch.cat(deep, dim=-1)), self.item_bias[candidates.item] + user_C
        if self.lists is not None:
            place_C, of_list = self.lists(packed, candidates)
            hidden, wide_C = hidden + of_list, wide_C + place_C
        for layer in others:
            hidden = layer(hidden)
        return hidden.squeeze(-1) + wide_C

    def _mean_value(self, packed: Packed, candidates: Candidates) -> Tensor:
        """Shrunk mean value of the actions that each candidate sees, [C]."""
        value = functional.pad(self.action_value[packed.action], (1, 0)).cumsum(0)
        summed_C = value[candidates.end] - value[candidates.first]
        count_C = (candidates.end - candidates.first).to(summed_C.dtype)
        return self.scale * summed_C / (count_C + functional.softplus(self.prior))


def ranking_head(
    settings: Any,
    catalogue: Catalogue,
    *,
    ranking: bool,
    num_anchors: int,
    categories: bool = False,
) -> RankingHead:
    """Make the head that the section `model` asks for; `categories` may choose its anchors."""
    readout = None
    if settings.readout and ranking:
        readout = PreferenceReadout(
            catalogue.num_items,
            catalogue.num_actions,
            settings.factors,
            num_anchors=num_anchors,
            num_categories=catalogue.num_categories if categories else 0,
        )
    return RankingHead(settings.dim, catalogue.num_items, catalogue.num_actions, readout)
