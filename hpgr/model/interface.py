"""Interface of the zoo's networks to training, evaluation, serving and a warm start.

Shape legend: T history rows, V items, C candidates, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hpgr.model.catalogue import Catalogue
from hpgr.model.packed import Candidates, Packed
from hpgr.model.shapes import Bool, Float
from hpgr.model.zoo import ZOO, resolve_class

if TYPE_CHECKING:
    from hpgr.model.preference import PreferenceMask
    from hpgr.model.ranking_head import RankingHead
    from hpgr.model.tastes import ItemFactors

LISTS = "click.lists."  # begins the names of the ranking head's weights for shown lists
# Weights that start at counts and at the item factors of stage 1, where a network has them.
FITTED = (
    "click.item_bias",
    f"{LISTS}bias",
    "click.readout.factor",
    "click.readout.bias",
    "click.readout.hint",
)


class Output(NamedTuple):
    """States [T, D] of history rows, catalogue vectors [V, D], pCTR logits [C] or None.

    A state and an item's vector are compared by cosine, whatever their lengths.
    """

    states: Float[Tensor, "T D"]
    items: Float[Tensor, "V D"]
    logits: Float[Tensor, "C"] | None


class Reading(NamedTuple):
    """Histories as a network read them, against which candidates are judged.

    `states` and `items` are those of `Output`; `mask` is that through which the rows of `states`
    read, None without one; `memory` is the network's own.
    """

    states: Float[Tensor, "T D"]
    items: Float[Tensor, "V D"]
    mask: PreferenceMask | None
    memory: Any


class Judgement(NamedTuple):
    """pCTR logits [C] of candidates and the mask through which they read, None without one."""

    logits: Float[Tensor, "C"]
    mask: PreferenceMask | None


class Growth(NamedTuple):
    """Growth of a weight whose rows are numbered by a vocabulary of the catalogue.

    `vocabulary` is its size's name (num_items, num_actions or num_categories); `behind` counts the
    rows behind it, which stay the last ones.
    """

    vocabulary: str
    behind: int = 0


class StageOne(nn.Module):
    """The network of stage 1: it names masked items."""

    def forward(
        self, packed: Packed, masked_T: Bool[Tensor, "T"]
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "V D"]]:
        """Return the states of all rows and the catalogue's vectors; `masked_T` rows are hidden."""
        raise NotImplementedError

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """Return the catalogue's vectors."""
        raise NotImplementedError

    def start_items(self, vectors_VD: Float[Tensor, "V D"]) -> None:
        """Start the catalogue at these vectors, except where they are 0."""
        raise NotImplementedError


class Network(nn.Module):
    """A model behind the zoo: one network, trained by stage 2 and served.

    `grows`: its weights with rows for a vocabulary, by name; a warm start adds rows to them.
    `inherits`: name of the submodule that stage 1 trains and stage 2 starts from, the same in both
    networks; None where the model has no stage 1.
    `watched`: its parts whose gradient norms the curves of a training show, by a name for them:
    the names of their weights and submodules. Those that a network lacks are left out.
    """

    grows: ClassVar[Mapping[str, Growth]] = {}
    inherits: ClassVar[str | None] = None
    watched: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, settings: Any, catalogue: Catalogue, *, ranking: bool = True) -> None:
        """Make fresh weights.

        Args:
            settings: the section `model`, with its keys as attributes.
            catalogue: of the log that is trained on.
            ranking: pCTR is trained too.
        """
        super().__init__()

    @classmethod
    def stage_one(cls, settings: Any, catalogue: Catalogue, *, blocks: int) -> StageOne | None:
        """Make the network of stage 1, or return None for a model without one.

        `blocks` are put on what is inherited, and dropped.
        """
        return None

    @classmethod
    def fits_factors(cls, settings: Any) -> bool:
        """Return True if `start_ranking` shall be given item factors, which stage 1 fits."""
        return bool(getattr(settings, "readout", False))

    def item_tables(self) -> Any:
        """Compute what the weights of items alone decide; None where that is nothing much.

        A network that returns something takes it back as `tables` in `read`, so that it is computed
        once for many readings.
        """
        return None

    def read(self, packed: Packed, *, rows: Tensor | None = None) -> Reading:
        """Read histories, whoever will be judged.

        Args:
            packed: the histories.
            rows: the history rows whose states are asked for, int64, ascending; None: all.
        """
        raise NotImplementedError

    def judge(self, packed: Packed, reading: Reading, candidates: Candidates) -> Judgement:
        """Judge candidates against the `reading` of `packed`."""
        raise NotImplementedError

    def forward(
        self, packed: Packed, candidates: Candidates | None, *, rows: Tensor | None = None
    ) -> Output:
        """Compute states and scores of one batch; without candidates there are no scores."""
        reading = self.read(packed, rows=rows)
        logits = None if candidates is None else self.judge(packed, reading, candidates).logits
        return Output(reading.states, reading.items, logits)

    def attention(self, device: torch.device) -> str:
        """Say how attention is computed on `device`, and why, where there is a choice."""
        return ""

    def start_ranking(
        self,
        events: Float[Tensor, "V"],
        positive: Float[Tensor, "V"],
        factors: ItemFactors | None,
    ) -> None:
        """Start the ranking head from a table of means and from item factors, if supported.

        Args:
            events: number of training events of each item, [V].
            positive: how many of them were positive, [V].
            factors: fitted to the training events; None leaves them random.
        """

    @property
    def list_head(self) -> RankingHead | None:
        """The ranking head, where it is the zoo's own: it knows features of shown lists."""
        return getattr(self, "click", None)

    @property
    def inherited(self) -> nn.Module | None:
        """The submodule that `inherits` names."""
        return self.get_submodule(self.inherits) if self.inherits else None

    def inherit(self, weights: Mapping[str, Tensor], *, fresh: bool) -> None:
        """Start the submodule that `inherits` names at the weights of stage 1, where there is one.

        Without a model that training starts from, stage 2 is `fresh`.
        """
        if self.inherited is not None:
            self.inherited.load_state_dict(weights)

    @property
    def watched_weights(self) -> dict[str, list[nn.Parameter]]:
        """The trained weights of each part in `watched` that the network has."""
        found: dict[str, list[nn.Parameter]] = {}
        for part, names in self.watched.items():
            for name, weight in self.named_parameters():
                if weight.requires_grad and f"{name}.".startswith(tuple(f"{n}." for n in names)):
                    found.setdefault(part, []).append(weight)
        return found

    @property
    def fitted(self) -> list[nn.Parameter]:
        """The weights that start at what was counted and fitted, not at random."""
        return [weight for name, weight in self.named_parameters() if name in FITTED]


def network_class(name: str) -> type[Network]:
    """Return the network of the model `name`."""
    return resolve_class(ZOO[name].network)


def build(settings: Any, catalogue: Catalogue, *, ranking: bool, lists: bool = False) -> Network:
    """Make the network that `settings.name` names, with fresh weights.

    Args:
        settings: the section `model`.
        catalogue: of the log that is trained on.
        ranking: pCTR is trained too.
        lists: pCTR is that of items in shown lists; a network without a head for it goes without.
    """
    network = network_class(settings.name)(settings, catalogue, ranking=ranking)
    if lists and (head := network.list_head) is not None:
        head.add_lists()
    return network
