"""Embedding layer: items with side features, actions, and a time-aware position.

Shape legend (suffixes of names): T rows, V items, M items and the mask token, D width,
G categories, F features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.model.attention.cover import NUM_TIME_BUCKETS, time_bucket
from hpgr.model.catalogue import Catalogue
from hpgr.model.shapes import Float, Int

INITIAL_STD = 0.02


def embedding_table(rows: int, dim: int) -> nn.Embedding:
    """Make an embedding with small initial values."""
    table = nn.Embedding(rows, dim)
    nn.init.normal_(table.weight, std=INITIAL_STD)
    return table


class ItemEmbedding(nn.Module):
    """Item vectors: the item's own row plus the mean of its categories' rows.

    Row 0 of the item table is padding, row 1 stands for every unknown item, and one row behind the
    catalogue is the mask token of stage 1. An item never seen in training still has its
    categories.
    """

    category_offsets: Tensor
    category: Tensor

    def __init__(self, catalogue: Catalogue, dim: int, *, side_features: bool) -> None:
        super().__init__()
        self.num_items = catalogue.num_items
        self.item = embedding_table(catalogue.num_items + 1, dim)
        self.category_table = None
        if side_features and len(catalogue.category):
            self.category_table = nn.EmbeddingBag(catalogue.num_categories, dim, mode="mean")
            nn.init.normal_(self.category_table.weight, std=INITIAL_STD)
        # Features of the catalogue travel with the weights: no other file is needed to serve.
        self.register_buffer("category_offsets", catalogue.category_offsets.to(torch.int64))
        self.register_buffer("category", catalogue.category.to(torch.int64))

    @property
    def mask_token(self) -> int:
        """Item id of [M]."""
        return self.num_items

    def table(self) -> Float[Tensor, "M D"]:
        """Return the vectors of the whole catalogue and the mask token, [M, D]."""
        if self.category_table is None:
            return self.item.weight
        features_VD = self.mean_of_categories(self.category_table.weight)
        return self.item.weight + functional.pad(features_VD, (0, 0, 0, 1))

    @torch.no_grad()
    def scale(self, factor: Tensor | float) -> None:
        """Multiply all vectors, of items and of the mask token, by `factor`."""
        self.item.weight.mul_(factor)
        if self.category_table is not None:
            self.category_table.weight.mul_(factor)

    def mean_of_categories(self, table_GF: Float[Tensor, "G F"]) -> Float[Tensor, "V F"]:
        """Return the mean of each item's rows in a table of categories; 0 without a category."""
        return functional.embedding_bag(
            self.category, table_GF, self.category_offsets[:-1], mode="mean"
        )


class TimeAwarePosition(nn.Module):
    """Position of an event: its place, the time since the previous event and until the next.

    The time until the next event (for the newest event: until the request) can be switched off. It
    is known when a recommendation is requested. In HSTU, too, a row receives the time of its
    target; it never receives the item.
    """

    def __init__(self, num_positions: int, dim: int, *, request_time: bool) -> None:
        super().__init__()
        self.position = embedding_table(num_positions, dim)
        self.since_previous = embedding_table(NUM_TIME_BUCKETS, dim)
        self.until_next = embedding_table(NUM_TIME_BUCKETS, dim) if request_time else None

    def forward(
        self,
        position_T: Int[Tensor, "T"],
        time_T: Int[Tensor, "T"],
        previous_time_T: Int[Tensor, "T"],
        next_time_T: Int[Tensor, "T"],
    ) -> Float[Tensor, "T D"]:
        """Return the vectors of places and of times in seconds."""
        place_TD = self.position(position_T.clamp_max(self.position.num_embeddings - 1))
        place_TD = place_TD + self.since_previous(time_bucket(time_T - previous_time_T))
        if self.until_next is not None:
            place_TD = place_TD + self.until_next(time_bucket(next_time_T - time_T))
        return place_TD


def scaled(vectors_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
    """Scale item vectors for the network's input: times sqrt(D), as in HSTU."""
    return vectors_TD * math.sqrt(vectors_TD.shape[-1])
