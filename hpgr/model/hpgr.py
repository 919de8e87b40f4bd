"""HPGR: hierarchical and preference-aware generative recommender (arXiv 2603.00980).

Stage 2: HSTU blocks with preference-guided sparse attention on the trunk that stage 1 trained
(`hpgr.model.trunk`), and two heads:

- retrieval: the state of a history row, matched by cosine with every item of the catalogue;
- ranking: pCTR of candidates, all in one pass, each seeing only events before its request time.

In every block a query (a candidate; in the last block also each history row, whose output is the
retrieval state) reads the history through its Gaussian mask. History rows below the last block are
causal as in HSTU, or masked as well (`history_rows: preference`), so that cost grows as their
number. With `sessions` and `preference` off and no side features this is HSTU with HPGR's heads.

Shape legend (suffixes of names): T history rows, C candidates, V items, D width, W width of the
read-out's space, H heads, d width of a head, E = H * d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from hpgr.data.log import FIRST_ITEM
from hpgr.model.attention.cover import Tiles
from hpgr.model.attention.entry import choose
from hpgr.model.attention.key_tiles import KeyTiles
from hpgr.model.attention.select import Selector
from hpgr.model.catalogue import Catalogue
from hpgr.model.hstu import HSTUBlock, history_tiles, hstu_blocks
from hpgr.model.interface import Growth, Judgement, Network, Reading
from hpgr.model.packed import Candidates, Packed, Readers
from hpgr.model.preference import PreferenceMask, PreferenceSignals
from hpgr.model.ranking_head import ranking_head
from hpgr.model.readout import READOUT_GROWTH
from hpgr.model.shapes import Float
from hpgr.model.tastes import ItemFactors
from hpgr.model.trunk import HPGRTrunk, MaskedItemModel, Trunk
from hpgr.model.unit import unit


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
        the mean length of a fresh table. What sessions add to items starts at a tenth: stage 1
        looked both ways when it learned to add it.
        """
        before = self.trunk.items.table().detach().norm(dim=1).mean()
        super().inherit(weights, fresh=fresh)
        if fresh:
            self.trunk.items.scale(before / self.trunk.items.table().detach().norm(dim=1).mean())
            if self.trunk.sessions is not None:
                self.trunk.sessions.quieten()

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
        key_TD = tables.space.index_select(0, packed.item)
        readers = packed.readers()
        whole = True if rows is not None and not self._sparse(packed) else None
        tiles: Tiles | KeyTiles
        tiles = every = history_tiles(packed, readers, self.tile, segments=whole)
        weight: Tensor | None = None
        if self.preference_below and len(packed.item):
            own = self._row_mask(key_TD, key_TD, packed, readers, every)
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
                known = every if rows is None else None
                mask = self._row_mask(x_TD, key_TD, packed, readers, known)
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
            signals = self.candidate_signals
            mask = self._mask(signals, anchors, packed, candidates, window, None, whole)
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
        normed_VD = unit(item_VD)
        shared_D: Tensor = self.shared
        if self.training:
            shared_D = normed_VD[FIRST_ITEM:].mean(0)
            with torch.no_grad():
                self.shared.copy_(shared_D)
        return unit(normed_VD - shared_D)

    def _row_mask(
        self,
        wish_QD: Tensor,
        key_TD: Tensor,
        packed: Packed,
        readers: Readers,
        every: Tiles | None,
    ) -> PreferenceMask:
        """Mask of history rows by the likeness of what they wish to what they see."""
        assert self.row_signals is not None and self.row_selector is not None
        whole = self._segments(packed, readers) if every is None else None
        anchors = self.row_selector(
            wish_QD, key_TD, readers.first, readers.end, packed.position, whole
        )
        window = self.row_window
        return self._mask(self.row_signals, anchors, packed, readers, window, every, whole)

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
        every: Tiles | None,
        whole: Tiles | None,
    ) -> PreferenceMask:
        """Mask of readers, of whom `every` or segments, `whole`, may be the tiles already."""
        if self._sparse(packed):
            every = None
        elif every is None and whole is None:
            every = history_tiles(packed, readers, self.tile)
        return signals(
            *anchors,
            readers.first,
            readers.end,
            len(packed.item),
            window=window,
            tiles=every,
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
