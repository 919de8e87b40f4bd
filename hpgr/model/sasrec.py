"""SASRec (arXiv 1808.09781) and eSASRec (RecSys 2025), over packed rows.

Both read a history by causal softmax attention and differ in their block: SASRec has that of its
authors, eSASRec that of LiGR (arXiv 2502.03417). The blocks follow RecTools, on which the paper
"eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion" builds, and start at
Xavier's normal weights as there.

Shape legend (suffixes of names): T history rows, C candidates, Q query rows (either of them), K key
rows, D width, H heads, d width of a head, F hidden width.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.attention.cover import Tiles, build_tiles
from hpgr.model.attention.entry import additive_attention, softmax_attention
from hpgr.model.catalogue import Catalogue
from hpgr.model.dropout import dropout
from hpgr.model.hstu import ANCHORS
from hpgr.model.interface import Growth, Judgement, Network, Reading
from hpgr.model.packed import Candidates, Packed, Readers
from hpgr.model.precision import wide
from hpgr.model.ranking_head import ranking_head
from hpgr.model.readout import READOUT_GROWTH
from hpgr.model.shapes import Float
from hpgr.model.tastes import ItemFactors

FEED_FORWARD = 4  # width of eSASRec's hidden layer, in multiples of D; SASRec's has D
MAX_SCORE = 60.0  # its exp, times any number of keys, is a float32


class SelfAttention(nn.Module):
    """Multi-head softmax attention as torch.nn.MultiheadAttention has it, over packed rows.

    Its weights have no dropout: they are computed tile by tile and again in the backward pass.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        for linear in (self.qkv, self.output):
            nn.init.zeros_(linear.bias)

    def keys(
        self, x_KD: Float[Tensor, "K D"]
    ) -> tuple[Float[Tensor, "K H d"], Float[Tensor, "K H d"]]:
        """Compute keys and values [K, H, d] of rows [K, D]."""
        dim = x_KD.shape[1]
        kv = functional.linear(x_KD, self.qkv.weight[dim:], self.qkv.bias[dim:])
        k_KHd, v_KHd = kv.view(len(x_KD), 2, self.num_heads, -1).unbind(1)
        return k_KHd, v_KHd

    def forward(
        self,
        x_QD: Float[Tensor, "Q D"],
        k_KHd: Float[Tensor, "K H d"],
        v_KHd: Float[Tensor, "K H d"],
        tiles: Tiles,
    ) -> Float[Tensor, "Q D"]:
        """Let each row read the keys that `tiles` shows it."""
        dim = x_QD.shape[1]
        q_QD = functional.linear(x_QD, self.qkv.weight[:dim], self.qkv.bias[:dim])
        q_QHd = q_QD.view(len(x_QD), self.num_heads, -1) / math.sqrt(dim // self.num_heads)
        # A column more of queries and keys takes one number from all of a query's scores.
        q_QHd = torch.cat([q_QHd, -excess(q_QHd, k_KHd, tiles).to(q_QHd.dtype)], dim=-1)
        k_KHd = torch.cat([k_KHd, torch.ones_like(k_KHd[..., :1])], dim=-1)
        no_bias = self.output.bias.new_zeros(1)
        return self.output(softmax_attention(q_QHd, k_KHd, v_KHd, tiles, no_bias).flatten(1))


def excess(
    q_QHd: Float[Tensor, "Q H d"], k_KHd: Float[Tensor, "K H d"], tiles: Tiles
) -> Float[Tensor, "Q H 1"]:
    """Return what must be taken from the scores of each query before exp.

    No score exceeds the product of lengths of the query and of the longest key before its end
    (Cauchy-Schwarz). Where that is at most MAX_SCORE, as a rule everywhere, it is 0; elsewhere a
    smooth maximum of the scores, which one more sum gives at a scale that exp can bear, less
    MAX_SCORE. Later keys have no part in it, not even through rounding.
    """
    q_QHd, k_KHd = wide(q_QHd.detach()), wide(k_KHd.detach())
    longest_KH = functional.pad(k_KHd.norm(dim=-1).cummax(0).values, (0, 0, 1, 0))
    reach_QH1 = (q_QHd.norm(dim=-1) * longest_KH[tiles.end])[..., None]
    too_far_QH1 = reach_QH1 > MAX_SCORE
    if not too_far_QH1.any():
        return torch.zeros_like(reach_QH1)
    scale_QH1 = reach_QH1.clamp_min(MAX_SCORE) / MAX_SCORE
    no_bias = q_QHd.new_zeros(1)
    total_QH1 = additive_attention(
        q_QHd / scale_QH1,
        k_KHd,
        torch.ones_like(k_KHd[..., :1]),
        tiles,
        position_bias=no_bias,
        time_bias=no_bias,
        exponential=True,
    )
    smooth_QH1 = scale_QH1 * total_QH1.clamp_min(torch.finfo(total_QH1.dtype).tiny).log()
    return torch.where(too_far_QH1, smooth_QH1 - MAX_SCORE, 0.0)


class SASRecBlock(nn.Module):
    """SASRec's block: y = LayerNorm(q + Attention(q, x)), then y + FF(y), with q = LayerNorm(x).

    Keys and values are those of x, and y is what the skip around the feed-forward layer carries.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.query_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        self.mixed_norm = nn.LayerNorm(dim)
        self.hidden = nn.Linear(dim, dim)
        self.mixed = nn.Linear(dim, dim)

    def keys(
        self, x_KD: Float[Tensor, "K D"]
    ) -> tuple[Float[Tensor, "K H d"], Float[Tensor, "K H d"]]:
        """Compute keys and values of the block's input."""
        return self.attention.keys(x_KD)

    def forward(
        self,
        x_QD: Float[Tensor, "Q D"],
        k_KHd: Float[Tensor, "K H d"],
        v_KHd: Float[Tensor, "K H d"],
        tiles: Tiles,
    ) -> Float[Tensor, "Q D"]:
        """Compute the output of query rows x over keys and values."""
        q_QD = self.query_norm(x_QD)
        y_QD = self.mixed_norm(q_QD + self.attention(q_QD, k_KHd, v_KHd, tiles))
        hidden_QF = dropout(functional.relu(self.hidden(y_QD)), self.dropout, self.training)
        return y_QD + dropout(self.mixed(hidden_QF), self.dropout, self.training)


class LiGRBlock(nn.Module):
    """LiGR's block: y = x + gate(x) * Attention(LayerNorm(x)), then y + gate(y) * FF(LayerNorm(y)).

    A gate is a linear layer with a sigmoid; FF is SwiGLU without biases.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        self.attention_gate = nn.Linear(dim, dim)
        self.mixed_norm = nn.LayerNorm(dim)
        self.hidden = nn.Linear(dim, FEED_FORWARD * dim, bias=False)
        self.hidden_gate = nn.Linear(dim, FEED_FORWARD * dim, bias=False)
        self.mixed = nn.Linear(FEED_FORWARD * dim, dim, bias=False)
        self.mixed_gate = nn.Linear(dim, dim)

    def keys(
        self, x_KD: Float[Tensor, "K D"]
    ) -> tuple[Float[Tensor, "K H d"], Float[Tensor, "K H d"]]:
        """Compute keys and values of the block's input."""
        return self.attention.keys(self.attention_norm(x_KD))

    def forward(
        self,
        x_QD: Float[Tensor, "Q D"],
        k_KHd: Float[Tensor, "K H d"],
        v_KHd: Float[Tensor, "K H d"],
        tiles: Tiles,
    ) -> Float[Tensor, "Q D"]:
        """Compute the output of query rows x over keys and values."""
        read_QD = self.attention(self.attention_norm(x_QD), k_KHd, v_KHd, tiles)
        read_QD = dropout(read_QD, self.dropout, self.training)
        y_QD = x_QD + torch.sigmoid(self.attention_gate(x_QD)) * read_QD
        normed_QD = self.mixed_norm(y_QD)
        hidden_QF = functional.silu(self.hidden_gate(normed_QD)) * self.hidden(normed_QD)
        mixed_QD = self.mixed(dropout(hidden_QF, self.dropout, self.training))
        mixed_QD = dropout(mixed_QD, self.dropout, self.training)
        return y_QD + torch.sigmoid(self.mixed_gate(y_QD)) * mixed_QD


class SASRec(Network):
    """SASRec; it has no stage 1 and knows no time.

    Input: item vector + learned position, dropout; blocks; LayerNorm; the caller normalises states
    and items (L2). Positions count from the oldest event, as in HSTU: counted from the newest one,
    a position would say how many events follow. Actions and candidates are as in HSTU.
    """

    grows: ClassVar = {
        "item.weight": Growth("num_items"),
        "action.weight": Growth("num_actions"),
        "click.item_bias": Growth("num_items"),
        "click.action_value": Growth("num_actions"),
        **READOUT_GROWTH,
    }
    watched: ClassVar = {"readout": ("click.readout",)}
    block: ClassVar[type[SASRecBlock | LiGRBlock]] = SASRecBlock

    def __init__(self, settings: Any, catalogue: Catalogue, *, ranking: bool = True) -> None:
        super().__init__(settings, catalogue, ranking=ranking)
        self.tile, self.dropout = settings.tile, settings.dropout
        self.item = nn.Embedding(catalogue.num_items, settings.dim)
        self.position = nn.Embedding(settings.max_history + 1, settings.dim)  # 1: of a candidate
        self.blocks = nn.ModuleList(
            self.block(settings.dim, settings.num_heads, dropout=settings.dropout)
            for _ in range(settings.num_blocks)
        )
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.xavier_normal_(weight)
        self.norm = self.last_norm(settings.dim)
        self.action = nn.Embedding(catalogue.num_actions, settings.dim) if ranking else None
        if self.action is not None:
            nn.init.trunc_normal_(self.action.weight, std=0.02)
        self.click = ranking_head(settings, catalogue, ranking=ranking, num_anchors=ANCHORS)

    @staticmethod
    def last_norm(dim: int) -> nn.Module:
        """Make what follows the last block."""
        return nn.LayerNorm(dim, eps=1e-8)

    def read(self, packed: Packed, *, rows: Tensor | None = None) -> Reading:
        """Read histories."""
        x_TD = self._embed(packed.item, packed.position)
        if self.action is not None:
            x_TD = x_TD + self.action(packed.action)
        x_TD = dropout(x_TD, self.dropout, self.training)
        tiles = self._tiles(packed, packed.readers())
        memory = []
        for module in self.blocks:
            block = cast("SASRecBlock | LiGRBlock", module)
            memory.append(block.keys(x_TD))
            x_TD = block(x_TD, *memory[-1], tiles)
        states_TD = self.norm(x_TD if rows is None else x_TD[rows])
        return Reading(states_TD, self.item.weight, None, memory)

    def judge(self, packed: Packed, reading: Reading, candidates: Candidates) -> Judgement:
        """Judge candidates, which read the keys and values of the history in every block."""
        visible_C = candidates.end - candidates.first
        c_CD = dropout(self._embed(candidates.item, visible_C), self.dropout, self.training)
        entered_CD = c_CD
        tiles = self._tiles(packed, candidates)
        for block, (k_THd, v_THd) in zip(self.blocks, reading.memory, strict=True):
            c_CD = block(c_CD, k_THd, v_THd, tiles)
        return Judgement(self.click(self.norm(c_CD), entered_CD, packed, candidates), None)

    def start_ranking(self, events: Tensor, positive: Tensor, factors: ItemFactors | None) -> None:
        """Start the ranking head at what was counted and fitted."""
        self.click.start_from(events, positive, factors)

    def _embed(self, item: Tensor, position: Tensor) -> Tensor:
        place = position.clamp_max(self.position.num_embeddings - 1)
        return self.item(item) + self.position(place)

    def _tiles(self, packed: Packed, readers: Readers) -> Tiles:
        return build_tiles(
            readers.first,
            readers.end,
            len(packed.item),
            size=self.tile,
            query_position=readers.position,
        )


class ESASRec(SASRec):
    """eSASRec: the same around LiGR's blocks, which no normalisation follows."""

    block = LiGRBlock

    @staticmethod
    def last_norm(dim: int) -> nn.Module:
        """Make what follows the last block: nothing."""
        return nn.Identity()
