"""Features of the ranking head for items of shown lists: the place in the list, and repeats.

Place: number of items that were shown before the candidate. People take what stands on top, so a
head that does not know the place learns it as a taste. As in the shallow tower of YouTube (Zhao et
al., "Recommending What Video to Watch Next", RecSys 2019) the place adds to the logit and is left
out of a share of training lists. A row of its own stands for a place that is not known: serving
ranks before anything is shown. The place also as an input of the MLP was worth nothing
(docs/model.md).

Repeats: whether the user met this very item before, how often and how many events ago. A state that
names the next item holds them too, but it was trained on what followed training lists, so that
there it tells the answer; a count cannot be learned by heart.

Shape legend (suffixes of names): T history rows, C candidates, P places, F features, W width of the
head's hidden layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpgr.data.log import FIRST_ITEM
from hpgr.model.cross_features import Keys, Matches
from hpgr.model.packed import Candidates, Packed
from hpgr.model.shapes import Float
from hpgr.model.standardise import Standardise

NUM_PLACES = 64  # places beyond count as the last one
NUM_REPEATS = 4
PRIOR_PLACE = 5.0  # items, of the share taken at a place


class ListFeatures(nn.Module):
    """A wide and a deep part of the head's logit for items of shown lists."""

    def __init__(self, width: int) -> None:
        """`width` is that of the head's hidden layer."""
        super().__init__()
        # Row 0 is the place that is not known.
        self.bias = nn.Parameter(torch.zeros(NUM_PLACES + 1))
        self.standardise = Standardise(NUM_REPEATS)
        self.deep = nn.Linear(NUM_REPEATS, width, bias=False)

    @torch.no_grad()
    def start_from(self, shown_P: Float[Tensor, "P"], taken_P: Float[Tensor, "P"]) -> None:
        """Start each place's bias at the log odds of its training items, beyond those of all.

        Args:
            shown_P: number of training items at each place, [NUM_PLACES].
            taken_P: how many of them were taken.
        """
        common = log_odds(shown_P.sum(), taken_P.sum(), 1.0)
        self.bias[1:] = log_odds(shown_P, taken_P, PRIOR_PLACE) - common

    def forward(
        self, packed: Packed, candidates: Candidates
    ) -> tuple[Float[Tensor, "C"], Float[Tensor, "C W"]]:
        """Compute a part of the logit [C], and one of the hidden layer before its SiLU [C, W]."""
        place_C = (candidates.place + 1).clamp(0, NUM_PLACES)
        repeats_CF = self.standardise(repeats(packed, candidates).to(self.bias.dtype))
        return self.bias[place_C], self.deep(repeats_CF)


def log_odds(count: Tensor, positive: Tensor, prior: float) -> Tensor:
    """Log odds of the shares positive / count, drawn to that of all with the weight of `prior`."""
    common = (positive.sum() / count.sum().clamp_min(1)).clamp(1e-6, 1 - 1e-6)
    return torch.logit(((positive + prior * common) / (count + prior)).clamp(1e-6, 1 - 1e-6))


@torch.no_grad()
def repeats(packed: Packed, candidates: Candidates) -> Float[Tensor, "C F"]:
    """Compute of each candidate, float64: known, log(1 + times met), met, 1 / age of the newest.

    The age of the newest event that the candidate sees is 1. An item that the catalogue does not
    know is nowhere met: unknown items are not one and the same.
    """
    known_C = candidates.item >= FIRST_ITEM
    row_T, row_C = (torch.arange(len(x), device=x.device) for x in (packed.item, candidates.item))
    asked = Keys(row_C, torch.where(known_C, candidates.item, -1))
    matches = Matches(Keys(row_T, packed.item), asked, packed, candidates)
    times_C = matches.sums(torch.ones_like(row_T, dtype=torch.float64)[:, None], 1.0)[:, 0]
    newest_C = matches.newest()
    met_C = newest_C >= 0
    age_C = torch.where(met_C, candidates.end - newest_C, 1)
    return torch.stack([known_C.double(), times_C.log1p(), met_C.double(), met_C / age_C], 1)
