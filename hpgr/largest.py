"""The largest numbers of each row of a matrix, found level by level.

Each of the A largest lies in one of the A groups with the largest maxima, so only those groups are
looked into, and the groups are found in the same way: taking maxima is far cheaper than sorting.

Shape legend (suffixes of names): q rows, k columns, A largest, g groups, f columns of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

FOLD = 8  # columns or groups of a group


def largest(score_qk: Tensor, num: int, *, ordered: bool = True) -> tuple[Tensor, Tensor]:
    """Return column and value of the `num` largest of each row, largest first where `ordered`.

    No NaN; which of equal numbers are returned, and in which order, is not defined.
    """
    total = score_qk.shape[1]
    if total <= 2 * FOLD * num:  # the last level's sorting would cost as much
        best = score_qk.topk(num, 1, sorted=ordered)
        return best.indices, best.values
    groups = total // FOLD
    rest = total - groups * FOLD
    # Neighbouring columns belong to different groups: maxima are taken of whole rows of columns.
    score_qfg = score_qk[:, : total - rest].unflatten(1, (FOLD, groups))
    group_qA, _ = largest(score_qfg.amax(1), num, ordered=False)
    inside_qn = score_qfg.gather(2, group_qA[:, None, :].expand(-1, FOLD, -1)).flatten(1)
    if rest:  # columns of no group
        inside_qn = torch.cat([inside_qn, score_qk[:, total - rest :]], 1)
    best = inside_qn.topk(num, 1, sorted=ordered)
    place_qA = best.indices
    column_qA = place_qA // num * groups + group_qA.gather(1, place_qA % num)
    if rest:
        column_qA = torch.where(
            place_qA < FOLD * num, column_qA, place_qA - FOLD * num + total - rest
        )
    return column_qA, best.values
