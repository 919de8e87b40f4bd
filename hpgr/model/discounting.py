"""Sums over what came before, an event n places earlier times rate^n.

Shape legend (suffixes of names): T history rows, P sets of rows that end at some row, L rows of the
longest set, N blocks of B rows, F features, R rates, X and Y widths of two factors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hpgr.model.packed import Packed
from hpgr.model.shapes import Float, Int

BLOCK = 32  # rows that are summed by one product
WASTE = 4  # rows of padded sets, per row of the histories, below which sets are summed one by one


class Pasts:
    """The rows of a history before each of P ends.

    Where ends are few, as when whole histories are read, each set of rows is summed by itself; else
    running sums of all rows serve all ends.
    """

    def __init__(self, packed: Packed, end_P: Int[Tensor, "P"]) -> None:
        """An end is one past the last row of a set, 0 for no row."""
        self.position_T, self.end_P = packed.position, end_P
        self.row_PL: Tensor | None = None
        if len(packed.item):
            newest_P = (end_P - 1).clamp_min(0)
            count_P = torch.where(end_P > 0, end_P - packed.first[newest_P], 0)
            longest = int(count_P.max()) if len(count_P) else 0
            if len(end_P) * longest <= WASTE * len(packed.item):
                age_L = torch.arange(longest, device=end_P.device)
                self.there_PL1 = (age_L < count_P[:, None])[..., None]
                self.row_PL = (newest_P[:, None] - age_L).clamp_min(0)
                self.age_L = age_L

    def products(
        self, x_TX: Float[Tensor, "T X"], y_TY: Float[Tensor, "T Y"], rate_R: Float[Tensor, "R"]
    ) -> Float[Tensor, "R P X Y"]:
        """Sum the products of each row's x and y, discounted by each rate."""
        if self.row_PL is None:
            row_TF = (x_TX[:, :, None] * y_TY[:, None]).flatten(1)
            summed = [discounted_sums(row_TF, self.position_T, rate) for rate in rate_R]
            # The row before the first stands for no row.
            at_P = [functional.pad(one, (0, 0, 1, 0)).index_select(0, self.end_P) for one in summed]
            return torch.stack(at_P).unflatten(-1, (x_TX.shape[1], y_TY.shape[1]))
        weight_RL = rate_R[:, None] ** self.age_L
        x_PXL = (x_TX[self.row_PL] * self.there_PL1).transpose(1, 2)
        weighted_PRXL = x_PXL[:, None] * weight_RL[:, None]
        summed_PnY = weighted_PRXL.flatten(1, 2) @ y_TY[self.row_PL]
        return summed_PnY.unflatten(1, weighted_PRXL.shape[1:3]).transpose(0, 1)


def discounted_sums(
    rows_TF: Float[Tensor, "T F"], position_T: Int[Tensor, "T"], rate: Tensor | float
) -> Float[Tensor, "T F"]:
    """Sum the rows of each history up to each row, a row n places earlier times rate^n.

    Blocks of rows are one product each; the sums at the ends of blocks obey the same rule, a block
    taking the place of a row. So no power exceeds one, whatever the length, and no row of another
    history is ever added and taken off again.
    """
    total, features = rows_TF.shape
    size = max(1, min(BLOCK, total))
    spare = -total % size
    row_NBF = functional.pad(rows_TF, (0, 0, 0, spare)).view(-1, size, features)
    position_NB = functional.pad(position_T, (0, spare)).view(-1, size)
    place_B = torch.arange(size, device=rows_TF.device)
    age_BB = place_B[:, None] - place_B
    base = rate if isinstance(rate, Tensor) else rows_TF.new_full((), rate)
    seen_NBB = (age_BB >= 0) & (age_BB <= position_NB[:, :, None])
    summed_NBF = (base ** age_BB.clamp_min(0) * seen_NBB) @ row_NBF
    if len(summed_NBF) > 1:
        ends_NF = discounted_sums(summed_NBF[:, -1], position_NB[:, -1] // size, base**size)
        before_NF = functional.pad(ends_NF[:-1], (0, 0, 1, 0))
        reach_NB = base ** (place_B + 1) * (position_NB > place_B)
        summed_NBF = summed_NBF + reach_NB[:, :, None] * before_NF[:, None]
    return summed_NBF.view(-1, features)[:total]
