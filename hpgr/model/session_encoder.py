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

Shape legend: T rows, P visits, C candidates, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.attention.cover import Tiles, build_tiles
from hpgr.model.attention.entry import softmax_attention
from hpgr.model.dropout import dropout
from hpgr.model.packed import Packed
from hpgr.model.precision import wide
from hpgr.model.shapes import Bool, Float, Int

FEED_FORWARD = 2  # width of the hidden layer, in multiples of D
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
            nn.Dropout(dropout),
            nn.Linear(FEED_FORWARD * dim, dim),
        )

    def forward(self, x: Float[Tensor, "T D"], tiles: Tiles) -> Float[Tensor, "T D"]:
        """Let each row attend to the rows that `tiles` shows it."""
        q, k, v = self.qkv(self.norm(x)).view(len(x), 3, self.num_heads, -1).unbind(1)
        q = functional.normalize(q, dim=-1) * self.scale.clamp(0.0, MAX_SCORE)
        k = functional.normalize(k, dim=-1)
        read = softmax_attention(q, k, v, tiles, self.position_bias).flatten(1)
        x = x + dropout(self.output(read), self.dropout, self.training)
        mixed = self.feed_forward(x)
        return x + dropout(mixed, self.dropout, self.training)


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

    def forward(
        self, x: Float[Tensor, "T D"], packed: Packed, *, tile: int, causal: bool
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T_and_P D"]]:
        """Fuse every event with the sessions that it may see.

        Args:
            x: embedded events, [T, D].
            packed: their ranges.
            tile: tile side.
            causal: False only in pretraining.

        Returns:
            fused events [T, D], and [T + P, D]: intra-session outputs, then inter-session outputs,
            for `fuse_candidates`.
        """
        intra = self._within_sessions(x, packed, tile=tile, causal=causal)
        inter = self._pool(intra, packed)
        visit_row = torch.arange(packed.num_visits, device=x.device)
        first_row = torch.zeros_like(visit_row).scatter_(0, packed.visit, packed.user_visit)
        if causal:
            last_row = visit_row + 1
        else:
            count = torch.bincount(first_row, minlength=packed.num_visits)
            last_row = first_row + count[first_row]
        visit_tiles = build_tiles(first_row, last_row, packed.num_visits, size=tile)
        for block in self.inter:
            inter = block(inter, visit_tiles)
        known = packed.visit - 1 if causal else packed.visit
        has_visit = known >= packed.user_visit
        from_sessions = self.from_inter(inter[known.clamp_min(0)]) * has_visit[:, None]
        return self._fuse(x, self.from_intra(intra) + from_sessions), torch.cat([intra, inter])

    def fuse_candidates(
        self,
        x: Float[Tensor, "C D"],
        outputs: Float[Tensor, "T_and_P D"],
        packed: Packed,
        first: Int[Tensor, "C"],
        last: Int[Tensor, "C"],
        same: Bool[Tensor, "C"],
    ) -> Float[Tensor, "C D"]:
        """Fuse candidates with the sessions before their request time.

        Args:
            x: embedded candidates, [C, D].
            outputs: second result of a causal `forward`.
            packed: the histories.
            first: first visible row, int64 [C].
            last: one past the last visible row, int64 [C].
            same: bool [C], true if the visit of the last visible event is still open. Then the
                candidate sees the session so far and the closed visits before it; otherwise that
                visit is closed and its token is visible as well.
        """
        num_rows = len(packed.item)
        if not num_rows:
            return x
        some = last > first
        row = (last - 1).clamp_min(0)
        visit = packed.visit[row] - same.long()
        closed = some & (visit >= packed.user_visit[row])
        # The token of a visit cut at the request time is its event's running state, not the
        # token of the whole visit: pooled tokens may hold events after the request.
        complete = packed.visit_end[row] <= last
        closed &= same | complete
        opened = self.from_intra(outputs[row]) * (some & (same | ~complete))[:, None]
        before = self.from_inter(outputs[num_rows + visit.clamp_min(0)]) * closed[:, None]
        return self._fuse(x, opened + before)

    def _within_sessions(self, x: Tensor, packed: Packed, *, tile: int, causal: bool) -> Tensor:
        """[T, D] -> [T, D]; each row attends to its own session, up to itself where `causal`."""
        if packed.by_session is not None:
            x = x[packed.by_session]
        # In the list of sessions, too, the causal past of a place ends with itself.
        end = packed.row_end if causal else packed.session_end
        tiles = build_tiles(packed.session_first, end, len(x), size=tile)
        for block in self.intra:
            x = block(x, tiles)
        if packed.by_session is not None:
            x = torch.empty_like(x).index_copy(0, packed.by_session, x)
        return x

    def _pool(self, intra: Tensor, packed: Packed) -> Tensor:
        """Attention pooling: one token [P, D] of each visit's rows."""
        score = wide(self.pool(intra)).clamp(-MAX_SCORE, MAX_SCORE).exp()
        shape = (packed.num_visits, intra.shape[1])
        total = score.new_zeros(packed.num_visits, 1).index_add(0, packed.visit, score)
        summed = score.new_zeros(shape).index_add(0, packed.visit, score * intra)
        return summed / total

    def _fuse(self, x: Tensor, session: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(torch.cat([x, session], dim=-1)))
        return x + gate * session
