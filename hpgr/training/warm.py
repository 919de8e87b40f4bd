"""Warm start: the weights below base/, grown to the vocabulary of the log that is trained on.

Rows of what the base knows stay bit for bit; rows that it lacks are those of a fresh network.
Buffers describe the catalogue and are the new log's. Reads: base/ (see `hpgr.data.base_folder`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpgr.data.base_folder import is_filled
from hpgr.model.catalogue import Catalogue
from hpgr.runtime import UserError, read_json
from hpgr.training.checkpoint import load_tensors
from hpgr.workspace import HERE

# Weights whose rows are numbered by a vocabulary, and how many rows lie behind it (the mask token).
ROWS = {
    "trunk.items.item.weight": ("num_items", 1),
    "trunk.items.category_table.weight": ("num_categories", 0),
    "trunk.action.weight": ("num_actions", 1),
    "click.item_bias": ("num_items", 0),
    "click.action_value": ("num_actions", 0),
    "item.weight": ("num_items", 0),  # HSTU's
    "action.weight": ("num_actions", 0),
}
VOCABULARIES = ("num_items", "num_actions", "num_categories")
TRUNK = "trunk."
BASE = HERE.base
MODEL = BASE / "model"
FROM_NOTHING = "train from nothing with `hpgr base --clear` (the flow `train` does that)"


@dataclass(frozen=True)
class Base:
    """The model below base/: its weights, its config.json and which version it is."""

    weights: dict[str, Tensor]
    config: dict[str, Any]
    origin: dict[str, Any]

    @classmethod
    def open(cls) -> Base | None:
        """The model to start from, or None where base/ is empty.

        Raises:
            UserError: the weights are damaged.
        """
        if not is_filled(BASE):
            return None
        filled = read_json(BASE / "base.json")
        origin = {name: filled[name] for name in ("name", "version", "run_id", "key")}
        try:
            weights, _ = load_tensors(MODEL / "model.safetensors")
        except ValueError as error:
            raise UserError(
                f"{MODEL / 'model.safetensors'} is damaged: `hpgr base {origin['version']}` "
                "fetches it again"
            ) from error
        return cls(weights, read_json(MODEL / "config.json"), origin)

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return _version(self.origin)

    @property
    def has_trunk(self) -> bool:
        """Whether stage 1 has something to start from; HSTU has no trunk."""
        return any(name.startswith(TRUNK) for name in self.weights)

    @property
    def files(self) -> list[Path]:
        """What a run that starts here depends on."""
        return [BASE / "base.json", *MODEL.iterdir()]

    def start(
        self, network: nn.Module, catalogue: Catalogue, settings: dict[str, Any], *, part: str = ""
    ) -> None:
        """Give `network` the base's weights, grown to `catalogue`; new rows stay as they are.

        Args:
            network: the whole network or, with `part`, the one below that prefix.
            catalogue: of the log that is trained on.
            settings: the section `model` in force, to name what was changed.
            part: prefix of the network's weights within the base's.

        Raises:
            UserError: the base does not fit the network or knows more than the catalogue.
        """
        fresh = {part + name: value for name, value in network.state_dict().items()}
        buffers = {part + name for name, _ in network.named_buffers()}
        old = {k: v for k, v in self.weights.items() if k.startswith(part) and k not in buffers}
        new = {k: v for k, v in fresh.items() if k not in buffers}
        before = {name: int(self.config["catalogue"][name]) for name in VOCABULARIES}
        now = {name: int(getattr(catalogue, name)) for name in VOCABULARIES}
        self._check_sizes(before, now)
        self._check_shapes(old, new, before, now, settings)
        grown = {k: grow(v, new[k], ROWS[k][1]) if k in ROWS else v for k, v in old.items()}
        kept = {k: fresh[k] for k in buffers & fresh.keys()}
        network.load_state_dict({k.removeprefix(part): v for k, v in (grown | kept).items()})
        added = ", ".join(f"{now[n] - before[n]} {n.removeprefix('num_')}" for n in VOCABULARIES)
        print(f"starts from {self.title}; new: {added}", flush=True)

    def check_kind(self, *, encoder: str, ranking: bool, enough_labels: bool = True) -> None:
        """Refuse a base of another encoder, or with another set of heads.

        Args:
            encoder: that is asked for.
            ranking: whether a ranking head is trained.
            enough_labels: whether the log's labels allow one.

        Raises:
            UserError: the message names the parameter.
        """
        if self.config["encoder"] != encoder:
            raise UserError(
                f"base/ holds {self.title} with finetune.encoder: {self.config['encoder']}, "
                f"params.yaml asks for {encoder}. Set it back, or {FROM_NOTHING}."
            )
        if self.config["ranking"] == ranking:
            return
        if not enough_labels:
            cause = "the log has too few training events of one label to go on with that"
            cure = "Name a positive that it has (sessionize.positive_from, positive_actions)"
        elif ranking:
            cause = "finetune.ranking_weight is above 0 and both labels have events enough"
            cure = "Set finetune.ranking_weight: 0"
        else:
            cause = "finetune.ranking_weight is 0"
            cure = "Set it back"
        was = "with a ranking" if self.config["ranking"] else "without a ranking"
        raise UserError(
            f"base/ holds {self.title}, trained {was}; {cause}. {cure}, or {FROM_NOTHING}."
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
        new: dict[str, Tensor],
        before: dict[str, int],
        now: dict[str, int],
        settings: dict[str, Any],
    ) -> None:
        problems = [f"{name} is new" for name in sorted(new.keys() - old.keys())]
        problems += [f"{name} has no place" for name in sorted(old.keys() - new.keys())]
        for name in sorted(old.keys() & new.keys()):
            expected = list(new[name].shape)
            if name in ROWS:
                vocabulary, _ = ROWS[name]
                expected[0] += before[vocabulary] - now[vocabulary]
            if list(old[name].shape) != expected:
                problems.append(f"{name} is {list(old[name].shape)}, expected {expected}")
        if problems:
            was = self.config["model"]
            changed = [
                f"model.{k} was {was.get(k)!r}, is {v!r}"
                for k, v in settings.items()
                if was.get(k) != v
            ]
            cause = "; ".join(changed) or "the log has actions or categories that it had not"
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise UserError(
                f"base/ holds {self.title}, which this network cannot go on from: {problems[0]}"
                f"{more}. Cause: {cause}. Set the parameters back, or {FROM_NOTHING}."
            )


def grow(old: Tensor, fresh: Tensor, behind: int) -> Tensor:
    """`old` with as many rows as `fresh`; the rows that it lacks are `fresh`'s.

    Args:
        old: weight of the base, [rows + behind, ...].
        fresh: the same weight of a fresh network, with at least as many rows.
        behind: rows of both behind the vocabulary, which stay the last ones.
    """
    known = len(old) - behind
    return torch.cat([old[:known], fresh[known : len(fresh) - behind], old[known:]])


def check_same_base(base: Base | None, pretrained: Path) -> None:
    """Refuse a stage 1 that started from another model than stage 2 is about to.

    Raises:
        UserError: the pretrain stage has to run again.
    """
    before = read_json(pretrained / "config.json").get("base")
    if before != (base.origin if base else None):
        raise UserError(
            f"{pretrained} started from {_version(before)}, base/ holds "
            f"{_version(base.origin if base else None)}: run `dvc repro pretrain` first"
        )


def _version(origin: dict[str, Any] | None) -> str:
    return f"{origin['name']} version {origin['version']}" if origin else "nothing"
