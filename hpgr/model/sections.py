"""The section `model` of params.yaml, one dataclass a network: keys, types and limits.

The configuration (`hpgr.config_model`) and the check of stored networks
(`hpgr.model.stored_config`) both follow these. Limits stand in the metadata of a field, by the
names that pydantic gives them: ge, gt, le, lt. Imports the standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal


def limited(**limits: float) -> Any:
    """Return a field whose value has limits: ge, gt, le or lt."""
    return field(metadata=limits)


@dataclass(frozen=True)
class ModelSection:
    """Keys of every network.

    Args:
        name: of the network in the zoo.
        max_history: most recent events that a query sees.
    """

    name: str
    max_history: int = limited(ge=2, le=65536)

    def problems(self) -> Iterator[str]:
        """Yield a sentence for each combination of values that the network cannot have."""
        yield from ()


@dataclass(frozen=True)
class AttentionSection(ModelSection):
    """Keys shared by networks of attention blocks.

    Args:
        dim: width of item vectors and of every block.
        num_blocks: blocks that read the whole history.
        num_heads: attention heads; they divide `dim`.
        dropout: share of elements.
        tile: tokens per side of an attention tile.
        readout: the ranking head reads what the user said about things like the candidate.
        factors: width of the item factors of the read-out.
    """

    dim: int = limited(ge=4, le=8192)
    num_blocks: int = limited(ge=1, le=128)
    num_heads: int = limited(ge=1, le=128)
    dropout: float = limited(ge=0, lt=1)
    tile: int = limited(ge=8, le=512)
    readout: bool = limited()
    factors: int = limited(ge=1, le=64)

    def problems(self) -> Iterator[str]:
        """Yield a sentence where the heads do not divide the width."""
        if self.dim % self.num_heads:
            possible = [n for n in range(1, self.dim + 1) if self.dim % n == 0]
            yield (
                f"num_heads: {self.num_heads} heads do not divide model.dim: {self.dim}; "
                f"possible: {', '.join(map(str, possible))}"
            )


@dataclass(frozen=True)
class SASRecSection(AttentionSection):
    """The baselines SASRec and eSASRec."""


@dataclass(frozen=True)
class HSTUSection(AttentionSection):
    """The HSTU baseline, and the keys of every network of HSTU blocks.

    Args:
        position_bias: relative position bias in attention.
        time_bias: relative time bias; needs the request time when serving.
    """

    position_bias: bool = limited()
    time_bias: bool = limited()


@dataclass(frozen=True)
class MTGRSection(HSTUSection):
    """The MTGR baseline.

    Args:
        cross: cross features in the candidate's token: published (counts and mean values) or
            residual (also residuals, newer events weighing more, and times).
    """

    cross: Literal["published", "residual", "fold_in"] = limited()


@dataclass(frozen=True)
class HPGRSection(HSTUSection):
    """HPGR; every switch is an ablation.

    Args:
        side_features: item categories and actions enter the embedding.
        sessions: session enhancement module.
        intra_blocks: Transformer blocks inside a session.
        inter_blocks: Transformer blocks over session tokens.
        preference: preference-guided sparse attention.
        history_rows: how history rows read: causal (as HSTU) or preference (cost linear in
            history).
        num_anchors: history items picked per query; a query's mask takes memory as
            num_anchors * sigma, so both limits protect serving as well.
        sigma: width of the Gaussian around an anchor, positions.
        recent_window: newest positions that a history row always sees; 0 for none.
        candidate_window: the same of a candidate.
        signal_dim: width of the space in which anchors of history rows are selected.
    """

    side_features: bool = limited()
    sessions: bool = limited()
    intra_blocks: int = limited(ge=1, le=128)
    inter_blocks: int = limited(ge=1, le=128)
    preference: bool = limited()
    history_rows: Literal["causal", "preference"] = limited()
    num_anchors: int = limited(ge=1, le=32)
    sigma: float = limited(gt=0, le=32)
    recent_window: int = limited(ge=0, le=1 << 24)
    candidate_window: int = limited(ge=0, le=1 << 24)
    signal_dim: int = limited(ge=1, le=1024)
