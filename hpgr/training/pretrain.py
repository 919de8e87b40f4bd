"""Stage 1: structure-aware pretraining by session-based masked item modeling.

Single items, and for some users one whole session, are replaced by [M] before the session module
sees them; a bidirectional Transformer names them. Items start at PPMI-SVD of their co-occurrence
within sessions. Training events only; item vectors are measured on validation
(`hpgr.training.item_probe`), and nothing follows from it. With a model below base/ its trunk is
where training starts; `warm_steps` then count, and 0 hands the trunk on as it is.
A model without stage 1 leaves empty outputs.
Reads: artifacts/sessions, base/. Writes: artifacts/pretrain (the weights that stage 2 inherits).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from hpgr.data.batches import Batch, TrainingWindows
from hpgr.data.histories import Histories
from hpgr.data.log import FIRST_ITEM, EventLog
from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import network_class
from hpgr.model.packed import pack
from hpgr.torchrun import launched
from hpgr.training.checkpoint import scratch_folder
from hpgr.training.cooccurrence import directions, ppmi_svd
from hpgr.training.device import Device, choose_device
from hpgr.training.item_factors import fit_item_factors
from hpgr.training.item_probe import SessionProbe, verdict
from hpgr.training.length import Schedule
from hpgr.training.loop import train
from hpgr.training.losses import catalogue_softmax, normalised
from hpgr.training.memory import MemoryNeed
from hpgr.training.outputs import finish, write_outputs, write_untrained
from hpgr.training.table_optimizer import TableAdamW
from hpgr.training.warm import Base, pack_factors
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from hpgr.config import Config


def mask_events(
    histories: Histories,
    random: np.random.Generator,
    *,
    mask_share: float,
    session_mask_share: float,
) -> np.ndarray:
    """Choose events to hide, bool [T]: some at random and, for some users, one whole session.

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
        if len(sessions) > 1:  # nothing would be left to infer a user's only session from
            masked[rows] |= histories.session[rows] == random.choice(sessions)
    if len(masked) and not masked.any():
        masked[random.integers(len(masked))] = True
    return masked


def pretrain(cfg: Config, workspace: Workspace = HERE) -> None:
    """Run stage 1 as params.yaml says; zero steps write the initial trunk.

    Args:
        cfg: sections `model`, `pretrain` and `finetune`, with their keys as attributes: a `Config`
            or plain objects, which need no pydantic.
        workspace: where the run's files lie.

    Raises:
        UserError: the model below base/ does not fit the log or the parameters.
    """
    settings, base = cfg.pretrain, Base.open(workspace)
    if base:
        base.check_name(cfg.model.name)
        # Imported here: it needs pyarrow, which a machine that only trains may lack.
        from hpgr.data.vocabulary import check_kept_ids

        check_kept_ids(workspace)
    log = EventLog.open(workspace.arrays)
    kind, catalogue = network_class(cfg.model.name), Catalogue.of(log)
    if kind.inherits is None:
        if launched().rank == 0:
            fitted = _fitted(cfg, log, base)
            config = {"model": vars(cfg.model), **({"base": base.origin} if base else {})}
            write_untrained(workspace.pretrained, fitted, config)
        return
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
    model = kind.stage_one(cfg.model, catalogue, blocks=settings.mim_blocks)
    assert model is not None
    closed_form = ppmi_svd(log, model.item_vectors().shape[1], seed=settings.seed)
    if not base:  # the directions of its table are others
        start = directions(closed_form, model.item_vectors().detach())
        model.start_items(settings.start_length * start)
    prefix = f"{kind.inherits}."
    if base:
        base.start(model.get_submodule(kind.inherits), catalogue, vars(cfg.model), prefix=prefix)
    model.to(device.device)
    inputs = [*workspace.arrays.iterdir(), *(base.files if base else ())]
    scratch = scratch_folder("pretrain", cfg, inputs, workspace)
    optimizer = TableAdamW([([*model.parameters()], 1.0)], settings, cfg.finetune)
    probe = SessionProbe(log, seed=settings.seed, among=device)
    loss = partial(_loss, cfg, device)
    memory = MemoryNeed.of(model, optimizer, windows, loss, device).require(device, "pretrain")
    if device.rank == 0:
        print(f"pretrain: {memory}{optimizer.describe()}", flush=True)
    outcome = train(
        model,
        optimizer,
        windows,
        loss=loss,
        validate=lambda: probe(model.item_vectors()),
        device=device,
        schedule=Schedule.of(
            settings,
            steps=settings.warm_steps if base else settings.steps,
            patience=None,
            decay=True,
            monitor="step",  # the last weights are the ones to keep
        ),
        scratch=scratch,
        name="pretrain",
    )
    beside = probe.references(closed_form, seed=settings.seed)
    said = verdict(probe(model.item_vectors()), beside)
    if device.rank == 0:
        weights = {
            name.removeprefix(prefix): weight
            for name, weight in outcome.best_weights.items()
            if name.startswith(prefix)
        }
        weights |= _fitted(cfg, log, base)
        config = {"model": vars(cfg.model), "pretrain": vars(settings)}
        config |= {"base": base.origin} if base else {}
        write_outputs(
            workspace.pretrained,
            weights,
            config,
            outcome,
            device,
            beside={f"{n}.{key}": v for n, row in beside.items() for key, v in row.items()},
        )
        print(f"pretrain: {said}", flush=True)
    finish(scratch, device)


def _fitted(cfg: Config, log: EventLog, base: Base | None) -> dict[str, Tensor]:
    """Fit item factors, for a model that starts from them and a log that can rank."""
    if not (network_class(cfg.model.name).fits_factors(cfg.model) and log.meta.can_rank):
        return {}
    start = base.weights.get("click.readout.factor") if base else None
    factors = fit_item_factors(
        log,
        getattr(cfg.model, "factors"),  # noqa: B009 - not every network has them
        seed=cfg.pretrain.seed,
        start=start,
    )
    return pack_factors(factors)


def _loss(
    cfg: Config, device: Device, model: nn.Module, batch: Batch, epoch: int, index: int
) -> dict[str, Tensor]:
    """Compute `loss` of a batch: cross-entropy over the catalogue at the masked rows."""
    settings = cfg.pretrain
    hidden = mask_events(
        batch.histories,
        np.random.default_rng([settings.seed, epoch, index, device.rank]),
        mask_share=settings.mask_share,
        session_mask_share=settings.session_mask_share,
    )
    packed = pack(batch.histories, device.device)
    masked = torch.from_numpy(hidden).to(device.device)
    states, items = model(packed, masked)
    # Same geometry as the retrieval head of stage 2, so that the table serves both.
    states, items = normalised(states[masked], items, cfg.finetune.temperature)
    target = packed.item[masked]
    return {"loss": catalogue_softmax(cfg.finetune, states, items, target, first_item=FIRST_ITEM)}
