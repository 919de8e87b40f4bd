"""Vocabulary sizes and item categories of the log that a network is built for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpgr.data.log import EventLog


@dataclass(frozen=True)
class Catalogue:
    """Sizes of the vocabularies (reserved ids included) and the items' categories in CSR form.

    Categories of item v are category[category_offsets[v]:category_offsets[v + 1]]; `gap_s` is the
    inactivity, in seconds, that ends a session, unless the log has session ids of its own
    (`own_sessions`).
    """

    num_items: int
    num_actions: int
    num_categories: int
    category_offsets: Tensor
    category: Tensor
    gap_s: int
    own_sessions: bool = False

    @classmethod
    def of(cls, log: EventLog) -> Catalogue:
        """Read the catalogue of a sessionized log."""
        return cls(
            num_items=log.meta.num_items,
            num_actions=log.meta.num_actions,
            num_categories=log.meta.num_categories,
            category_offsets=torch.from_numpy(np.array(log.category_offsets)),
            category=torch.from_numpy(np.array(log.category)),
            gap_s=log.meta.gap_s,
            own_sessions=log.meta.own_sessions,
        )
