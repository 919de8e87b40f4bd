"""Warm start: the weights below base/, grown to the vocabulary of the log that is trained on.

Rows of known items stay bit for bit; rows that the base lacks are those of a fresh network.
Buffers describe the catalogue and are the new log's. Weights for shown lists are fresh where the
base's pCTR was that of events, and go where no lists are ranked. Reads: base/ (see
`hpgr.data.base_folder`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpgr.data.base_folder import MODEL, RECORD, is_filled
from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import LISTS, network_class
from hpgr.model.stored_config import CONFIG, read_config
from hpgr.model.stored_table import PREFIX as TABLE_PREFIX
from hpgr.model.tastes import ItemFactors
from hpgr.runtime import UserError, read_json
from hpgr.training.checkpoint import load_tensors
from hpgr.workspace import HERE, Workspace

WEIGHTS = "model.safetensors"
PREFIX = "factors."  # of item factors among the weights of stage 1
VOCABULARIES = ("num_items", "num_actions", "num_categories")
FROM_NOTHING = "train from nothing with `hpgr base --clear` (the flow `train` does that)"


@dataclass(frozen=True)
class Base:
    """The model below base/: its weights, its config.json, its version and its files."""

    weights: dict[str, Tensor]
    config: dict[str, Any]
    origin: dict[str, Any]
    files: tuple[Path, ...] = ()

    @classmethod
    def open(cls, workspace: Workspace = HERE) -> Base | None:
        """Open the model to start from; return None if base/ is empty.

        Raises:
            UserError: the weights are damaged.
        """
        note, model = workspace.base / RECORD, workspace.base / MODEL
        if not is_filled(workspace.base):
            return None
        filled = read_json(note)
        origin = {name: filled[name] for name in ("name", "version", "run_id", "key")}
        try:
            weights, _ = load_tensors(model / WEIGHTS)  # without what is counted anew
            weights = {k: v for k, v in weights.items() if not k.startswith(TABLE_PREFIX)}
        except ValueError as error:
            raise UserError(
                f"{model / WEIGHTS} is damaged: `hpgr base {origin['version']}` fetches it again"
            ) from error
        return cls(weights, read_config(model / CONFIG), origin, (note, *model.iterdir()))

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return _version(self.origin)

    def start(
        self,
        network: nn.Module,
        catalogue: Catalogue,
        settings: dict[str, Any],
        *,
        prefix: str = "",
    ) -> None:
        """Give `network` the base's weights, grown to `catalogue`; new rows stay as they are.

        Args:
            network: the whole network or, with `prefix`, the part that has it.
            catalogue: of the log that is trained on.
            settings: the section `model` in force, to name what was changed.
            prefix: of the network's weights within the base's.

        Raises:
            UserError: the base does not fit the network or knows more than the catalogue.
        """
        grows = network_class(self.config["model"]["name"]).grows
        fresh = {prefix + name: value for name, value in network.state_dict().items()}
        buffers = {prefix + name for name, _ in network.named_buffers()}
        known = {k: v for k, v in self.weights.items() if not k.startswith(LISTS) or k in fresh}
        known |= {k: v for k, v in fresh.items() if k.startswith(LISTS) and k not in known}
        old = {k: v for k, v in known.items() if k.startswith(prefix) and k not in buffers}
        new = {k: v for k, v in fresh.items() if k not in buffers}
        before = {name: int(self.config["catalogue"][name]) for name in VOCABULARIES}
        now = {name: int(getattr(catalogue, name)) for name in VOCABULARIES}
        self._check_sizes(before, now)
        expected = {k: list(v.shape) for k, v in new.items()}
        for name in grows.keys() & expected.keys():
            vocabulary = grows[name].vocabulary
            expected[name][0] += before[vocabulary] - now[vocabulary]
        self._check_shapes(old, expected, settings)
        grown = {k: grow(v, new[k], grows[k].behind) if k in grows else v for k, v in old.items()}
        kept = {k: fresh[k] for k in buffers & fresh.keys()}
        network.load_state_dict({k.removeprefix(prefix): v for k, v in (grown | kept).items()})
        added = ", ".join(f"{now[n] - before[n]} {n.removeprefix('num_')}" for n in VOCABULARIES)
        print(f"starts from {self.title}; new: {added}", flush=True)

    def check_name(self, name: str) -> None:
        """Refuse a base of another model than `name`.

        Raises:
            UserError: the message names the parameter.
        """
        if (was := self.config["model"]["name"]) != name:
            raise UserError(
                f"base/ holds {self.title} with model.name: {was}, params.yaml asks for {name}. "
                f"Set it back, or {FROM_NOTHING}."
            )

    def check_kind(self, name: str, *, ranking: bool, enough_labels: bool = True) -> None:
        """Refuse a base of another model, or with another set of heads.

        Args:
            name: of the requested model.
            ranking: a ranking head is trained.
            enough_labels: the log's labels allow one.

        Raises:
            UserError: the message names the parameter.
        """
        self.check_name(name)
        if self.config["ranking"] == ranking:
            return
        if not enough_labels:
            cause = "the log has too few training events of one label for a ranking"
            fix = "Name a positive that it has (sessionize.positive_from, positive_actions)"
        elif ranking:
            cause = "finetune.ranking_weight is above 0 and both labels have events enough"
            fix = "Set finetune.ranking_weight: 0"
        else:
            cause = "finetune.ranking_weight is 0"
            fix = "Set it back"
        was = "with a ranking" if self.config["ranking"] else "without a ranking"
        raise UserError(
            f"base/ holds {self.title}, trained {was}; {cause}. {fix}, or {FROM_NOTHING}."
        )

    def _check_sizes(self, before: dict[str, int], now: dict[str, int]) -> None:
        for name in VOCABULARIES:
            if now[name] < before[name]:
                what = name.removeprefix("num_")
                raise UserError(
                    f"base/ holds {self.title} with {before[name]} {what} (reserved ids included), "
                    f"artifacts/sessions has {now[name]}: a warm start only adds. Run `dvc repro "
                    f"sessionize` with the base in place and the whole log, or {FROM_NOTHING}."
                )

    def _check_shapes(
        self,
        old: dict[str, Tensor],
        expected: dict[str, list[int]],
        settings: dict[str, Any],
    ) -> None:
        problems = [f"{name} is new" for name in sorted(expected.keys() - old.keys())]
        problems += [f"{name} has no place" for name in sorted(old.keys() - expected.keys())]
        for name in sorted(old.keys() & expected.keys()):
            if list(old[name].shape) != expected[name]:
                problems.append(f"{name} is {list(old[name].shape)}, expected {expected[name]}")
        if problems:
            was = self.config["model"]
            changed = [
                f"model.{k} was {was.get(k)!r}, is {v!r}"
                for k, v in settings.items()
                if was.get(k) != v
            ]
            cause = "; ".join(changed) or "the log has new actions or categories"
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise UserError(
                f"base/ holds {self.title}, which does not fit this network: {problems[0]}"
                f"{more}. Cause: {cause}. Set the parameters back, or {FROM_NOTHING}."
            )


def grow(old: Tensor, fresh: Tensor, behind: int) -> Tensor:
    """Grow `old` to as many rows as `fresh`; the rows that it lacks are `fresh`'s.

    Args:
        old: weight of the base, [rows + behind, ...].
        fresh: the same weight of a fresh network, with at least as many rows.
        behind: rows of both behind the vocabulary, which stay last.
    """
    known = len(old) - behind
    return torch.cat([old[:known], fresh[known : len(fresh) - behind], old[known:]])


def read_stage_one(
    name: str, base: Base | None, pretrained: Path
) -> tuple[dict[str, Tensor], ItemFactors | None]:
    """Return the weights that stage 1 trained and the item factors that it fitted, if any.

    Args:
        name: of the model.
        base: start of stage 2, or None.
        pretrained: folder of stage 1.

    Raises:
        UserError: stage 1 trained another model, or started from another base: it has to run again.
    """
    config = read_json(pretrained / CONFIG)
    if (trained := config["model"].get("name", name)) != name:
        raise UserError(
            f"{pretrained} was trained for model.name: {trained}, params.yaml asks for {name}: run "
            "`dvc repro pretrain` first"
        )
    before = config.get("base")
    if before != (base.origin if base else None):
        raise UserError(
            f"{pretrained} started from {_version(before)}, base/ holds "
            f"{_version(base.origin if base else None)}: run `dvc repro pretrain` first"
        )
    weights, _ = load_tensors(pretrained / WEIGHTS)
    return weights, unpack_factors(weights)


def pack_factors(factors: ItemFactors) -> dict[str, Tensor]:
    """Return item factors as named tensors."""
    return {PREFIX + name: torch.as_tensor(v) for name, v in factors._asdict().items()}


def unpack_factors(weights: dict[str, Tensor]) -> ItemFactors | None:
    """Take item factors out of `weights`; None if it holds none."""
    if PREFIX + "factor" not in weights:
        return None
    found = {name: weights.pop(PREFIX + name) for name in ItemFactors._fields}
    return ItemFactors(noise=float(found.pop("noise")), **found)


def _version(origin: dict[str, Any] | None) -> str:
    return f"{origin['name']} version {origin['version']}" if origin else "nothing"
