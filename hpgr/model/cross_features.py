"""Cross features of a candidate: what the user did before with its item and its categories.

MTGR (arXiv 2505.18654) keeps such features and puts them into the candidate's token. Theirs come
from a feature store; ours are computed from the events that the candidate sees, so that training,
evaluation and serving share one code path. Three kinds of events are summed up: all of the user,
those with the candidate's item, and those that share a category with it (an event counts once for
each category shared).

- published: for each kind the logarithm of the count and the mean value of the actions, what MTGR's
  are said to be (how often the user met the candidate or its kind, and with which result).
- residual: also, for each kind, the mean residual, two means in which newer events count more, and
  the time since the newest event. A residual is the value of an action less the bias of its item,
  as in `hpgr.model.readout`. These are ours. The candidate's own bias is left out: in training it
  holds the candidate's own label.
- fold_in: also, for each clock, what the posterior of the user's taste predicts for the candidate,
  its variance, the ratio, and the user's mean residual (`hpgr.model.tastes`). Ours.

Nothing here is learned: values, biases and factors are those that stage 1 fitted (without it 0,
factors random).

Shape legend (suffixes of names): T history rows, C candidates, N pairs of a row and one of its
keys, M pairs of a candidate and one of its keys, V items, A actions, F features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.data.log import FIRST_ITEM
from hpgr.model.discounting import discounted_sums
from hpgr.model.embedding import ItemEmbedding
from hpgr.model.packed import Candidates, Packed
from hpgr.model.shapes import Float, Int
from hpgr.model.tastes import CLOCKS, PER_CLOCK, FoldedTastes, ItemFactors

KINDS = 3  # all events of the user, those with the item, those with a category
PRIOR_EVENTS = 2.0  # of a mean
PACES = (0.8, 0.97)  # discounts of an event by one newer event of its kind


class Keys(NamedTuple):
    """Pairs of an owner (row of the history, or candidate) and one of its keys; each int64 [N]."""

    owner: Tensor
    key: Tensor


class Matches:
    """The rows that each candidate sees and shares a key with.

    A key is an item, a category, or one number for all. Rows are sorted by key, so that those of a
    history that share one are neighbours: a run.
    """

    def __init__(self, seen: Keys, asked: Keys, packed: Packed, candidates: Candidates) -> None:
        rows = max(1, len(packed.item))
        place_N, order_N = torch.sort(seen.key * rows + seen.owner)
        self.row_N = seen.owner[order_N]
        run_N = torch.stack([seen.key[order_N], packed.first[self.row_N]])
        starts_N = torch.ones_like(self.row_N, dtype=torch.bool)
        starts_N[1:] = (run_N[:, 1:] != run_N[:, :-1]).any(0)
        index_N = torch.arange(len(starts_N), device=starts_N.device)
        self.inside_N = index_N - torch.where(starts_N, index_N, 0).cummax(0).values
        self.owner_M = asked.owner
        low_M, high_M = (
            torch.searchsorted(place_N, asked.key * rows + bound[asked.owner])
            for bound in (candidates.first, candidates.end)
        )
        # One past the newest match among the sorted rows, 0 without one.
        self.newest_M = torch.where(high_M > low_M, high_M, 0)
        self.num_candidates = len(candidates.item)

    def sums(self, rows_TF: Float[Tensor, "T F"], pace: float) -> Float[Tensor, "C F"]:
        """Sum the rows that match, the n-th newest of a key times pace^n."""
        found_MF = discounted_sums(rows_TF[self.row_N], self.inside_N, pace, self.newest_M)
        total_CF = rows_TF.new_zeros(self.num_candidates, rows_TF.shape[1])
        return total_CF.index_add_(0, self.owner_M, found_MF)

    def newest(self) -> Int[Tensor, "C"]:
        """Return the newest row that matches, -1 where none does."""
        row_M = functional.pad(self.row_N, (1, 0), value=-1)[self.newest_M]
        none_C = row_M.new_full((self.num_candidates,), -1)
        return none_C.scatter_reduce(0, self.owner_M, row_M, "amax")


class CrossFeatures(nn.Module):
    """Computes the features; `form` is published, residual or fold_in."""

    def __init__(self, num_items: int, num_actions: int, form: str, factors: int) -> None:
        super().__init__()
        self.residual = form != "published"
        self.num_features = KINDS * (4 + len(PACES) if self.residual else 2)
        self.tastes = None
        if form == "fold_in":
            self.tastes = FoldedTastes(num_items, num_actions, factors).requires_grad_(False)
            self.num_features += PER_CLOCK * len(CLOCKS)
        # Set by stage 1, not learned; parameters, so that a warm start keeps them.
        self.value = nn.Parameter(torch.zeros(num_actions), requires_grad=False)
        self.valued = nn.Parameter(torch.zeros(num_actions), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(num_items), requires_grad=False)

    @torch.no_grad()
    def start_from(self, factors: ItemFactors) -> None:
        """Take the values of actions and the biases of items that stage 1 fitted."""
        self.value.copy_(factors.value)
        self.valued.copy_(factors.valued)
        self.bias.copy_(factors.bias)
        if self.tastes is not None:
            self.tastes.start_from(factors)

    @torch.no_grad()
    def forward(
        self, packed: Packed, candidates: Candidates, items: ItemEmbedding
    ) -> Float[Tensor, "C F"]:
        """Compute the features of each candidate from the rows that it sees.

        Args:
            packed: the histories.
            candidates: the visible rows of each.
            items: knows the items' categories.
        """
        # Sums over a batch depend on what else is in it by rounding alone: float64 hides that.
        valued_T = self.valued[packed.action].double()
        value_T = self.value[packed.action] * valued_T
        residual_T = value_T - self.bias[packed.item] * valued_T
        rows_TF = torch.stack([torch.ones_like(valued_T), valued_T, value_T, residual_T], 1)
        time_T = functional.pad(packed.time, (0, 1))
        # Items that the catalogue does not know are not one and the same.
        known_C = torch.where(candidates.item >= FIRST_ITEM, candidates.item, -1)
        kinds = [
            (_one_each(torch.zeros_like(packed.item)), _one_each(torch.zeros_like(known_C))),
            (_one_each(packed.item), _one_each(known_C)),
            (_categories(packed.item, items), _categories(candidates.item, items)),
        ]
        features = []
        for seen, asked in kinds:
            matches = Matches(seen, asked, packed, candidates)
            count_C, valued_C, value_C, residual_C = matches.sums(rows_TF, 1.0).unbind(1)
            features += [count_C.log1p(), value_C / (valued_C + PRIOR_EVENTS)]
            if not self.residual:
                continue
            features.append(residual_C / (valued_C + PRIOR_EVENTS))
            for pace in PACES:
                _, valued_C, _, residual_C = matches.sums(rows_TF, pace).unbind(1)
                features.append(residual_C / (valued_C + PRIOR_EVENTS))
            newest_C = matches.newest()
            since_C = torch.where(newest_C >= 0, candidates.time - time_T[newest_C], 0)
            features.append(since_C.double().log1p())
        if self.tastes is not None:
            features += self.tastes.folded(packed, candidates).features
        return torch.stack([one.double() for one in features], 1).to(self.bias.dtype)


def _one_each(key: Int[Tensor, "N"]) -> Keys:
    return Keys(torch.arange(len(key), device=key.device), key)


def _categories(item: Int[Tensor, "N"], items: ItemEmbedding) -> Keys:
    """Pair each of these items with all of its categories."""
    start_N = items.category_offsets[item]
    count_N = items.category_offsets[item + 1] - start_N
    owner_M = torch.repeat_interleave(torch.arange(len(item), device=item.device), count_N)
    before_N = count_N.cumsum(0) - count_N
    place_M = torch.arange(len(owner_M), device=item.device) - before_N[owner_M]
    return Keys(owner_M, items.category[start_N[owner_M] + place_M])
