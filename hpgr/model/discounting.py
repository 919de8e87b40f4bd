"""Sums over what came before in a history, an event n places earlier times rate^n.

Rows are cut into blocks. A sum is that of the rows of its last block and what the block inherits
from those before it; the sums at the ends of blocks obey the same rule, a block taking the place of
a row. So no power exceeds one, whatever the length, and no row of another history is ever added and
taken off again.

Shape legend (suffixes of names): T rows, P ends, L rows before an end, N blocks of B rows, R rates,
F features, X and Y widths of two factors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hpgr.model.packed import Packed
from hpgr.model.shapes import Float, Int

BLOCK = 16  # rows that are summed by one product
WASTE = 4  # rows of padded sets, per row of the histories, below which sets are summed one by one


class Pasts:
    """The rows of a history before each of P ends.

    Where ends are few, as when whole histories are read, each set of rows is summed by itself; else
    blocks of rows serve all ends (`product_sums`).
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
            return product_sums(x_TX, y_TY, self.position_T, rate_R, self.end_P)
        weight_RL = rate_R[:, None] ** self.age_L
        x_PXL = (x_TX[self.row_PL] * self.there_PL1).transpose(1, 2)
        weighted_PRXL = x_PXL[:, None] * weight_RL[:, None]
        summed_PnY = weighted_PRXL.flatten(1, 2) @ y_TY[self.row_PL]
        return summed_PnY.unflatten(1, weighted_PRXL.shape[1:3]).transpose(0, 1)


def product_sums(
    x_TX: Float[Tensor, "T X"],
    y_TY: Float[Tensor, "T Y"],
    position_T: Int[Tensor, "T"],
    rate_R: Float[Tensor, "R"],
    end_P: Int[Tensor, "P"],
) -> Float[Tensor, "R P X Y"]:
    """Sum the products of each row's x and y up to row `end_P` - 1; 0 where `end_P` is 0.

    Cheaper than `discounted_sums` of the products where ends are fewer than rows or X Y is large.

    Args:
        x_TX: first factor.
        y_TY: second factor.
        position_T: place of each row in its history.
        rate_R: discounts by one place, at most 1.
        end_P: one past the last row of each sum.
    """
    shape = (x_TX.shape[1], y_TY.shape[1])
    if not len(x_TX):
        return x_TX.new_zeros(len(rate_R), len(end_P), *shape)
    size = min(BLOCK, len(x_TX))
    row_P = (end_P - 1).clamp_min(0)
    summed_RPF = _within_blocks(x_TX, y_TY, position_T, rate_R, row_P, size)
    last_N = torch.arange(size - 1, len(x_TX) - 1, size, device=row_P.device)
    if len(last_N):
        ends_RNF = _within_blocks(x_TX, y_TY, position_T, rate_R, last_N, size)
        upper_N, block_P, place_P = position_T[last_N] // size, row_P // size, row_P % size
        before = [
            discounted_sums(ends_NF, upper_N, rate**size, block_P)
            for ends_NF, rate in zip(ends_RNF, rate_R, strict=True)
        ]
        reach_RP = rate_R[:, None] ** (place_P + 1) * (position_T[row_P] > place_P)
        summed_RPF = torch.addcmul(summed_RPF, reach_RP[..., None], torch.stack(before))
    return (summed_RPF * (end_P > 0)[:, None]).unflatten(2, shape)


def _within_blocks(
    x_TX: Tensor, y_TY: Tensor, position_T: Tensor, rate_R: Tensor, row_P: Tensor, size: int
) -> Tensor:
    """Sum the products of the rows of a history up to `row_P` and in its block, [R, P, X Y]."""
    age_B = torch.arange(size, device=row_P.device)
    there_PB = age_B <= torch.minimum(row_P % size, position_T[row_P])[:, None]
    row_PB = (row_P[:, None] - age_B).clamp_min_(0)
    x_PBX, y_PBY = (
        x.index_select(0, row_PB.flatten()).unflatten(0, row_PB.shape) for x in (x_TX, y_TY)
    )
    weight_PBR = there_PB[..., None] * (rate_R[:, None] ** age_B).T
    weighted_PBRX = weight_PBR[..., None] * x_PBX[:, :, None]
    summed_PnY = weighted_PBRX.flatten(2).transpose(1, 2) @ y_PBY
    features = x_TX.shape[1] * y_TY.shape[1]
    return summed_PnY.view(len(row_P), len(rate_R), features).transpose(0, 1)


def discounted_sums(
    rows_TF: Float[Tensor, "T F"],
    position_T: Int[Tensor, "T"],
    rate: Tensor | float,
    end_P: Int[Tensor, "P"],
) -> Float[Tensor, "P F"]:
    """Sum the rows of a history up to row `end_P` - 1; 0 where `end_P` is 0.

    Args:
        rows_TF: what is summed.
        position_T: place of each row in its history.
        rate: discount by one place, at most 1.
        end_P: one past the last row of each sum.
    """
    total, features = rows_TF.shape
    size = max(1, min(BLOCK, total))
    spare = max(1, -(-total // size)) * size - total
    row_NBF = functional.pad(rows_TF, (0, 0, 0, spare)).view(-1, size, features)
    position_NB = functional.pad(position_T, (0, spare)).view(-1, size)
    place_B = torch.arange(size, device=rows_TF.device)
    age_BB = place_B[:, None] - place_B
    base = rate if isinstance(rate, Tensor) else rows_TF.new_full((), rate)
    seen_NBB = (age_BB >= 0) & (age_BB <= position_NB[:, :, None])
    inside_NBF = (base ** age_BB.clamp_min(0) * seen_NBB) @ row_NBF
    row_P = (end_P - 1).clamp_min(0)
    summed_PF = inside_NBF.flatten(0, 1).index_select(0, row_P)
    blocks = len(inside_NBF)
    if blocks > 1:
        # What each block inherits from those before it.
        upper_N = position_NB[:, -1] // size
        number_N = torch.arange(blocks, device=end_P.device)
        before_NF = discounted_sums(inside_NBF[:, -1], upper_N, base**size, number_N)
        place_P = row_P % size
        reach_P = base ** (place_P + 1) * (position_NB.flatten().index_select(0, row_P) > place_P)
        summed_PF = summed_PF + reach_P[:, None] * before_NF.index_select(0, row_P // size)
    return summed_PF * (end_P > 0)[:, None]
