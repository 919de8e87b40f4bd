"""Visible keys of each query: ranges over packed rows, covered by a list of tiles.

Sequences of many users lie one after the other in packed rows, without padding. Query i sees the
contiguous key rows `first[i] .. end[i] - 1`; causal history, closed sessions, whole sessions and a
candidate's past are all such ranges. The score matrix is cut into tiles of S x S; only tiles that
hold a visible pair are computed, so cost follows the visible pairs.

Where many small tiles cost more than a few large ones (on an accelerator), the same ranges are
covered by one tile a segment instead: all queries that begin at the same key, and every key that
any of them sees, padded to the longest segment.

Shape legend (suffixes of names): Q queries, K keys, N tiles, n tiles of one chunk, S tokens per
tile side; tiles of segments have sides R (queries) and C (keys).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hpgr.model.placement import at_a_time
from hpgr.model.shapes import Int

NUM_TIME_BUCKETS = 129
HIDDEN = 255  # bucket of a pair that is not visible; its bias drives SiLU and exp to zero
TIME_BUCKET_WIDTH = 0.301
SEGMENT_WASTE = 4  # padded pairs of segments, per visible pair, that still pay
SEGMENT_PAIRS = 1 << 30  # in all; a byte each, for as long as the tiles live
CPU_BUCKETS = 1 << 15  # pairs whose time differences a CPU's cache holds, 8 bytes each


@dataclass(frozen=True)
class Tiles:
    """The tile list of one attention pattern, shared by every block that uses it.

    `query_block` and `key_block` int64 [N], sorted by query block; `bucket` uint8 [N, S, S] is the
    time bucket of each pair, or HIDDEN; `base` int64 [N, S] is the distance from a query's position
    to the first key of the tile.

    Side by side, tiles are blocks of S consecutive rows. Tiles of segments name their `rows`
    instead: query rows int64 [N, R] and key rows int64 [N, C]; `bucket` is [N, R, C] and `base`
    [N, R] then, and padding is HIDDEN. Where all segments have R queries, `place` is None, else
    int64 [Q], the places of the queries among all N * R.
    """

    size: int
    num_queries: int
    num_keys: int
    query_block: Tensor
    key_block: Tensor
    bucket: Tensor
    base: Tensor
    first: Tensor  # [Q]
    end: Tensor  # [Q]
    rows: tuple[Tensor, Tensor] | None = None
    place: Tensor | None = None

    def padded(self, x_Q: Tensor) -> Tensor:
        """Lay out values of the queries [Q, ...] by segment, [N, R, ...]."""
        assert self.rows is not None
        return x_Q.unflatten(0, self.rows[0].shape) if self.place is None else x_Q[self.rows[0]]

    def of_queries(self, x_n: Tensor) -> Tensor:
        """Take values of the queries [Q, ...] out of those of all places, [N * R, ...]."""
        return x_n if self.place is None else x_n.index_select(0, self.place)

    @property
    def visible(self) -> Tensor:
        """Number of keys each query sees, int64 [Q]."""
        return self.end - self.first

    def row_of(self, query: Int[Tensor, "X"], key_block: Int[Tensor, "X"]) -> Int[Tensor, "X"]:
        """Return the row of tiles seen as [N * S, S] that holds a query and a key block of its own.

        Side by side alone: the tiles of a query block are neighbours, and so are their key blocks.
        """
        number_B = torch.arange(-(-self.num_queries // self.size), device=query.device)
        start_B = torch.searchsorted(self.query_block, number_B)
        low_B = functional.pad(self.key_block, (0, 1)).index_select(0, start_B)
        tile_X = (start_B - low_B).index_select(0, query // self.size) + key_block
        return tile_X * self.size + query % self.size


def time_bucket(seconds: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Return HSTU's logarithmic bucket of a time difference, 0..128.

    floor(ln(max(1, |d|)) / 0.301), clamped: the official research code's formula.
    """
    return pair_bucket(seconds).to(torch.int64)


def pair_bucket(seconds: Int[Tensor, "*any"]) -> Tensor:
    """Return `time_bucket` as uint8: of pairs there are many."""
    scaled = seconds.to(torch.float32).abs_().clamp_min_(1).log_().div_(TIME_BUCKET_WIDTH)
    return scaled.clamp_max_(NUM_TIME_BUCKETS - 1).to(torch.uint8)


def blocks(rows: Tensor, size: int, fill: int = 0) -> Tensor:
    """[R, ...] -> [ceil(R / size), size, ...], the last block filled up with `fill`."""
    count = -(-rows.shape[0] // size)
    spare = count * size - rows.shape[0]
    if spare:
        rows = torch.cat([rows, rows.new_full((spare, *rows.shape[1:]), fill)])
    return rows.view(count, size, *rows.shape[1:])


def build_tiles(
    first: Int[Tensor, "Q"],
    end: Int[Tensor, "Q"],
    num_keys: int,
    *,
    size: int,
    query_time: Int[Tensor, "Q"] | None = None,
    key_time: Int[Tensor, "K"] | None = None,
    query_position: Int[Tensor, "Q"] | None = None,
    segments: bool | None = None,
) -> Tiles:
    """Cover the visible ranges with tiles.

    Args:
        first: first visible key row of each query, int64 [Q], non-decreasing.
        end: one past the last visible key row, int64 [Q]; a query with first == end sees nothing.
        num_keys: K.
        size: S.
        query_time: seconds, int64 [Q], for the time bias; None gives every visible pair bucket 0.
        key_time: seconds, int64 [K]; required with `query_time`.
        query_position: row of each query in key coordinates, int64 [Q]; None where queries and keys
            are the same rows.
        segments: one tile a segment, where padding does not waste more than SEGMENT_WASTE; None: on
            every device but a CPU.
    """
    if segments is None:
        segments = first.device.type != "cpu"
    if segments:
        whole = _segments(first, end, num_keys, size, query_time, key_time, query_position)
        if whole is not None:
            return whole
    query_block_N, key_block_N = _cover(first, end, num_keys, size)
    key_row = torch.arange(-(-num_keys // size) * size, device=first.device).view(-1, size)
    row_first, row_end = blocks(first, size), blocks(end, size)
    columns_N1S = key_row[key_block_N][:, None, :]
    seen_NSS = (columns_N1S >= row_first[query_block_N][:, :, None]) & (
        columns_N1S < row_end[query_block_N][:, :, None]
    )
    if query_time is None or key_time is None:
        bucket_NSS = torch.zeros(seen_NSS.shape, dtype=torch.uint8, device=seen_NSS.device)
    else:
        elapsed_NSS = (
            blocks(query_time, size)[query_block_N][:, :, None]
            - blocks(key_time, size)[key_block_N][:, None, :]
        )
        bucket_NSS = pair_bucket(elapsed_NSS)
    bucket_NSS.masked_fill_(~seen_NSS, HIDDEN)
    if query_position is None:
        query_position = torch.arange(len(first), device=first.device)
    base_NS = blocks(query_position, size)[query_block_N] - (key_block_N * size)[:, None]
    return Tiles(
        size=size,
        num_queries=first.shape[0],
        num_keys=num_keys,
        query_block=query_block_N,
        key_block=key_block_N,
        bucket=bucket_NSS,
        base=base_NS,
        first=first,
        end=end,
    )


def _cover(
    first: Int[Tensor, "Q"], end: Int[Tensor, "Q"], num_keys: int, size: int
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """Return query and key block of every tile that holds a visible pair, sorted by query block."""
    empty = first >= end
    low = blocks(torch.where(empty, num_keys, first), size, fill=num_keys).amin(1) // size
    high = -(-blocks(torch.where(empty, 0, end), size).amax(1) // size)
    count = (high - low).clamp_min_(0)
    query_block_N = torch.repeat_interleave(torch.arange(len(count), device=first.device), count)
    start = torch.cumsum(count, 0) - count
    key_block_N = (
        torch.arange(len(query_block_N), device=first.device) - (start - low)[query_block_N]
    )
    return query_block_N, key_block_N


def _segments(
    first: Tensor,
    end: Tensor,
    num_keys: int,
    size: int,
    query_time: Tensor | None,
    key_time: Tensor | None,
    query_position: Tensor | None,
) -> Tiles | None:
    """One tile a segment, or None where padding wastes too much; see `build_tiles`.

    Queries that are keys too must begin at the first key of their segment; a window does not.
    """
    if not len(first) or not num_keys:
        return None
    first_N, count_N = torch.unique_consecutive(first, return_counts=True)
    start_N = count_N.cumsum(0) - count_N
    if query_position is None and not torch.equal(start_N, first_N):
        return None
    visible = end - first
    height, width = int(count_N.max()), int(visible.max())
    most = min(SEGMENT_PAIRS, SEGMENT_WASTE * int(visible.sum()))
    if width < 1 or len(start_N) * height * width > most:
        return None
    if first.device.type == "cpu" and len(start_N) * width > SEGMENT_WASTE * num_keys:
        return None  # keys would be gathered more often than read
    place = torch.arange(max(height, width), device=first.device)
    inside_NR = place[:height] < count_N[:, None]
    query_row_NR = torch.where(inside_NR, start_N[:, None] + place[:height], start_N[:, None])
    column_C = place[:width]
    key_row_NC = (first_N[:, None] + column_C).clamp_max(num_keys - 1)
    # r: R, or 1 where all queries of a segment read alike.
    visible_Nr = visible[query_row_NR]
    asked_Nr = None if query_time is None else query_time[query_row_NR]
    position_Nr = place[None, :height]
    if query_position is not None:
        position_Nr = query_position[query_row_NR] - first_N[:, None]
    even = len(first) == len(start_N) * height
    if (
        even
        and height > 1
        and all(
            x is None or bool((x == x[:, :1]).all()) for x in (visible_Nr, asked_Nr, position_Nr)
        )
    ):
        visible_Nr, position_Nr = visible_Nr[:, :1], position_Nr[:, :1]
        asked_Nr = None if asked_Nr is None else asked_Nr[:, :1]
    else:
        visible_Nr = torch.where(inside_NR, visible_Nr, 0)
    hidden_NrC = column_C >= visible_Nr[..., None]
    if asked_Nr is None or key_time is None:
        bucket_NrC = torch.zeros(hidden_NrC.shape, dtype=torch.uint8, device=first.device)
    else:
        pairs = asked_Nr.shape[1] * width
        step = at_a_time(first.device, cpu=max(1, CPU_BUCKETS // pairs), bytes_each=8 * pairs)
        parts = zip(asked_Nr.split(step), key_row_NC.split(step), strict=True)
        bucket_NrC = torch.cat(
            [
                pair_bucket(asked_nr[..., None] - key_time[key_row_nC][:, None])
                for asked_nr, key_row_nC in parts
            ]
        )
    bucket_NrC.masked_fill_(hidden_NrC, HIDDEN)
    tile_N = torch.arange(len(start_N), device=first.device)
    return Tiles(
        size=size,
        num_queries=len(first),
        num_keys=num_keys,
        query_block=tile_N,
        key_block=tile_N,
        bucket=bucket_NrC.expand(-1, height, -1),
        base=position_Nr.expand(len(start_N), height),
        first=first,
        end=end,
        rows=(query_row_NR, key_row_NC),
        place=None
        if even
        else torch.arange(len(first), device=first.device)
        + torch.repeat_interleave(tile_N * height - start_N, count_N),
    )
