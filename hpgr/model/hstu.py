"""HSTU: hierarchical sequential transduction units (arXiv 2402.17152), over packed rows.

`HSTUBlock` is shared by the HSTU baseline and by HPGR; the block follows the official research
code: LayerNorm without affine, one matrix `uvqk` with SiLU, scores without 1/sqrt(d), relative
position and time bias shared by heads, SiLU weights divided by a length, gating by U.

Shape legend: T rows, D width, H heads, d width of a head.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.attention.cover import NUM_TIME_BUCKETS, Tiles, build_tiles
from hpgr.model.attention.entry import additive_attention
from hpgr.model.catalogue import Catalogue
from hpgr.model.dropout import dropout
from hpgr.model.interface import Growth, Network, Output
from hpgr.model.packed import Candidates, Packed
from hpgr.model.ranking_head import RankingHead
from hpgr.model.shapes import Float, Int

EPSILON = 1e-6


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
        self, x: Float[Tensor, "T D"]
    ) -> tuple[
        Float[Tensor, "T Hd"],
        Float[Tensor, "T H d"],
        Float[Tensor, "T H d"],
        Float[Tensor, "T H d"],
    ]:
        """Compute U [T, H * d] and V, Q, K [T, H, d] of rows [T, D]."""
        normed = functional.layer_norm(x, x.shape[-1:], eps=EPSILON)
        u, v, q, k = functional.silu(normed @ self.uvqk).chunk(4, dim=-1)
        shape = (len(x), self.num_heads, self.head_dim)
        return u, v.view(shape), q.view(shape), k.view(shape)

    def attend(
        self,
        x: Float[Tensor, "Q D"],
        u: Float[Tensor, "Q Hd"],
        q: Float[Tensor, "Q H d"],
        k: Float[Tensor, "K H d"],
        v: Float[Tensor, "K H d"],
        tiles: Tiles,
        length: Int[Tensor, "Q 1"] | float,
        weight: Float[Tensor, "N S S"] | None = None,
    ) -> Float[Tensor, "Q D"]:
        """Compute the output of query rows x, with their u and q, over keys k and values v.

        `length` divides the sum: one number (HSTU's padded length) or [Q, 1].
        """
        summed = additive_attention(
            q,
            k,
            v,
            tiles,
            position_bias=self.position_bias,
            time_bias=self.time_bias,
            weight=weight,
        ).flatten(1)
        read = functional.layer_norm(summed / length, summed.shape[-1:], eps=EPSILON)
        return x + self.output(dropout(u * read, self.dropout, self.training))


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
    }

    def __init__(self, settings: Any, catalogue: Catalogue, *, ranking: bool = True) -> None:
        super().__init__(settings, catalogue, ranking=ranking)
        self.tile, self.dropout = settings.tile, settings.dropout
        self.num_items = catalogue.num_items
        self.padded_length = float(settings.max_history + 11)
        num_positions = settings.max_history + 11
        self.item = nn.Embedding(catalogue.num_items, settings.dim)
        self.position = nn.Embedding(num_positions, settings.dim)
        self.action = nn.Embedding(catalogue.num_actions, settings.dim) if ranking else None
        for table in (self.item, self.position, self.action):
            if table is not None:
                nn.init.trunc_normal_(table.weight, std=0.02)
        self.blocks = nn.ModuleList(
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
        self.click = RankingHead(settings.dim, catalogue.num_items, catalogue.num_actions)

    def forward(
        self, packed: Packed, candidates: Candidates | None, *, newest_only: bool = False
    ) -> Output:
        """Compute states and scores of one batch."""
        x = self._embed(packed.item, packed.position)
        if self.action is not None:
            x = x + self.action(packed.action)
        x = dropout(x, self.dropout, self.training)
        tiles = build_tiles(
            packed.first,
            packed.row_end,
            len(packed.item),
            size=self.tile,
            query_time=packed.next_time,
            key_time=packed.time,
        )
        c = None
        if candidates is not None:
            visible = candidates.last - candidates.first
            c = dropout(self._embed(candidates.item, visible), self.dropout, self.training)
            c_input = c
            candidate_tiles = build_tiles(
                candidates.first,
                candidates.last,
                len(packed.item),
                size=self.tile,
                query_time=candidates.time,
                key_time=packed.time,
                query_position=candidates.last,
            )
        for module in self.blocks:
            block = cast(HSTUBlock, module)
            u, v, q, k = block.project(x)
            if c is not None:
                cu, _, cq, _ = block.project(c)
                c = block.attend(c, cu, cq, k, v, candidate_tiles, self.padded_length)
            x = block.attend(x, u, q, k, v, tiles, self.padded_length)
        logits = None
        if c is not None and candidates is not None:
            logits = self.click(c, c_input, packed, candidates)
        return Output(x[packed.newest] if newest_only else x, self.item.weight, logits)

    def start_ranking(self, events: Tensor, positive: Tensor) -> None:
        """Start each item's bias at its rate."""
        self.click.start_from(events, positive)

    def _embed(self, item: Tensor, position: Tensor) -> Tensor:
        place = position.clamp_max(self.position.num_embeddings - 1)
        return self.item(item) * math.sqrt(self.item.embedding_dim) + self.position(place)
