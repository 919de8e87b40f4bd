"""HPGR: hierarchical and preference-aware generative recommender (arXiv 2603.00980).

One trunk, bottom to top: embedding layer, time-aware position, session enhancement module with
gated fusion. Stage 1 puts a bidirectional Transformer and a masked-item head on it; stage 2 puts
HSTU blocks with preference-guided sparse attention on the inherited trunk and two heads:

- retrieval: the state of a history row, matched by cosine with every item of the catalogue;
- ranking: pCTR of candidates, all in one pass, each seeing only events before its request time.

In every block a query (a candidate; in the last block also each history row, whose output is the
retrieval state) reads the history through its Gaussian mask. History rows below the last block are
causal as in HSTU, or masked as well (`history_rows: preference`), so that cost grows as their
number. With `sessions` and `preference` off and no side features this is HSTU with HPGR's heads.

Shape legend (suffixes of names): T history rows, P sessions, C candidates, V items, M items and the
mask token, D width, H heads, d width of a head, E = H * d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.attention.cover import Tiles, build_tiles
from hpgr.model.catalogue import Catalogue
from hpgr.model.dropout import dropout
from hpgr.model.embedding import ItemEmbedding, TimeAwarePosition, scaled
from hpgr.model.hstu import HSTUBlock
from hpgr.model.interface import Growth, Network, Output
from hpgr.model.packed import Candidates, Packed
from hpgr.model.preference import PreferenceMask, PreferenceSignals
from hpgr.model.ranking_head import RankingHead
from hpgr.model.session_encoder import SessionEncoder, TransformerBlock
from hpgr.model.shapes import Bool, Float


@dataclass(frozen=True)
class Trunk:
    """Results of the trunk for one batch: fused rows, session outputs, catalogue vectors."""

    fused: Float[Tensor, "T D"]
    sessions: Float[Tensor, "T_and_P D"] | None
    table: Float[Tensor, "M D"]


class HPGRTrunk(nn.Module):
    """The part that stage 1 trains and stage 2 inherits."""

    def __init__(self, settings: Any, catalogue: Catalogue) -> None:
        super().__init__()
        self.tile, self.gap_s = settings.tile, catalogue.gap_s
        self.own_sessions = catalogue.own_sessions
        self.dropout = settings.dropout
        num_positions = settings.max_history + 1  # one more for a candidate behind a full window
        self.items = ItemEmbedding(
            catalogue.num_items,
            catalogue.num_categories,
            settings.dim,
            category_offsets=catalogue.category_offsets,
            category=catalogue.category,
            side_features=settings.side_features,
        )
        self.action = None
        if settings.side_features and catalogue.num_actions > 1:
            self.action = nn.Embedding(catalogue.num_actions + 1, settings.dim)
            nn.init.normal_(self.action.weight, std=0.02)
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
        self, packed: Packed, *, causal: bool, masked: Bool[Tensor, "T"] | None = None
    ) -> Trunk:
        """Compute the fused representation of every history row.

        Args:
            packed: the histories.
            causal: False only in pretraining.
            masked: bool [T], rows whose item and action are hidden *before* anything reads them.
        """
        table_MD = self.items.table()
        item_T, action_T = packed.item, packed.action
        if masked is not None:
            item_T = torch.where(masked, self.items.mask_token, item_T)
            action_T = torch.where(masked, 0, action_T)
        x_TD = scaled(functional.embedding(item_T, table_MD))
        if self.action is not None:
            x_TD = x_TD + self.action(action_T)
        x_TD = x_TD + self.place(
            packed.position, packed.time, packed.previous_time, packed.next_time
        )
        x_TD = dropout(x_TD, self.dropout, self.training)
        if self.sessions is None or not len(x_TD):
            return Trunk(x_TD, None, table_MD)
        fused_TD, outputs = self.sessions(x_TD, packed, tile=self.tile, causal=causal)
        return Trunk(fused_TD, outputs, table_MD)

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


class MaskedItemModel(nn.Module):
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
        trunk = self.trunk(packed, causal=False, masked=masked_T)
        tiles = build_tiles(packed.first, packed.user_end, len(packed.item), size=self.trunk.tile)
        x_TD = trunk.fused
        for block in self.blocks:
            x_TD = block(x_TD, tiles)
        return x_TD, trunk.table[: self.trunk.items.num_items]


class HPGR(Network):
    """Stage 2: preference-aware retrieval and ranking on the inherited trunk."""

    grows: ClassVar = {
        "trunk.items.item.weight": Growth("num_items", behind=1),  # the mask token
        "trunk.items.category_table.weight": Growth("num_categories"),
        "trunk.action.weight": Growth("num_actions", behind=1),
        "click.item_bias": Growth("num_items"),
        "click.action_value": Growth("num_actions"),
    }
    inherits = "trunk"

    def __init__(self, settings: Any, catalogue: Catalogue, *, ranking: bool = True) -> None:
        super().__init__(settings, catalogue, ranking=ranking)
        self.trunk = HPGRTrunk(settings, catalogue)
        self.tile = settings.tile
        self.history_rows = settings.history_rows
        self.time_bias = settings.time_bias
        self.blocks = nn.ModuleList(
            HSTUBlock(
                settings.dim,
                settings.num_heads,
                head_dim=settings.dim // settings.num_heads,
                num_positions=settings.max_history + 1,
                dropout=settings.dropout,
                position_bias=settings.position_bias,
                time_bias=settings.time_bias,
            )
            for _ in range(settings.num_blocks)
        )
        self.signals = None
        if settings.preference:
            self.signals = PreferenceSignals(
                settings.dim,
                num_anchors=settings.num_anchors,
                sigma=settings.sigma,
                recent_window=settings.recent_window,
            )
        self.click = RankingHead(settings.dim, catalogue.num_items, catalogue.num_actions)

    @classmethod
    def stage_one(cls, settings: Any, catalogue: Catalogue, *, blocks: int) -> MaskedItemModel:
        """Make the masked-item model."""
        return MaskedItemModel(settings, catalogue, mim_blocks=blocks)

    def start_ranking(self, events: Tensor, positive: Tensor) -> None:
        """Start each item's bias at its rate."""
        self.click.start_from(events, positive)

    def forward(
        self, packed: Packed, candidates: Candidates | None, *, newest_only: bool = False
    ) -> Output:
        """Compute states and scores; with `newest_only` the last block serves newest rows alone."""
        trunk = self.trunk(packed, causal=True)
        below = self._history_tiles(trunk, packed)
        asking = packed.newest if newest_only else None
        last_tiles, last_weight = self._query_tiles(trunk, packed, asking, below)
        x_TD = trunk.fused
        c_CD = self.trunk.candidates(trunk, packed, candidates) if candidates is not None else None
        c_input_CD = c_CD
        reader = self._reader(trunk, packed, candidates, c_CD) if candidates is not None else None
        length_T1 = (packed.position + 1)[:, None]
        for module in self.blocks:
            block = cast(HSTUBlock, module)
            u_TE, v_THd, q_THd, k_THd = block.project(x_TD)
            if c_CD is not None and candidates is not None and reader is not None:
                u_CE, _, q_CHd, _ = block.project(c_CD)
                seen_C1 = (candidates.end - candidates.first).clamp_min(1)[:, None]
                c_CD = block.attend(c_CD, u_CE, q_CHd, k_THd, v_THd, reader[0], seen_C1, reader[1])
            tiles, weight, _ = below
            if block is self.blocks[-1]:
                tiles, weight = last_tiles, last_weight
                if asking is not None:  # from here on T counts the newest rows alone
                    rows = (x_TD, u_TE, q_THd, length_T1)
                    x_TD, u_TE, q_THd, length_T1 = (row[asking] for row in rows)
            x_TD = block.attend(x_TD, u_TE, q_THd, k_THd, v_THd, tiles, length_T1, weight)
        logits_C = None
        if c_CD is not None and c_input_CD is not None and candidates is not None:
            logits_C = self.click(c_CD, c_input_CD, packed, candidates)
        return Output(x_TD, trunk.table[: self.trunk.items.num_items], logits_C)

    def explain(self, packed: Packed, candidates: Candidates | None) -> PreferenceMask | None:
        """Return the mask of the candidates or newest rows; None without signals or history.

        Every block reads through the same mask, so the trunk is enough.
        """
        if self.signals is None or not len(packed.item):
            return None
        trunk = self.trunk(packed, causal=True)
        if candidates is None:
            return self._mask(trunk, packed, packed.newest)
        c_CD = self.trunk.candidates(trunk, packed, candidates)
        return self._candidate_mask(trunk, packed, candidates, c_CD)

    def _history_tiles(
        self, trunk: Trunk, packed: Packed
    ) -> tuple[Tiles, Tensor | None, PreferenceMask | None]:
        """Tiles, weights and mask through which history rows read below the last block."""
        if self.signals is not None and self.history_rows == "preference" and len(packed.item):
            mask = self._mask(trunk, packed, None)
            return mask.tiles, mask.weight, mask
        return self._causal_tiles(packed, None), None, None

    def _query_tiles(
        self,
        trunk: Trunk,
        packed: Packed,
        asking: Tensor | None,
        below: tuple[Tiles, Tensor | None, PreferenceMask | None],
    ) -> tuple[Tiles, Tensor | None]:
        """Tiles and weights through which the rows `asking` (None: all) read in the last block."""
        if self.signals is None or not len(packed.item):
            return below[0] if asking is None else self._causal_tiles(packed, asking), None
        mask = below[2] if asking is None else None  # the same queries may have their mask already
        if mask is None:
            mask = self._mask(trunk, packed, asking)
        return mask.tiles, mask.weight

    def _causal_tiles(self, packed: Packed, asking: Tensor | None) -> Tiles:
        return build_tiles(
            _of(packed.first, asking),
            _of(packed.row_end, asking),
            len(packed.item),
            size=self.tile,
            query_time=_of(packed.next_time, asking),
            key_time=packed.time,
            query_position=asking,
        )

    def _mask(self, trunk: Trunk, packed: Packed, asking: Tensor | None) -> PreferenceMask:
        assert self.signals is not None
        return self.signals(
            _of(trunk.fused, asking),
            trunk.fused,
            _of(packed.first, asking),
            _of(packed.row_end, asking),
            size=self.tile,
            query_time=_of(packed.next_time, asking),
            key_time=packed.time,
            query_position=asking,
        )

    def _candidate_mask(
        self, trunk: Trunk, packed: Packed, candidates: Candidates, c_CD: Tensor
    ) -> PreferenceMask:
        assert self.signals is not None
        return self.signals(
            c_CD,
            trunk.fused,
            candidates.first,
            candidates.end,
            size=self.tile,
            query_time=candidates.time,
            key_time=packed.time,
            query_position=candidates.end,
        )

    def _reader(
        self, trunk: Trunk, packed: Packed, candidates: Candidates, c_CD: Tensor | None
    ) -> tuple[Tiles, Tensor | None]:
        """Tiles and weights through which the candidates read the history."""
        if self.signals is not None and c_CD is not None and len(packed.item):
            mask = self._candidate_mask(trunk, packed, candidates, c_CD)
            return mask.tiles, mask.weight
        tiles = build_tiles(
            candidates.first,
            candidates.end,
            len(packed.item),
            size=self.tile,
            query_time=candidates.time,
            key_time=packed.time,
            query_position=candidates.end,
        )
        return tiles, None


def _of(rows: Tensor, asking: Tensor | None) -> Tensor:
    return rows if asking is None else rows[asking]
