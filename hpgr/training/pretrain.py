"""Stage 1: structure-aware pretraining by session-based masked item modeling.

Single items, and for some users one whole session, are replaced by [M] before the session module
sees them; a bidirectional Transformer names them. Training events only. With a model below base/
its trunk is where training starts; `warm_steps` then count, and 0 hands the trunk on as it is.
Reads: artifacts/sessions, base/. Writes: artifacts/pretrain (the trunk's weights).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from hpgr.data.batches import Batch, TrainingWindows
from hpgr.data.histories import Histories
from hpgr.data.log import FIRST_ITEM, EventLog
from hpgr.model.catalogue import Catalogue
from hpgr.model.hpgr import MaskedItemModel
from hpgr.model.packed import pack
from hpgr.training.checkpoint import SCRATCH, run_key
from hpgr.training.device import Device, choose_device
from hpgr.training.length import Schedule
from hpgr.training.loop import train
from hpgr.training.losses import full_softmax, normalised
from hpgr.training.outputs import finish, write_outputs
from hpgr.training.warm import TRUNK, Base
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from hpgr.config import Config

SESSIONS = Path("artifacts/sessions")
ARRAYS = SESSIONS / "arrays"
OUTPUT = Path("artifacts/pretrain")


def mask_events(
    histories: Histories,
    random: np.random.Generator,
    *,
    mask_share: float,
    session_mask_share: float,
) -> np.ndarray:
    """Which events are hidden, bool [T]: some at random and, for some users, one whole session.

    Args:
        histories: B users.
        random: of this batch alone.
        mask_share: of events.
        session_mask_share: of users.
    """
    masked = random.random(len(histories.item)) < mask_share
    for user in np.flatnonzero(random.random(len(histories)) < session_mask_share):
        rows = slice(histories.offsets[user], histories.offsets[user + 1])
        sessions = np.unique(histories.session[rows])
        if len(sessions) > 1:  # a user's only session would leave nothing to infer it from
            masked[rows] |= histories.session[rows] == random.choice(sessions)
    if len(masked) and not masked.any():
        masked[random.integers(len(masked))] = True
    return masked


def pretrain(cfg: Config, workspace: Workspace = HERE) -> None:
    """Run stage 1 as params.yaml says; zero steps write the trunk it started with.

    Args:
        cfg: sections `model`, `pretrain` and `finetune`, with their keys as attributes: a `Config`
            or plain objects, which need no pydantic.
        workspace: where the run's files lie.

    Raises:
        UserError: the model below base/ does not fit the log or the parameters.
    """
    settings, base = cfg.pretrain, Base.open()
    if base:
        # Here, because it needs pyarrow, which a machine that trains from nothing may not have.
        from hpgr.data.vocabulary import check_kept_ids

        check_kept_ids(workspace)
    log = EventLog.open(ARRAYS)
    device = choose_device(settings.device, settings.precision)
    torch.manual_seed(settings.seed)
    windows = TrainingWindows(
        log,
        max_history=cfg.model.max_history,
        batch_tokens=settings.batch_tokens,
        num_candidates=0,
        random_windows=True,
        seed=settings.seed,
    )
    catalogue = Catalogue.of(log)
    model = MaskedItemModel(cfg.model, catalogue, mim_blocks=settings.mim_blocks)
    if base and base.has_trunk:
        base.start(model.trunk, catalogue, vars(cfg.model), part=TRUNK)
    model.to(device.device)
    key = run_key(
        {"stage": "pretrain", "model": vars(cfg.model), "own": vars(settings)},
        [*ARRAYS.iterdir(), *(base.files if base else ())],
    )
    scratch = SCRATCH / f"pretrain-{key}"
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )
    task = _MaskedItems(cfg, device)
    outcome = train(
        model,
        optimizer,
        windows,
        loss=task.loss,
        validate=lambda _: {},
        device=device,
        schedule=Schedule(
            steps=settings.warm_steps if base else settings.steps,
            validate_steps=settings.validate_steps,
            patience=None,
            max_minutes=settings.max_minutes,
            warmup_steps=settings.warmup_steps,
            decay=True,
            clip_norm=settings.clip_norm,
            checkpoint_steps=settings.checkpoint_steps,
            monitor="step",  # the last weights are the ones to keep
        ),
        scratch=scratch,
        name="pretrain",
    )
    if device.rank == 0:
        weights = {
            k.removeprefix(TRUNK): v for k, v in outcome.best_weights.items() if k.startswith(TRUNK)
        }
        config = {"model": vars(cfg.model), "pretrain": vars(settings)}
        config |= {"base": base.origin} if base else {}
        write_outputs(OUTPUT, weights, json.loads(json.dumps(config)), outcome, device)
    finish(scratch, device)


class _MaskedItems:
    """The loss of stage 1 for one batch."""

    def __init__(self, cfg: Config, device: Device) -> None:
        self.settings, self.temperature, self.device = (
            cfg.pretrain,
            cfg.finetune.temperature,
            device,
        )

    def loss(self, model: nn.Module, batch: Batch, epoch: int, index: int) -> dict[str, Tensor]:
        """`loss`: cross-entropy over the catalogue at the masked rows."""
        random = np.random.default_rng([self.settings.seed, epoch, index, self.device.rank])
        hidden = mask_events(
            batch.histories,
            random,
            mask_share=self.settings.mask_share,
            session_mask_share=self.settings.session_mask_share,
        )
        packed = pack(batch.histories, self.device.device)
        masked = torch.from_numpy(hidden).to(self.device.device)
        states, items = model(packed, masked)
        # Same geometry as the retrieval head of stage 2, so that the table serves both.
        states, items = normalised(states[masked], items, self.temperature)
        loss = full_softmax(states, items, packed.item[masked], first_item=FIRST_ITEM)
        return {"loss": loss}
