"""Pairs (query, key block) as tiles: for each block of keys, the query rows that touch it.

A tile is one block of S neighbouring keys and G gathered query rows. Queries need not be
neighbours, so each keeps its own choice of keys, and a tile is full wherever a block has enough
readers. The number of tiles follows the number of pairs: a constant per query where queries choose
a constant number of keys.

A row's place among the readers of a block and the first row of its tile depend on earlier rows
alone. So do the order and the operands of its sum: with causal choices, later events change nothing
before them.

Shape legend (suffixes of names): Q queries, K keys, P pairs, N tiles, n tiles of one chunk, G query
rows and S keys of a tile.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hpgr.model.attention.cover import HIDDEN, pair_bucket
from hpgr.model.placement import at_a_time
from hpgr.model.shapes import Int

SIZE, GROUP = 16, 64  # keys and query rows of a tile; measured, see docs/performance.md
LEAST_GROUP = 16  # where queries are few; no tile of Triton's products is smaller
NEAR = 1024  # query rows whose tiles lie together; what they read stays in a cache of 1 MiB
TOUCHED = 16  # blocks that a query touches, more or less
BUCKETS_AT_A_TIME = 128  # tiles on a CPU, whose time differences stay in the processor's cache


@dataclass(frozen=True)
class KeyTiles:
    """The tile list of one attention pattern, shared by every block that uses it.

    `rows` int64 [N, G] are query rows, `num_queries` where a place is not filled; `block` int64 [N]
    is the block of keys; tiles are ordered by their first row, NEAR rows at a time, then by block.
    `bucket` uint8 [N, G, S] is the time bucket of each pair of query and key, or HIDDEN; `base`
    int64 [N, G] is the distance from a query's position to the first key of the block.
    """

    size: int
    num_queries: int
    num_keys: int
    rows: Tensor
    block: Tensor
    bucket: Tensor
    base: Tensor

    @functools.cached_property
    def by_query(self) -> tuple[Tensor, Tensor]:
        """The places of each query's rows in rows [N * G], query by query: bounds and places.

        int64 [Q + 1] and [N * G]; those of one query are in the order of the tiles.
        """
        count = torch.bincount(self.rows.flatten(), minlength=self.num_queries + 1)
        bounds = functional.pad(count[: self.num_queries].cumsum(0), (1, 0))
        return bounds, self.rows.flatten().argsort(stable=True)

    @functools.cached_property
    def by_block(self) -> tuple[Tensor, Tensor]:
        """The tiles of each block of keys, block by block: bounds and tiles.

        int64 [blocks + 1] and [N].
        """
        count = torch.bincount(self.block, minlength=-(-self.num_keys // self.size))
        return functional.pad(count.cumsum(0), (1, 0)), self.block.argsort(stable=True)


@torch.no_grad()
def build_key_tiles(
    query_P: Int[Tensor, "P"],
    block_P: Int[Tensor, "P"],
    first: Int[Tensor, "Q"],
    end: Int[Tensor, "Q"],
    num_keys: int,
    *,
    size: int = SIZE,
    group: int | None = None,
    query_time: Int[Tensor, "Q"] | None = None,
    key_time: Int[Tensor, "K"] | None = None,
    query_position: Int[Tensor, "Q"] | None = None,
) -> tuple[KeyTiles, Int[Tensor, "P"]]:
    """Group pairs into tiles.

    Args:
        query_P: query row of each pair.
        block_P: its key block; pairs are distinct, sorted by block, then query.
        first: first visible key row of each query.
        end: one past the last visible key row.
        num_keys: K.
        size: S.
        group: G; None for the usual readers of a block, as far as the numbers of queries and keys
            tell: what the queries choose must not decide how their sums are taken.
        query_time: seconds, for the time bias; None gives every visible pair bucket 0.
        key_time: seconds; required with `query_time`.
        query_position: row of each query in key coordinates; None where queries and keys are the
            same rows.

    Returns:
        the tiles, and the place of each pair: row n * G + g of tiles seen as [N * G, S].
    """
    device, num_queries = first.device, len(first)
    num_blocks = -(-num_keys // size)
    if group is None:
        usual = TOUCHED * size * num_queries // max(1, num_keys)
        group = min(GROUP, max(LEAST_GROUP, 1 << usual.bit_length()))
    readers = torch.bincount(block_P, minlength=num_blocks)
    tiles = -(-readers // group)
    spare = (tiles.cumsum(0) - tiles) * group - (readers.cumsum(0) - readers)
    place_P = torch.arange(len(query_P), device=device) + spare[block_P]
    block_N = torch.repeat_interleave(torch.arange(num_blocks, device=device), tiles)
    rows = torch.full((len(block_N) * group,), num_queries, device=device)
    rows[place_P] = query_P
    # Tiles that begin with near queries follow each other, those of one block side by side.
    order_N = (rows[::group] // NEAR * num_blocks + block_N).argsort(stable=True)
    rows_NG, block_N = rows.view(-1, group)[order_N], block_N[order_N]
    moved_N = torch.empty_like(order_N).scatter_(
        0, order_N, torch.arange(len(order_N), device=device)
    )
    place_P = moved_N[place_P // group] * group + place_P % group

    # A last query that sees nothing stands for places that are not filled.
    def of_rows(values: Tensor) -> Tensor:
        return functional.pad(values, (0, 1))[rows_NG]

    first_NG, end_NG = of_rows(first), of_rows(end)
    position = query_position if query_position is not None else torch.arange(len(first)).to(device)
    start_N1 = (block_N * size)[:, None]
    asked_NG = key_time_BS = None
    if query_time is not None and key_time is not None:
        asked_NG = of_rows(query_time)
        key_time_BS = functional.pad(key_time, (0, num_blocks * size - num_keys)).view(-1, size)
    column_S = torch.arange(size, device=device)
    bucket_NGS = torch.zeros((*rows_NG.shape, size), dtype=torch.uint8, device=device)
    step = at_a_time(device, cpu=BUCKETS_AT_A_TIME, bytes_each=8 * group * size)
    for low in range(0, len(block_N), step):
        part = slice(low, low + step)
        if asked_NG is not None and key_time_BS is not None:
            elapsed_nGS = asked_NG[part, :, None] - key_time_BS[block_N[part], None]
            bucket_NGS[part] = pair_bucket(elapsed_nGS)
        hidden_nGS = column_S < (first_NG[part] - start_N1[part])[..., None]
        hidden_nGS |= column_S >= (end_NG[part] - start_N1[part])[..., None]
        bucket_NGS[part].masked_fill_(hidden_nGS, HIDDEN)
    return (
        KeyTiles(
            size=size,
            num_queries=num_queries,
            num_keys=num_keys,
            rows=rows_NG,
            block=block_N,
            bucket=bucket_NGS,
            base=of_rows(position) - start_N1,
        ),
        place_P,
    )
