"""HPGR's trunk, which stage 1 trains and stage 2 inherits, and the masked-item model of stage 1.

Bottom to top: embedding layer, time-aware position, session enhancement module with gated fusion.

Shape legend (suffixes of names): T history rows, P sessions, C candidates, V items, I rows of an
item table (with the mask token or without), M items and the mask token, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.attention.cover import build_tiles
from hpgr.model.catalogue import Catalogue
from hpgr.model.dropout import dropout
from hpgr.model.embedding import ItemEmbedding, TimeAwarePosition, embedding_table, scaled
from hpgr.model.interface import StageOne
from hpgr.model.packed import Candidates, Packed
from hpgr.model.session_encoder import SessionEncoder, TransformerBlock
from hpgr.model.shapes import Bool, Float


@dataclass(frozen=True)
class Trunk:
    """Results of the trunk for one batch: fused rows, session outputs, catalogue vectors."""

    fused: Float[Tensor, "T D"]
    sessions: Float[Tensor, "T_and_P D"] | None
    table: Float[Tensor, "I D"]


class HPGRTrunk(nn.Module):
    """The part that stage 1 trains and stage 2 inherits."""

    def __init__(self, settings: Any, catalogue: Catalogue) -> None:
        super().__init__()
        self.tile, self.gap_s = settings.tile, catalogue.gap_s
        self.own_sessions = catalogue.own_sessions
        self.dropout = settings.dropout
        num_positions = settings.max_history + 1  # one more for a candidate behind a full window
        self.items = ItemEmbedding(catalogue, settings.dim, side_features=settings.side_features)
        self.action = None
        if settings.side_features and catalogue.num_actions > 1:
            self.action = embedding_table(catalogue.num_actions + 1, settings.dim)
        self.place = TimeAwarePosition(num_positions, settings.dim, request_time=settings.time_bias)
        self.sessions = None
        if settings.sessions:
            self.sessions = SessionEncoder(
                settings.dim,
                settings.num_heads,
                intra_blocks=settings.intra_blocks,
                inter_blocks=settings.inter_blocks,
                num_positions=num_positions,
                dropout=settings.dropout,
            )

    def forward(
        self,
        packed: Packed,
        table_ID: Float[Tensor, "I D"],
        *,
        causal: bool,
        masked: Bool[Tensor, "T"] | None = None,
    ) -> Trunk:
        """Compute the fused representation of every history row.

        Args:
            packed: the histories.
            table_ID: vectors of `self.items`, with the mask token where some are `masked`.
            causal: False only in pretraining.
            masked: bool [T], rows whose item and action are hidden *before* anything reads them.
        """
        item_T, action_T = packed.item, packed.action
        if masked is not None:
            item_T = torch.where(masked, self.items.mask_token, item_T)
            action_T = torch.where(masked, 0, action_T)
        x_TD = scaled(functional.embedding(item_T, table_ID))
        if self.action is not None:
            x_TD = x_TD + self.action(action_T)
        x_TD = x_TD + self.place(
            packed.position, packed.time, packed.previous_time, packed.next_time
        )
        x_TD = dropout(x_TD, self.dropout, self.training)
        if self.sessions is None or not len(x_TD):
            return Trunk(x_TD, None, table_ID)
        # Sessions are short: smaller tiles hold fewer pairs in vain.
        side = max(1, self.tile // 2)
        fused_TD, outputs = self.sessions(x_TD, packed, tile=side, causal=causal)
        return Trunk(fused_TD, outputs, table_ID)

    def candidates(
        self, trunk: Trunk, packed: Packed, candidates: Candidates
    ) -> Float[Tensor, "C D"]:
        """Compute the fused representation of candidates, placed by their time in the history."""
        x_CD = scaled(functional.embedding(candidates.item, trunk.table))
        visible_C = candidates.end - candidates.first
        newest_C = (candidates.end - 1).clamp_min(0)
        if len(packed.item):
            last_time_C = torch.where(visible_C > 0, packed.time[newest_C], candidates.time)
        else:
            last_time_C = candidates.time
        # A candidate has no next event: its own time is both, so "until next" is bucket 0.
        x_CD = x_CD + self.place(visible_C, candidates.time, last_time_C, candidates.time)
        x_CD = dropout(x_CD, self.dropout, self.training)
        if self.sessions is None or trunk.sessions is None:
            return x_CD
        # Only a session cut by the pause is known to be over: one with an id may always go on.
        same_C = (candidates.time - last_time_C <= self.gap_s) | self.own_sessions
        return self.sessions.fuse_candidates(
            x_CD, trunk.sessions, packed, candidates.first, candidates.end, same_C
        )


class MaskedItemModel(StageOne):
    """Stage 1: the trunk, a plain bidirectional Transformer and the masked-item state."""

    def __init__(self, settings: Any, catalogue: Catalogue, *, mim_blocks: int) -> None:
        super().__init__()
        self.trunk = HPGRTrunk(settings, catalogue)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                settings.dim,
                settings.num_heads,
                num_positions=settings.max_history + 1,
                dropout=settings.dropout,
            )
            for _ in range(mim_blocks)
        )

    def forward(
        self, packed: Packed, masked_T: Bool[Tensor, "T"]
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "V D"]]:
        """Return the states of all rows and the catalogue's vectors; `masked_T` rows are hidden."""
        trunk = self.trunk(packed, self.trunk.items.table(), causal=False, masked=masked_T)
        tiles = build_tiles(packed.first, packed.user_end, len(packed.item), size=self.trunk.tile)
        x_TD = trunk.fused
        for block in self.blocks:
            x_TD = block(x_TD, tiles)
        return x_TD, trunk.table[: self.trunk.items.num_items]

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """Return the catalogue's vectors."""
        return self.trunk.items.table()[: self.trunk.items.num_items]

    @torch.no_grad()
    def start_items(self, vectors_VD: Float[Tensor, "V D"]) -> None:
        """Start the catalogue at these vectors, except where they are 0."""
        given_V1 = vectors_VD.any(dim=1, keepdim=True)
        change_VD = torch.where(given_V1, vectors_VD - self.item_vectors(), 0.0)
        self.trunk.items.item.weight[: len(vectors_VD)] += change_VD
