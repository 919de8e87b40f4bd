"""HSTU: hierarchical sequential transduction units (arXiv 2402.17152), over packed rows.

`HSTUBlock` is shared by the HSTU baseline and by HPGR; the block follows the official research
code: LayerNorm without affine, one matrix `uvqk` with SiLU, scores without 1/sqrt(d), relative
position and time bias shared by heads, SiLU weights divided by a length, gating by U.

Shape legend (suffixes of names): T history rows, C candidates, Q query rows (either of them), K key
rows, D width, H heads, d width of a head, E = H * d.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.attention.cover import NUM_TIME_BUCKETS, Tiles, build_tiles
from hpgr.model.attention.entry import additive_attention
from hpgr.model.attention.key_tiles import KeyTiles
from hpgr.model.catalogue import Catalogue
from hpgr.model.dropout import dropout
from hpgr.model.interface import Growth, Judgement, Network, Reading
from hpgr.model.packed import Candidates, Packed, Readers
from hpgr.model.ranking_head import ranking_head
from hpgr.model.readout import READOUT_GROWTH
from hpgr.model.shapes import Float, Int
from hpgr.model.tastes import ItemFactors

EPSILON = 1e-6
ANCHORS = 16  # of the read-out, where a model has one; as many as HPGR's by default


class HSTUBlock(nn.Module):
    """One block: x + Linear(Dropout(U * LayerNorm(A V))).

    History rows and queries apart from them (candidates) pass the same weights: `project` once for
    the rows that serve as keys, then `attend` for the rows that query them.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int,
        num_positions: int,
        dropout: float,
        position_bias: bool,
        time_bias: bool,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.uvqk = nn.Parameter(torch.empty(dim, 4 * num_heads * head_dim).normal_(0, 0.02))
        self.output = nn.Linear(num_heads * head_dim, dim)
        nn.init.xavier_uniform_(self.output.weight)
        self.dropout = dropout
        self.position_bias = nn.Parameter(
            torch.empty(num_positions).normal_(0, 0.02), requires_grad=position_bias
        )
        self.time_bias = nn.Parameter(
            torch.empty(NUM_TIME_BUCKETS).normal_(0, 0.02), requires_grad=time_bias
        )
        if not position_bias:
            nn.init.zeros_(self.position_bias)
        if not time_bias:
            nn.init.zeros_(self.time_bias)

    def project(
        self, x_TD: Float[Tensor, "T D"]
    ) -> tuple[
        Float[Tensor, "T E"],
        Float[Tensor, "T H d"],
        Float[Tensor, "T H d"],
        Float[Tensor, "T H d"],
    ]:
        """Compute U [T, E] and V, Q, K [T, H, d] of rows [T, D]."""
        normed_TD = functional.layer_norm(x_TD, x_TD.shape[-1:], eps=EPSILON)
        u_TE, v_TE, q_TE, k_TE = functional.silu(normed_TD @ self.uvqk).chunk(4, dim=-1)
        shape = (len(x_TD), self.num_heads, self.head_dim)
        return u_TE, v_TE.view(shape), q_TE.view(shape), k_TE.view(shape)

    def queries(
        self, x_QD: Float[Tensor, "Q D"]
    ) -> tuple[Float[Tensor, "Q E"], Float[Tensor, "Q H d"]]:
        """Compute U [Q, E] and Q [Q, H, d] alone, as `project` does."""
        u_QE, q_QE = self._parts(x_QD, 0, 2)
        return u_QE, q_QE.view(len(x_QD), self.num_heads, self.head_dim)

    def keys(
        self, x_TD: Float[Tensor, "T D"]
    ) -> tuple[Float[Tensor, "T H d"], Float[Tensor, "T H d"]]:
        """Compute K and V [T, H, d] alone, as `project` does."""
        shape = (len(x_TD), self.num_heads, self.head_dim)
        v_TE, k_TE = self._parts(x_TD, 1, 3)
        return k_TE.view(shape), v_TE.view(shape)

    def _parts(self, x_TD: Tensor, *numbers: int) -> list[Tensor]:
        """Some of U, V, Q and K (0 to 3), each [T, E]."""
        normed_TD = functional.layer_norm(x_TD, x_TD.shape[-1:], eps=EPSILON)
        matrices = self.uvqk.chunk(4, dim=-1)
        return [functional.silu(normed_TD @ matrices[number]) for number in numbers]

    def attend(
        self,
        x_QD: Float[Tensor, "Q D"],
        u_QE: Float[Tensor, "Q E"],
        q_QHd: Float[Tensor, "Q H d"],
        k_KHd: Float[Tensor, "K H d"],
        v_KHd: Float[Tensor, "K H d"],
        tiles: Tiles | KeyTiles,
        length: Int[Tensor, "Q 1"] | float,
        weight_NGS: Float[Tensor, "N G S"] | None = None,
    ) -> Float[Tensor, "Q D"]:
        """Compute the output of query rows x, with their u and q, over keys k and values v.

        `length` divides the sum: one number (HSTU's padded length) or [Q, 1].
        """
        summed_QE = additive_attention(
            q_QHd,
            k_KHd,
            v_KHd,
            tiles,
            position_bias=self.position_bias,
            time_bias=self.time_bias,
            weight=weight_NGS,
        ).flatten(1)
        read_QE = functional.layer_norm(summed_QE / length, summed_QE.shape[-1:], eps=EPSILON)
        return x_QD + self.output(dropout(u_QE * read_QE, self.dropout, self.training))


def hstu_blocks(settings: Any, *, num_positions: int) -> nn.ModuleList:
    """Make the blocks that the section `model` asks for."""
    return nn.ModuleList(
        HSTUBlock(
            settings.dim,
            settings.num_heads,
            head_dim=settings.dim // settings.num_heads,
            num_positions=num_positions,
            dropout=settings.dropout,
            position_bias=settings.position_bias,
            time_bias=settings.time_bias,
        )
        for _ in range(settings.num_blocks)
    )


def history_tiles(
    packed: Packed, readers: Readers, size: int, *, segments: bool | None = None
) -> Tiles:
    """Cover the history rows that `readers` see, with the time that lies between.

    Readers apart from the rows are few in a history: smaller tiles hold fewer pairs in vain.
    `segments` is as in `build_tiles`.
    """
    return build_tiles(
        readers.first,
        readers.end,
        len(packed.item),
        size=size if readers.position is None else max(1, size // 2),
        query_time=readers.time,
        key_time=packed.time,
        query_position=readers.position,
        segments=segments,
    )


class HSTU(Network):
    """The HSTU baseline as its authors run it on MovieLens; it has no stage 1.

    Input: item vector * sqrt(D) + learned position, dropout; blocks; the caller normalises states
    and items (L2). Scores are divided by the padded length, max_history + 11 (200 + 10 + 1 in the
    official code). Candidates of the ranking task are appended behind their visible history and
    see all of it. Only with that task does the history carry the user's actions: without them no
    model could know how a user rates.
    """

    grows: ClassVar = {
        "item.weight": Growth("num_items"),
        "action.weight": Growth("num_actions"),
        "click.item_bias": Growth("num_items"),
        "click.action_value": Growth("num_actions"),
        **READOUT_GROWTH,
    }
    watched: ClassVar = {"readout": ("click.readout",)}

    def __init__(self, settings: Any, catalogue: Catalogue, *, ranking: bool = True) -> None:
        super().__init__(settings, catalogue, ranking=ranking)
        self.tile, self.dropout = settings.tile, settings.dropout
        num_positions = settings.max_history + 11
        self.padded_length = float(num_positions)
        self.item = nn.Embedding(catalogue.num_items, settings.dim)
        self.position = nn.Embedding(num_positions, settings.dim)
        self.action = nn.Embedding(catalogue.num_actions, settings.dim) if ranking else None
        for table in (self.item, self.position, self.action):
            if table is not None:
                nn.init.trunc_normal_(table.weight, std=0.02)
        self.blocks = hstu_blocks(settings, num_positions=num_positions)
        self.click = ranking_head(settings, catalogue, ranking=ranking, num_anchors=ANCHORS)

    def read(self, packed: Packed, *, rows: Tensor | None = None) -> Reading:
        """Read histories."""
        x_TD = self._embed(packed.item, packed.position)
        if self.action is not None:
            x_TD = x_TD + self.action(packed.action)
        x_TD = dropout(x_TD, self.dropout, self.training)
        tiles = history_tiles(packed, packed.readers(), self.tile)
        keys = []
        for module in self.blocks:
            block = cast(HSTUBlock, module)
            u_TE, v_THd, q_THd, k_THd = block.project(x_TD)
            keys.append((k_THd, v_THd))
            x_TD = block.attend(x_TD, u_TE, q_THd, k_THd, v_THd, tiles, self.padded_length)
        return Reading(x_TD if rows is None else x_TD[rows], self.item.weight, None, keys)

    def judge(self, packed: Packed, reading: Reading, candidates: Candidates) -> Judgement:
        """Judge candidates, which read the keys and values of the history in every block."""
        visible_C = candidates.end - candidates.first
        c_CD = dropout(self._embed(candidates.item, visible_C), self.dropout, self.training)
        entered_CD = c_CD
        tiles = history_tiles(packed, candidates, self.tile)
        for module, (k_THd, v_THd) in zip(self.blocks, reading.memory, strict=True):
            block = cast(HSTUBlock, module)
            u_CE, q_CHd = block.queries(c_CD)
            c_CD = block.attend(c_CD, u_CE, q_CHd, k_THd, v_THd, tiles, self.padded_length)
        return Judgement(self.click(c_CD, entered_CD, packed, candidates), None)

    def start_ranking(self, events: Tensor, positive: Tensor, factors: ItemFactors | None) -> None:
        """Start the ranking head at what was counted and fitted."""
        self.click.start_from(events, positive, factors)

    def _embed(self, item: Tensor, position: Tensor) -> Tensor:
        place = position.clamp_max(self.position.num_embeddings - 1)
        return self.item(item) * math.sqrt(self.item.embedding_dim) + self.position(place)
