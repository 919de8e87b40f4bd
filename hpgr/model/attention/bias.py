"""Position plus time bias of the pairs of tiles, and the gradients of both tables.

Position biases of a query's row in a tile are a piece of the table, so they are gathered as rows.

Shape legend (suffixes of names): N tiles, n tiles of one chunk, G query rows and S keys of a tile,
L pieces of the position table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpgr.model.attention.cover import HIDDEN, Tiles
from hpgr.model.attention.key_tiles import KeyTiles

HIDDEN_BIAS = -1e4  # SiLU, exp and both their derivatives are exactly 0 here in float32


class PairBias:
    """Biases of the pairs of some tiles, a chunk of tiles at a time."""

    def __init__(
        self,
        position_bias: Tensor,
        time_bias: Tensor,
        tiles: Tiles | KeyTiles,
        *,
        hidden: float = HIDDEN_BIAS,
    ) -> None:
        """`hidden` is the bias of a pair that is not visible."""
        self.tiles, self.position_bias, self.time_bias = tiles, position_bias, time_bias
        self.table = time_bias.new_full((HIDDEN + 1,), hidden)
        self.table[: len(time_bias)] = time_bias
        # A piece: the biases of S keys, of which the first is at some distance.
        last, self.width = len(position_bias) - 1, tiles.bucket.shape[2]
        self.least, most = -last, last + self.width - 1
        if isinstance(tiles, Tiles) and tiles.rows is not None and tiles.base.numel():
            # Tiles of segments are wide: only what occurs.
            found = torch.stack(torch.aminmax(tiles.base)).cpu().tolist()
            self.least, most = max(self.least, found[0]), min(most, found[1])
        device = position_bias.device
        distance_LS = torch.arange(self.least, max(self.least, most) + 1, device=device)[:, None]
        distance_LS = distance_LS - torch.arange(self.width, device=device)
        self.place_LS = distance_LS.abs_().clamp_max_(last)
        self.piece_LS = position_bias[self.place_LS]
        self.grad_piece_LS = torch.zeros_like(self.piece_LS)
        self.grad_table = torch.zeros_like(self.table)

    def _piece(self, base_nG: Tensor) -> Tensor:
        return (base_nG.flatten() - self.least).clamp_(0, len(self.piece_LS) - 1)

    def of(self, part: slice) -> Tensor:
        """Biases [n, G, S], or [n, 1, S] where all queries of a tile read alike."""
        bucket_nGS, base_nG = self.tiles.bucket[part], self.tiles.base[part]
        if not (bucket_nGS.stride(1) or base_nG.stride(1)):  # rows that are the same memory
            bucket_nGS, base_nG = bucket_nGS[:, :1], base_nG[:, :1]
        bias = self.table.index_select(0, bucket_nGS.flatten().to(torch.int32))
        bias.view(-1, self.width).add_(self.piece_LS.index_select(0, self._piece(base_nG)))
        return bias.view(bucket_nGS.shape)

    def add_grad(
        self, part: slice, grad_nGS: Tensor, position: bool = True, time: bool = True
    ) -> None:
        """Add the gradients of the pairs of some tiles, to the tables that are asked for."""
        grad_nGS = grad_nGS.to(self.grad_piece_LS.dtype)
        if position:
            piece = self._piece(self.tiles.base[part])
            self.grad_piece_LS.index_add_(0, piece, grad_nGS.flatten(0, 1))
        if time:
            bucket = self.tiles.bucket[part].flatten().to(torch.int32)
            self.grad_table += torch.bincount(bucket, grad_nGS.flatten(), minlength=HIDDEN + 1)

    def grad_position(self) -> Tensor:
        """Gradient of the position table."""
        return torch.bincount(
            self.place_LS.flatten(), self.grad_piece_LS.flatten(), len(self.position_bias)
        ).to(self.position_bias.dtype)

    def grad_time(self) -> Tensor:
        """Gradient of the time table."""
        return self.grad_table[: len(self.time_bias)]
