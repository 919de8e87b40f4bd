"""Stage 2: retrieval and ranking with the network that `model.name` picks.

The weights of stage 1 are inherited and learn more slowly; they are not frozen. The loss is
next-item softmax over the catalogue plus, weighted, that of items of the next session, the pCTR
cross-entropy of labelled candidates and the order of pairs of one user or shown list; early
stopping on validation.
With a model below base/ every other weight starts as that model's, for `warm_steps` steps.
Reads: artifacts/sessions/{arrays,lists}, artifacts/pretrain, base/. Writes: artifacts/finetune.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpgr.data.batches import Batch, TrainingWindows
from hpgr.data.log import FIRST_ITEM, EventLog
from hpgr.metrics import BASKET_MONITOR, RANKING_MONITORS
from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import Network, build
from hpgr.model.packed import pack, place_candidates
from hpgr.model.stored_config import CATALOGUE
from hpgr.model.stored_table import pack_table
from hpgr.runtime import UserError
from hpgr.training.additions import choose_additions
from hpgr.training.candidates import TOO_FEW_EVENTS, CandidateSource
from hpgr.training.checkpoint import scratch_folder
from hpgr.training.device import choose_device
from hpgr.training.length import Schedule
from hpgr.training.loop import train
from hpgr.training.losses import (
    catalogue_softmax,
    describe_loss,
    normalised,
    pairwise,
    sampled_softmax,
)
from hpgr.training.memory import MemoryNeed
from hpgr.training.outputs import finish, write_outputs
from hpgr.training.table_optimizer import TableAdamW
from hpgr.training.validation import Validation
from hpgr.training.warm import WEIGHTS, Base, read_stage_one
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from hpgr.config import Config


def finetune(cfg: Config, workspace: Workspace = HERE) -> None:
    """Run stage 2 as params.yaml says.

    Args:
        cfg: sections `model` and `finetune`, as in `hpgr.training.pretrain.pretrain`.
        workspace: where the run's files lie.

    Raises:
        UserError: the model below base/ does not fit the log or the parameters, or stage 1 did not
            start from it; early stopping monitors a ranking that is not trained, or baskets, and
            the log has none.
    """
    settings, base = cfg.finetune, Base.open(workspace)
    log = EventLog.open(workspace.arrays)
    device = choose_device(settings.device, settings.precision)
    torch.manual_seed(settings.seed)
    source = CandidateSource.of(settings.candidates, log, workspace.lists)
    ranking = settings.ranking_weight > 0 and source.can_rank
    _check_ranking(cfg, ranking=ranking)
    lists = source.lists if ranking else None
    windows = TrainingWindows(
        log,
        max_history=cfg.model.max_history,
        batch_tokens=settings.batch_tokens,
        num_candidates=settings.num_candidates if ranking else 0,
        random_windows=settings.random_windows,
        seed=settings.seed,
        lists=lists,
        baskets=settings.basket_weight > 0 and settings.monitor == BASKET_MONITOR,
    )
    catalogue = Catalogue.of(log)
    model = build(cfg.model, catalogue, ranking=ranking, lists=lists is not None)
    inputs = [*workspace.arrays.iterdir(), *(base.files if base else ())]
    inputs += workspace.lists.iterdir() if lists is not None else ()
    pretrained: dict[str, Tensor] = {}
    factors = None
    if settings.inherit:
        pretrained, factors = read_stage_one(cfg.model.name, base, workspace.pretrained)
        inputs.append(workspace.pretrained / WEIGHTS)
    if ranking:
        events, positive = (torch.from_numpy(count).float() for count in source.item_counts())
        model.start_ranking(events, positive, factors)
        if lists is not None and (head := model.list_head) is not None:
            head.start_places(*(torch.from_numpy(c).float() for c in source.place_counts()))
    if base:
        base.check_kind(cfg.model.name, ranking=ranking, enough_labels=source.can_rank)
        base.start(model, catalogue, vars(cfg.model))
        if ranking and (was := base.config["candidates"]) != source.name:
            print(f"finetune: pCTR of {base.title} was trained on {was}, now on {source.name}")
    if settings.inherit:
        model.inherit(pretrained, fresh=base is None)
    model.to(device.device)
    if device.rank == 0:
        print(f"finetune: {describe_loss(settings, catalogue.num_items)}", flush=True)
        if ranking:
            print(f"finetune: {source.describe()}", flush=True)
        if attention := model.attention(device.device):
            print(f"finetune: {attention}", flush=True)
    scratch = scratch_folder("finetune", cfg, inputs, workspace)
    validation = Validation(
        log,
        max_history=cfg.model.max_history,
        num_queries=settings.validation_queries,
        num_labelled=settings.validation_events if ranking else 0,
        num_baskets=settings.validation_queries if settings.monitor == BASKET_MONITOR else 0,
        seed=settings.seed,
        among=device,
        lists=lists,
    )
    if validation.baskets and not len(validation.baskets.queries):
        raise UserError(
            f"finetune.monitor is {settings.monitor}, but no session that begins in validation has "
            "an earlier one of its user. Set finetune.monitor: validation_ndcg@10"
        )
    loss = partial(_loss, cfg, device.device)
    optimizer = _optimizer(model, cfg)
    memory = MemoryNeed.of(model, optimizer, windows, loss, device).require(device, "finetune")
    if device.rank == 0:
        print(f"finetune: {memory}{optimizer.describe()}", flush=True)
    outcome = train(
        model,
        optimizer,
        windows,
        loss=loss,
        validate=lambda: validation(model, device.device),
        device=device,
        schedule=Schedule.of(
            settings,
            steps=settings.warm_steps if base else settings.steps,
            monitor=settings.monitor if len(validation.rows) else "loss",
        ),
        scratch=scratch,
        name="finetune",
        watched=model.watched_weights,
    )
    best = {name: weight.to(device.device) for name, weight in outcome.best_weights.items()}
    model.load_state_dict(best, assign=True)
    calibration = validation.calibration(model, device.device)
    added = choose_additions(log, settings, validation, model, device.device)
    if device.rank == 0:
        for sentence in added.sentences:
            print(f"finetune: {sentence}", flush=True)
        if ranking:
            print(
                "finetune: calibration on validation: slope {:.3f}, shift {:.3f}".format(
                    *calibration
                ),
                flush=True,
            )
        config = {
            "ranking": ranking,
            "candidates": source.name,
            "lists": lists is not None and model.list_head is not None,
            "calibration": calibration._asdict(),
            **added.config,
            "model": vars(cfg.model),
            "finetune": vars(settings),
            "catalogue": {name: getattr(catalogue, name) for name in CATALOGUE},
        }
        config |= {"base": base.origin} if base else {}
        votes = added.additions.successors.table
        tables = None if votes is None else pack_table(votes)
        write_outputs(
            workspace.finetuned, outcome.best_weights, config, outcome, device, tables=tables
        )
    finish(scratch, device)


def _check_ranking(cfg: Config, *, ranking: bool) -> None:
    """Report that no ranking is trained, and why; refuse to monitor one that is not trained."""
    settings = cfg.finetune
    why = TOO_FEW_EVENTS if settings.ranking_weight > 0 else "finetune.ranking_weight is 0"
    if settings.monitor in RANKING_MONITORS and not ranking:
        raise UserError(
            f"finetune.monitor is {settings.monitor}, but no ranking is trained: {why}. Set "
            "finetune.monitor: validation_ndcg@10 for a model that retrieves only"
        )
    if settings.ranking_weight > 0 and not ranking:
        print(f"retrieval only, no ranking is trained: {why}", flush=True)


def _optimizer(model: Network, cfg: Config) -> TableAdamW:
    """Make the optimizer, with rates of their own for what stage 1 trained and fitted."""
    settings, inherited, fitted = cfg.finetune, [], []
    if settings.inherit:
        inherited = list(model.inherited.parameters()) if model.inherited is not None else []
        fitted = model.fitted
    started = {*inherited, *fitted}
    others = [p for p in model.parameters() if p.requires_grad and p not in started]
    scales = [(others, 1.0), (inherited, settings.inherited_scale), (fitted, settings.factor_scale)]
    return TableAdamW(scales, settings, settings, fused=True)


def _loss(
    cfg: Config,
    place: torch.device,
    model: nn.Module,
    batch: Batch,
    epoch: int,
    index: int,
) -> dict[str, Tensor]:
    """Compute `loss` of a batch and its parts."""
    settings, rows, candidates = cfg.finetune, batch.candidates, None
    if rows is not None:
        candidates = place_candidates(
            batch.histories, rows.offsets, rows.item, rows.visible, rows.time, place, rows.place
        )
    states, items, logits = model(pack(batch.histories, place), candidates)
    target = torch.from_numpy(batch.target).to(place, torch.int64)
    states = states[: len(target)]  # behind them are the histories of shown lists
    states, items = normalised(states, items, settings.temperature)
    retrieval = _retrieval(cfg, states, items, target)
    losses = {"loss": retrieval, "retrieval_loss": retrieval}
    if (following := batch.next_sessions) is not None:
        row = torch.from_numpy(following.row).to(place)
        wanted = torch.from_numpy(following.item).to(place, torch.int64)
        basket = retrieval.new_zeros(())
        if len(row):
            asked = states[row].repeat_interleave(wanted.shape[1], dim=0)
            basket = _retrieval(cfg, asked, items, wanted.flatten())
        losses["basket_loss"] = basket
        losses["loss"] = retrieval + settings.basket_weight * losses["basket_loss"]
    if rows is not None and logits is not None:
        label = torch.from_numpy(rows.label).to(place, torch.float32)
        ranking = functional.binary_cross_entropy_with_logits(logits.float(), label)
        losses["ranking_loss"] = ranking
        if settings.pairwise_weight:
            offsets = torch.from_numpy(rows.offsets).to(place)
            losses["pairwise_loss"] = pairwise(logits.float(), label, offsets)
            ranking = ranking + settings.pairwise_weight * losses["pairwise_loss"]
        losses["loss"] = losses["loss"] + settings.ranking_weight * ranking
    return losses


def _retrieval(cfg: Config, states: Tensor, items: Tensor, target: Tensor) -> Tensor:
    """Compute the mean cross-entropy of `target` [T] given normalised states and items."""
    settings = cfg.finetune
    if settings.loss != "sampled":
        return catalogue_softmax(settings, states, items, target, first_item=FIRST_ITEM)
    shape = (len(target), settings.num_negatives)
    negatives = torch.randint(FIRST_ITEM, len(items), shape, device=target.device)
    return sampled_softmax(states, items, target, negatives)
