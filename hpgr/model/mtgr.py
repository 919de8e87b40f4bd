"""MTGR: Meituan's generative ranking with cross features (arXiv 2505.18654), over packed rows.

One sample holds a user's history and all of its candidates. Tokens have domains: the static
sequence S, the real-time sequence R, and candidates, which carry their cross features. One block:

    K, Q, V, U = projections of GroupLN(x)
    x + MLP(GroupLN(SiLU(Q K^T + bias) / n * M * V * U))

GroupLN has an affine of its own for each domain. The mask M shows S to all, an event of R to what
comes later, and a candidate to itself alone. No code is public. Ours are: users have no profile
tokens, since an event log holds no attributes of users; what is static depends on the reader, since
candidates at many times share one history; the biases, as in HSTU; n counts the visible tokens.

Each event has two tokens. Its static token, in S, reads all events up to the end of its visit and
shows itself to those who come after that visit; its real-time token, in R, reads the static tokens
of closed visits and the real-time ones of its own visit so far. So every event is read once,
nothing is read before it happened, and the state of an event is that of its real-time token.

Shape legend (suffixes of names): T history rows, C candidates, Q query rows (rows or candidates), V
items, D width, H heads, d width of a head.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.attention.cover import NUM_TIME_BUCKETS, Tiles
from hpgr.model.attention.entry import additive_attention
from hpgr.model.catalogue import Catalogue
from hpgr.model.cross_features import CrossFeatures
from hpgr.model.dropout import dropout
from hpgr.model.embedding import ItemEmbedding, TimeAwarePosition, embedding_table, scaled
from hpgr.model.hstu import ANCHORS, EPSILON, history_tiles
from hpgr.model.interface import Growth, Judgement, Network, Reading
from hpgr.model.packed import Candidates, Packed, Readers
from hpgr.model.ranking_head import ranking_head
from hpgr.model.readout import READOUT_GROWTH
from hpgr.model.shapes import Float, Int
from hpgr.model.standardise import Standardise
from hpgr.model.tastes import ItemFactors

STATIC, REAL_TIME, CANDIDATE = range(3)  # domains


class Projection(NamedTuple):
    """U [Q, D] and V, Q, K [Q, H, d] of some tokens."""

    u: Float[Tensor, "Q D"]
    v: Float[Tensor, "Q H d"]
    q: Float[Tensor, "Q H d"]
    k: Float[Tensor, "Q H d"]


class GroupLayerNorm(nn.Module):
    """LayerNorm over the width, with an affine for each domain of tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dim))
        self.bias = nn.Parameter(torch.zeros(3, dim))

    def forward(self, x_QD: Float[Tensor, "Q D"], domain: int) -> Float[Tensor, "Q D"]:
        """Normalise tokens of one domain."""
        weight_D, bias_D = self.weight[domain], self.bias[domain]
        return functional.layer_norm(x_QD, weight_D.shape, weight_D, bias_D, EPSILON)


class MTGRBlock(nn.Module):
    """One block; the module docstring has its formula."""

    def __init__(self, settings: Any, *, num_positions: int) -> None:
        super().__init__()
        dim, heads = settings.dim, settings.num_heads
        self.shape, self.dropout = (heads, dim // heads), settings.dropout
        self.entering, self.leaving = GroupLayerNorm(dim), GroupLayerNorm(dim)
        # Wider than HSTU's: the norm comes behind the product with U, whose variance would else lie
        # a thousandfold below the norm's epsilon, and the block would start mute.
        self.uvqk = nn.Parameter(torch.empty(dim, 4 * dim))
        nn.init.xavier_normal_(self.uvqk)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.position_bias = _bias(num_positions, learned=settings.position_bias)
        self.time_bias = _bias(NUM_TIME_BUCKETS, learned=settings.time_bias)

    def project(self, x_QD: Float[Tensor, "Q D"], domain: int) -> Projection:
        """Compute what tokens of one domain ask and show."""
        u_QD, *vqk = functional.silu(self.entering(x_QD, domain) @ self.uvqk).chunk(4, dim=-1)
        return Projection(u_QD, *(one.unflatten(1, self.shape) for one in vqk))

    def read(
        self, q_QHd: Float[Tensor, "Q H d"], shown: Projection, tiles: Tiles
    ) -> Float[Tensor, "Q H d"]:
        """Sum over the history tokens that `tiles` let the queries see, not normalised."""
        return additive_attention(
            q_QHd,
            shown.k,
            shown.v,
            tiles,
            position_bias=self.position_bias,
            time_bias=self.time_bias,
        )

    def read_itself(self, own: Projection) -> Float[Tensor, "Q H d"]:
        """Compute the term of the same sum in which each token reads itself."""
        score_QH1 = (own.q * own.k).sum(-1, keepdim=True)
        return functional.silu(score_QH1 + self.position_bias[0] + self.time_bias[0]) * own.v

    def output(
        self,
        x_QD: Float[Tensor, "Q D"],
        u_QD: Float[Tensor, "Q D"],
        summed_QHd: Float[Tensor, "Q H d"],
        length_Q: Int[Tensor, "Q"],
        domain: int,
    ) -> Float[Tensor, "Q D"]:
        """Compute the output of tokens x of one domain that have read `summed_QHd`."""
        gated_QD = summed_QHd.flatten(1) / length_Q[:, None] * u_QD
        read_QD = self.leaving(gated_QD, domain)
        return x_QD + self.mlp(dropout(read_QD, self.dropout, self.training))


def _bias(size: int, *, learned: bool) -> nn.Parameter:
    """Make a bias [size]; one that is not learned is 0."""
    start = torch.empty(size).normal_(0, 0.02) if learned else torch.zeros(size)
    return nn.Parameter(start, requires_grad=learned)


class MTGR(Network):
    """The MTGR baseline: for ranking; its real-time tokens answer retrieval. It has no stage 1."""

    grows: ClassVar = {
        "items.item.weight": Growth("num_items", behind=1),  # the mask token, not used
        "items.category_table.weight": Growth("num_categories"),
        "action.weight": Growth("num_actions"),
        "cross.value": Growth("num_actions"),
        "cross.valued": Growth("num_actions"),
        "cross.bias": Growth("num_items"),
        "cross.tastes.factor": Growth("num_items"),
        "cross.tastes.bias": Growth("num_items"),
        "cross.tastes.hint": Growth("num_items"),
        "cross.tastes.value": Growth("num_actions"),
        "cross.tastes.valued": Growth("num_actions"),
        "click.item_bias": Growth("num_items"),
        "click.action_value": Growth("num_actions"),
        **READOUT_GROWTH,
    }
    watched: ClassVar = {"readout": ("click.readout",), "cross": ("cross_token",)}

    def __init__(self, settings: Any, catalogue: Catalogue, *, ranking: bool = True) -> None:
        super().__init__(settings, catalogue, ranking=ranking)
        self.tile, self.dropout = settings.tile, settings.dropout
        self.gap_s, self.own_sessions = catalogue.gap_s, catalogue.own_sessions
        dim, num_positions = settings.dim, settings.max_history + 1
        self.items = ItemEmbedding(catalogue, dim, side_features=True)
        self.action = embedding_table(catalogue.num_actions, dim)
        self.place = TimeAwarePosition(num_positions, dim, request_time=settings.time_bias)
        self.cross = CrossFeatures(
            catalogue.num_items, catalogue.num_actions, settings.cross, settings.factors
        )
        self.cross_token = nn.Sequential(
            Standardise(self.cross.num_features),
            nn.Linear(self.cross.num_features, dim),
            nn.SiLU(),
            nn.Linear(dim, dim),
        )
        self.blocks = nn.ModuleList(
            MTGRBlock(settings, num_positions=num_positions) for _ in range(settings.num_blocks)
        )
        self.click = ranking_head(
            settings,
            catalogue,
            ranking=ranking,
            num_anchors=ANCHORS,
            categories=self.items.category_table is not None,
        )

    @classmethod
    def fits_factors(cls, settings: Any) -> bool:
        """Ask for the fit of stage 1: the cross features need the values of actions."""
        return True

    def start_ranking(self, events: Tensor, positive: Tensor, factors: ItemFactors | None) -> None:
        """Start cross features and ranking head at what was counted and fitted."""
        self.click.start_from(events, positive, factors)
        if factors is not None:
            self.cross.start_from(factors)

    def read(self, packed: Packed, *, rows: Tensor | None = None) -> Reading:
        """Read histories; the last block serves `rows` alone, where they are given."""
        table_MD = self.items.table()
        x_TD = scaled(functional.embedding(packed.item, table_MD)) + self.action(packed.action)
        x_TD = x_TD + self.place(
            packed.position, packed.time, packed.previous_time, packed.next_time
        )
        static_TD = x_TD = dropout(x_TD, self.dropout, self.training)
        length_T = packed.position + 1
        # A static token knows no time of a request: it is read at many.
        visits = Readers(packed.first, packed.visit_end, packed.time, None)
        within = history_tiles(packed, visits, self.tile)
        tiles = self._tiles(packed, packed.readers(), _visit_first(packed))
        memory = []
        for module in self.blocks:
            block = cast(MTGRBlock, module)
            static, own = block.project(static_TD, STATIC), block.project(x_TD, REAL_TIME)
            memory.append((static, own))
            u_TD, q_THd = own.u, own.q
            if block is not self.blocks[-1]:
                summed_THd = block.read(static.q, static, within)
                seen_T = visits.end - visits.first
                static_TD = block.output(static_TD, static.u, summed_THd, seen_T, STATIC)
            elif rows is not None:  # from here on T counts these rows alone
                x_TD, u_TD, q_THd, length_T = (one[rows] for one in (x_TD, u_TD, q_THd, length_T))
                tiles = self._tiles(packed, packed.readers(rows), _visit_first(packed)[rows])
            summed_THd = block.read(q_THd, static, tiles[0]) + block.read(q_THd, own, tiles[1])
            x_TD = block.output(x_TD, u_TD, summed_THd, length_T, REAL_TIME)
        return Reading(x_TD, table_MD[: self.items.num_items], None, (table_MD, memory))

    def judge(self, packed: Packed, reading: Reading, candidates: Candidates) -> Judgement:
        """Judge candidates, which read the history and themselves in every block."""
        table_MD, memory = reading.memory
        c_CD = entered_CD = self._candidates(packed, candidates, table_MD)
        tiles = self._tiles(packed, candidates, self._static_end(packed, candidates))
        length_C = candidates.end - candidates.first + 1
        for module, (static, real_time) in zip(self.blocks, memory, strict=True):
            block = cast(MTGRBlock, module)
            own = block.project(c_CD, CANDIDATE)
            summed_CHd = block.read(own.q, static, tiles[0]) + block.read(
                own.q, real_time, tiles[1]
            )
            summed_CHd = summed_CHd + block.read_itself(own)
            c_CD = block.output(c_CD, own.u, summed_CHd, length_C, CANDIDATE)
        anchors = None
        if self.click.readout is not None and self.click.readout.category is not None:
            categories_VK = self.items.mean_of_categories(self.click.readout.category)
            space_VW = self.click.readout.space(categories_VK)
            anchors = self.click.readout.select(packed, candidates, space_VW)
        return Judgement(self.click(c_CD, entered_CD, packed, candidates, anchors), None)

    def _candidates(self, packed: Packed, candidates: Candidates, table_MD: Tensor) -> Tensor:
        """Tokens of candidates [C, D]: item, place behind what they see, and cross features."""
        visible_C = candidates.end - candidates.first
        time_T = functional.pad(packed.time, (0, 1))  # the last row stands in for no row
        newest_C = torch.where(visible_C > 0, candidates.end - 1, len(packed.item))
        newest_time_C = torch.where(visible_C > 0, time_T[newest_C], candidates.time)
        c_CD = scaled(functional.embedding(candidates.item, table_MD))
        # A candidate has no next event: its own time is both, so "until next" is bucket 0.
        c_CD = c_CD + self.place(visible_C, candidates.time, newest_time_C, candidates.time)
        c_CD = c_CD + self.cross_token(self.cross(packed, candidates, self.items))
        return dropout(c_CD, self.dropout, self.training)

    def _static_end(self, packed: Packed, candidates: Candidates) -> Int[Tensor, "C"]:
        """One past the last row that is static to each candidate.

        A visit is over after a pause; one with an id of its own may always go on.
        """
        if not len(packed.item):
            return candidates.end
        newest_C = (candidates.end - 1).clamp_min(0)
        over_C = candidates.time - packed.time[newest_C] > self.gap_s
        over_C = over_C & (packed.visit_end[newest_C] <= candidates.end) & (not self.own_sessions)
        static_C = torch.where(over_C, candidates.end, _visit_first(packed)[newest_C])
        return torch.maximum(static_C, candidates.first)

    def _tiles(
        self, packed: Packed, readers: Readers, static_end: Int[Tensor, "Q"]
    ) -> tuple[Tiles, Tiles]:
        """Cover the static tokens and the real-time tokens that `readers` see."""
        static = Readers(readers.first, static_end, readers.time, readers.position)
        real_time = Readers(static_end, readers.end, readers.time, readers.position)
        return history_tiles(packed, static, self.tile), history_tiles(packed, real_time, self.tile)


def _visit_first(packed: Packed) -> Int[Tensor, "T"]:
    """First row of the visit of each row."""
    return torch.searchsorted(packed.visit, packed.visit)
