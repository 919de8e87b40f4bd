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

Shape legend (suffixes of names): T history rows, P sessions, C candidates, V items, I items, with
or without the mask token, D width, W width of the read-out's space, H heads, d width of a head,
E = H * d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.data.log import FIRST_ITEM
from hpgr.model.attention.cover import Tiles, build_tiles
from hpgr.model.attention.entry import choose
from hpgr.model.attention.key_tiles import KeyTiles
from hpgr.model.attention.select import Selector
from hpgr.model.catalogue import Catalogue
from hpgr.model.dropout import dropout
from hpgr.model.embedding import ItemEmbedding, TimeAwarePosition, embedding_table, scaled
from hpgr.model.hstu import HSTUBlock, history_tiles, hstu_blocks
from hpgr.model.interface import Growth, Judgement, Network, Reading, StageOne
from hpgr.model.packed import Candidates, Packed, Readers
from hpgr.model.preference import PreferenceMask, PreferenceSignals
from hpgr.model.ranking_head import ranking_head
from hpgr.model.readout import READOUT_GROWTH, ItemFactors
from hpgr.model.session_encoder import SessionEncoder, TransformerBlock
from hpgr.model.shapes import Bool, Float


@dataclass(frozen=True)
class Trunk:
    """Results of the trunk for one batch: fused rows, session outputs, catalogue vectors."""

    fused: Float[Tensor, "T D"]
    sessions: Float[Tensor, "T_and_P D"] | None
    table: Float[Tensor, "I D"]


@dataclass(frozen=True)
class ItemTables:
    """Vectors of items, and the spaces in which anchors are selected; the read-out may have one."""

    items: Float[Tensor, "V D"]
    space: Float[Tensor, "V D"]
    readout: Float[Tensor, "V W"] | None


@dataclass(frozen=True)
class Memory:
    """The histories as candidates need them: rows in item space, keys and values by block."""

    trunk: Trunk
    tables: ItemTables
    key: Float[Tensor, "T D"]
    keys: list[tuple[Float[Tensor, "T H d"], Float[Tensor, "T H d"]]]


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
        fused_TD, outputs = self.sessions(x_TD, packed, tile=self.tile, causal=causal)
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


class HPGR(Network):
    """Stage 2: preference-aware retrieval and ranking on the inherited trunk."""

    grows: ClassVar = {
        "trunk.items.item.weight": Growth("num_items", behind=1),  # the mask token
        "trunk.items.category_table.weight": Growth("num_categories"),
        "trunk.action.weight": Growth("num_actions", behind=1),
        "click.item_bias": Growth("num_items"),
        "click.action_value": Growth("num_actions"),
        **READOUT_GROWTH,
    }
    inherits = "trunk"
    watched: ClassVar = {
        "selectors": ("row_selector", "item_selector", "click.readout.selector"),
        "signals": ("row_signals", "candidate_signals"),
        "readout": ("click.readout",),
    }

    def __init__(self, settings: Any, catalogue: Catalogue, *, ranking: bool = True) -> None:
        super().__init__(settings, catalogue, ranking=ranking)
        self.trunk = HPGRTrunk(settings, catalogue)
        self.tile, self.max_history = settings.tile, settings.max_history
        self.preference_below = settings.preference and settings.history_rows == "preference"
        self.blocks = hstu_blocks(settings, num_positions=settings.max_history + 1)
        # Not learned; a parameter, so that a warm start keeps it.
        self.shared = nn.Parameter(torch.zeros(settings.dim), requires_grad=False)
        num_anchors = settings.num_anchors
        self.click = ranking_head(
            settings,
            catalogue,
            ranking=ranking,
            num_anchors=num_anchors,
            categories=self.trunk.items.category_table is not None,
        )
        self.row_signals = self.candidate_signals = self.row_selector = self.item_selector = None
        self.row_window, self.candidate_window = settings.recent_window, settings.candidate_window
        if settings.preference:
            self.row_signals = PreferenceSignals(settings.sigma)
            self.candidate_signals = PreferenceSignals(settings.sigma)
            space = (settings.dim, settings.dim, settings.signal_dim)
            self.row_selector = Selector(*space, num_anchors=num_anchors)
            if self.click.readout is None:  # else the read-out's anchors serve the mask as well
                self.item_selector = Selector(*space, num_anchors=num_anchors)

    @classmethod
    def stage_one(cls, settings: Any, catalogue: Catalogue, *, blocks: int) -> MaskedItemModel:
        """Make the masked-item model."""
        return MaskedItemModel(settings, catalogue, mim_blocks=blocks)

    def inherit(self, weights: Mapping[str, Tensor], *, fresh: bool) -> None:
        """Start the trunk at the weights of stage 1; a fresh stage 2 turns its items at full rate.

        The longer a vector is, the less a step turns it. So items keep their directions and take
        the mean length of a fresh table.
        """
        before = self.trunk.items.table().detach().norm(dim=1).mean()
        super().inherit(weights, fresh=fresh)
        if fresh:
            self.trunk.items.scale(before / self.trunk.items.table().detach().norm(dim=1).mean())

    def start_ranking(self, events: Tensor, positive: Tensor, factors: ItemFactors | None) -> None:
        """Start the ranking head at what was counted and fitted."""
        self.click.start_from(events, positive, factors)

    def attention(self, device: torch.device) -> str:
        """Name the back end of the masks and its reason; nothing without signals."""
        if self.row_signals is None:
            return ""
        choice = choose(device.type, self.max_history)
        return f"preference-guided attention: {choice.name} ({choice.reason})"

    def item_tables(self) -> ItemTables:
        """Compute vectors of items and the spaces in which anchors are selected."""
        items, readout, space_VW = self.trunk.items, self.click.readout, None
        item_VD = items.table()[: items.num_items]
        if readout is not None:
            kinds = readout.category
            space_VW = readout.space(None if kinds is None else items.mean_of_categories(kinds))
        return ItemTables(item_VD, self._centred(item_VD), space_VW)

    def read(
        self, packed: Packed, *, rows: Tensor | None = None, tables: ItemTables | None = None
    ) -> Reading:
        """Read histories; the last block serves `rows` alone, where they are given."""
        tables = self.item_tables() if tables is None else tables
        trunk = self.trunk(packed, tables.items, causal=True)
        key_TD = tables.space[packed.item]
        readers = packed.readers()
        whole = True if rows is not None and not self._sparse(packed) else None
        tiles: Tiles | KeyTiles = history_tiles(packed, readers, self.tile, segments=whole)
        weight: Tensor | None = None
        if self.preference_below and len(packed.item):
            own = self._row_mask(key_TD, key_TD, packed, readers)
            tiles, weight = own.tiles, own.weight
        x_TD, length_T1 = trunk.fused, (packed.position + 1)[:, None]
        mask: PreferenceMask | None = None
        keys = []
        for module in self.blocks:
            block, last = cast(HSTUBlock, module), module is self.blocks[-1]
            if last and rows is not None:
                keys.append(block.keys(x_TD))
                # From here on T counts these rows alone.
                x_TD, length_T1, readers = x_TD[rows], length_T1[rows], packed.readers(rows)
                u_TE, q_THd = block.queries(x_TD)
            else:
                u_TE, v_THd, q_THd, k_THd = block.project(x_TD)
                keys.append((k_THd, v_THd))
            if last and self.row_signals is not None and len(packed.item):
                # A state lives in the item space: it asks for items like those it expects.
                mask = self._row_mask(x_TD, key_TD, packed, readers)
                tiles, weight = mask.tiles, mask.weight
            elif last and rows is not None:
                tiles, weight = history_tiles(packed, readers, self.tile, segments=whole), None
            x_TD = block.attend(x_TD, u_TE, q_THd, *keys[-1], tiles, length_T1, weight)
        return Reading(x_TD, tables.items, mask, Memory(trunk, tables, key_TD, keys))

    def judge(self, packed: Packed, reading: Reading, candidates: Candidates) -> Judgement:
        """Judge candidates, which read the keys and values of the history in every block."""
        memory: Memory = reading.memory
        c_CD = entered_CD = self.trunk.candidates(memory.trunk, packed, candidates)
        whole = self._segments(packed, candidates)
        anchors = self._candidate_anchors(memory, packed, candidates, whole)
        if self.candidate_signals is None or anchors is None or not len(packed.item):
            mask, weight = None, None
            tiles: Tiles | KeyTiles = whole or history_tiles(packed, candidates, self.tile)
        else:
            window = self.candidate_window
            mask = self._mask(self.candidate_signals, anchors, packed, candidates, window, whole)
            tiles, weight = mask.tiles, mask.weight
        seen_C1 = (candidates.end - candidates.first).clamp_min(1)[:, None]
        for module, (k_THd, v_THd) in zip(self.blocks, memory.keys, strict=True):
            block = cast(HSTUBlock, module)
            u_CE, q_CHd = block.queries(c_CD)
            c_CD = block.attend(c_CD, u_CE, q_CHd, k_THd, v_THd, tiles, seen_C1, weight)
        return Judgement(self.click(c_CD, entered_CD, packed, candidates, anchors), mask)

    def _centred(self, item_VD: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
        """Take off what all items share, and normalise: directions then tell items apart.

        What they share is kept from training, so that new items move no anchor of old ones.
        """
        normed_VD = functional.normalize(item_VD, dim=-1)
        shared_D: Tensor = self.shared
        if self.training:
            shared_D = normed_VD[FIRST_ITEM:].mean(0)
            with torch.no_grad():
                self.shared.copy_(shared_D)
        return functional.normalize(normed_VD - shared_D, dim=-1)

    def _row_mask(
        self, wish_QD: Tensor, key_TD: Tensor, packed: Packed, readers: Readers
    ) -> PreferenceMask:
        """Mask of history rows by the likeness of what they wish to what they see."""
        assert self.row_signals is not None and self.row_selector is not None
        tiles = self._segments(packed, readers)
        anchors = self.row_selector(
            wish_QD, key_TD, readers.first, readers.end, packed.position, tiles
        )
        return self._mask(self.row_signals, anchors, packed, readers, self.row_window, tiles)

    def _candidate_anchors(
        self, memory: Memory, packed: Packed, candidates: Candidates, tiles: Tiles | None
    ) -> tuple[Tensor, Tensor] | None:
        """Rows and cosines of the candidates' anchors: those of the read-out, if there is one."""
        if self.click.readout is not None:
            return self.click.readout.select(packed, candidates, memory.tables.readout, tiles)
        if self.item_selector is None:
            return None
        wish_CD = memory.tables.space[candidates.item]
        return self.item_selector(
            wish_CD, memory.key, candidates.first, candidates.end, packed.position, tiles
        )

    def _mask(
        self,
        signals: PreferenceSignals,
        anchors: tuple[Tensor, Tensor],
        packed: Packed,
        readers: Readers,
        window: int,
        whole: Tiles | None,
    ) -> PreferenceMask:
        return signals(
            *anchors,
            readers.first,
            readers.end,
            len(packed.item),
            window=window,
            tile=self.tile,
            sparse=self._sparse(packed),
            query_time=readers.time,
            key_time=packed.time,
            query_position=readers.position,
            whole=whole,
        )

    def _segments(self, packed: Packed, readers: Readers) -> Tiles | None:
        """Tiles of segments, where a mask of few queries would compute all that they see anyway."""
        # What training saves for gradients grows evenly with the batch: it keeps square tiles.
        if self._sparse(packed) or readers.position is None or torch.is_grad_enabled():
            return None
        tiles = history_tiles(packed, readers, self.tile, segments=True)
        return tiles if tiles.rows is not None else None

    def _sparse(self, packed: Packed) -> bool:
        return choose(packed.item.device.type, self.max_history).sparse
