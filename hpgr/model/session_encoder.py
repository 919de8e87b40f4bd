"""Session enhancement module: from events to sessions and back, and the fusion with the items.

An intra-session Transformer reads the events of one session; attention pooling makes one token of
it; an inter-session Transformer reads the tokens; the result returns to the events through a gate.
Where sessions interleave, an event still reads its own session, wherever its events lie, and a
token stands for each visit: an unbroken run of events of one session, which have read the earlier
ones of that session.

The caller's ranges decide what an event may see; a wrong range is a leak:
- pretraining looks both ways (it reads training events only, masked before they come here);
- everything else is causal: an event sees earlier events of its own session and the tokens of
  *closed* earlier visits. A visit's token never reaches an event of that visit.

Shape legend (suffixes of names): T rows, P visits, C candidates, D width, H heads,
d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpgr.model.attention.cover import Tiles, build_tiles
from hpgr.model.attention.entry import softmax_attention
from hpgr.model.dropout import Dropout, dropout
from hpgr.model.packed import Packed
from hpgr.model.precision import wide
from hpgr.model.shapes import Bool, Float, Int
from hpgr.model.unit import unit

FEED_FORWARD = 2  # width of the hidden layer, in multiples of D
QUIET = 0.1  # of what stage 1 adds to the items, where stage 2 starts
MAX_SCORE = 20.0  # of the pooling attention, so that exp needs no maximum


class TransformerBlock(nn.Module):
    """Pre-norm Transformer block; q and k are normalised, so scores are bounded by `scale`."""

    def __init__(self, dim: int, num_heads: int, *, num_positions: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.output = nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.full((num_heads, 1), 4.0))
        self.position_bias = nn.Parameter(torch.zeros(num_positions))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, FEED_FORWARD * dim),
            nn.SiLU(),
            Dropout(dropout),
            nn.Linear(FEED_FORWARD * dim, dim),
        )

    def forward(self, x_TD: Float[Tensor, "T D"], tiles: Tiles) -> Float[Tensor, "T D"]:
        """Let each row attend to the rows that `tiles` shows it."""
        q_THd, k_THd, v_THd = (
            self.qkv(self.norm(x_TD)).view(len(x_TD), 3, self.num_heads, -1).unbind(1)
        )
        q_THd = unit(q_THd) * self.scale.clamp(0.0, MAX_SCORE)
        k_THd = unit(k_THd)
        read_TD = softmax_attention(q_THd, k_THd, v_THd, tiles, self.position_bias).flatten(1)
        x_TD = x_TD + dropout(self.output(read_TD), self.dropout, self.training)
        mixed_TD = self.feed_forward(x_TD)
        return x_TD + dropout(mixed_TD, self.dropout, self.training)


class SessionEncoder(nn.Module):
    """The module, with gated fusion: x + gate(x, s) * s."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        intra_blocks: int,
        inter_blocks: int,
        num_positions: int,
        dropout: float,
    ) -> None:
        super().__init__()

        def stack(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                TransformerBlock(dim, num_heads, num_positions=num_positions, dropout=dropout)
                for _ in range(count)
            )

        self.intra = stack(intra_blocks)
        self.inter = stack(inter_blocks)
        self.pool = nn.Linear(dim, 1)
        self.from_intra = nn.Linear(dim, dim)
        self.from_inter = nn.Linear(dim, dim)
        self.gate = nn.Linear(2 * dim, dim)

    @torch.no_grad()
    def quieten(self) -> None:
        """Add to the items only a share, `QUIET`, of what is added now."""
        for layer in (self.from_intra, self.from_inter):
            layer.weight.mul_(QUIET)
            layer.bias.mul_(QUIET)

    def forward(
        self, x_TD: Float[Tensor, "T D"], packed: Packed, *, tile: int, causal: bool
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T_and_P D"]]:
        """Fuse every event with the sessions that it may see.

        Args:
            x_TD: embedded events, [T, D].
            packed: their ranges.
            tile: tile side.
            causal: False only in pretraining.

        Returns:
            fused events [T, D], and [T + P, D]: what events say of their sessions, then what visits
            say, for `fuse_candidates`.
        """
        intra_TD = self._within_sessions(x_TD, packed, tile=tile, causal=causal)
        inter_PD = self._pool(intra_TD, packed)
        visit_P = torch.arange(packed.num_visits, device=x_TD.device)
        first_P = torch.zeros_like(visit_P).scatter_(0, packed.visit, packed.user_visit)
        if causal:
            last_P = visit_P + 1
        else:
            count_P = torch.bincount(first_P, minlength=packed.num_visits)
            last_P = first_P + count_P[first_P]
        visit_tiles = build_tiles(first_P, last_P, packed.num_visits, size=tile)
        for block in self.inter:
            inter_PD = block(inter_PD, visit_tiles)
        known_T = packed.visit - 1 if causal else packed.visit
        has_visit_T = known_T >= packed.user_visit
        own_TD, visit_PD = self.from_intra(intra_TD), self.from_inter(inter_PD)
        closed_TD = visit_PD.index_select(0, known_T.clamp_min(0)) * has_visit_T[:, None]
        return self._fuse(x_TD, own_TD + closed_TD), torch.cat([own_TD, visit_PD])

    def fuse_candidates(
        self,
        x_CD: Float[Tensor, "C D"],
        outputs: Float[Tensor, "T_and_P D"],
        packed: Packed,
        first_C: Int[Tensor, "C"],
        last_C: Int[Tensor, "C"],
        same_C: Bool[Tensor, "C"],
    ) -> Float[Tensor, "C D"]:
        """Fuse candidates with the sessions before their request time.

        Args:
            x_CD: embedded candidates, [C, D].
            outputs: second result of a causal `forward`.
            packed: the histories.
            first_C: first visible row, int64 [C].
            last_C: one past the last visible row, int64 [C].
            same_C: bool [C], true if the visit of the last visible event is still open. Then the
                candidate sees the session so far and the closed visits before it; otherwise that
                visit is closed and its token is visible as well.
        """
        num_rows = len(packed.item)
        if not num_rows:
            return x_CD
        some_C = last_C > first_C
        row_C = (last_C - 1).clamp_min(0)
        visit_C = packed.visit[row_C] - same_C.long()
        closed_C = some_C & (visit_C >= packed.user_visit[row_C])
        # The token of a visit cut at the request time is its event's running state, not the
        # token of the whole visit: pooled tokens may hold events after the request.
        complete_C = packed.visit_end[row_C] <= last_C
        closed_C &= same_C | complete_C
        opened_CD = outputs.index_select(0, row_C) * (some_C & (same_C | ~complete_C))[:, None]
        visits_CD = outputs.index_select(0, num_rows + visit_C.clamp_min(0))
        return self._fuse(x_CD, opened_CD + visits_CD * closed_C[:, None])

    def _within_sessions(self, x_TD: Tensor, packed: Packed, *, tile: int, causal: bool) -> Tensor:
        """[T, D] -> [T, D]; each row attends to its own session, up to itself where `causal`."""
        if packed.by_session is not None:
            x_TD = x_TD[packed.by_session]
        # In the list of sessions, too, the causal past of a place ends with itself.
        end_T = packed.row_end if causal else packed.session_end
        tiles = build_tiles(packed.session_first, end_T, len(x_TD), size=tile)
        for block in self.intra:
            x_TD = block(x_TD, tiles)
        if packed.by_session is not None:
            x_TD = torch.empty_like(x_TD).index_copy(0, packed.by_session, x_TD)
        return x_TD

    def _pool(self, intra_TD: Tensor, packed: Packed) -> Tensor:
        """Attention pooling: one token [P, D] of each visit's rows."""
        score_T1 = wide(self.pool(intra_TD)).clamp(-MAX_SCORE, MAX_SCORE).exp()
        shape = (packed.num_visits, intra_TD.shape[1])
        total_P1 = score_T1.new_zeros(packed.num_visits, 1).index_add(0, packed.visit, score_T1)
        summed_PD = score_T1.new_zeros(shape).index_add(0, packed.visit, score_T1 * intra_TD)
        return summed_PD / total_P1

    def _fuse(self, x: Tensor, session: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(torch.cat([x, session], dim=-1)))
        return x + gate * session
