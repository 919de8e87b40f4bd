"""Rules between parameters: combinations of values that cannot work.

Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hpgr.metrics import BASKET, BASKET_MONITOR, RANKING_MONITORS
from hpgr.model.zoo import section_of
from hpgr.params_file import meant

if TYPE_CHECKING:
    from hpgr.config import Config, Evaluate


def impossible(cfg: Config) -> Iterator[str]:
    """Yield one line for each combination of values that cannot work."""
    yield from (f"  model.{problem}" for problem in section_of(cfg.model).problems())
    yield from _training(cfg)
    yield from _evaluation(cfg)
    yield from _gate(cfg)
    if cfg.serve.k > cfg.serve.max_k:
        yield f"  serve.k: found {cfg.serve.k}, expected at most serve.max_k: {cfg.serve.max_k}"
    yield from _columns(cfg)


def gate_metrics(evaluate: Evaluate, split: str) -> list[str]:
    """Return the metrics of `hpgr.evaluation.contest` for two models that both rank."""
    cutoffs = dict.fromkeys(evaluate.cutoffs)
    found = [*(f"{name}@{k}" for name in ("hr", "ndcg") for k in cutoffs), "mrr"]
    found += [*(f"served.{name}" for name in found), f"coverage@{evaluate.cutoffs[0]}"]
    if split == "global-time":
        found += ["auc", "log_loss"]
        if evaluate.baskets:
            cutoffs = dict.fromkeys(evaluate.basket_cutoffs)
            found += [f"{BASKET}{name}@{k}" for name in ("recall", "ndcg") for k in cutoffs]
    return found


def _training(cfg: Config) -> Iterator[str]:
    monitor = cfg.finetune.monitor
    for name, why in (
        ("repeat_weights", "not every log repeats"),
        ("successor_weights", "not every log has an order"),
    ):
        if 0 not in (found := getattr(cfg.finetune, name)):
            yield f"  finetune.{name}: found {list(found)}, expected 0 among them: {why}"
    if monitor in RANKING_MONITORS and cfg.finetune.ranking_weight == 0:
        yield (
            f"  finetune.monitor: {monitor} needs a ranking head, and finetune.ranking_weight "
            "is 0; raise it, or monitor validation_ndcg@10"
        )
    baskets = cfg.evaluate.baskets and cfg.sessionize.split == "global-time"
    if monitor == BASKET_MONITOR and not baskets:
        yield (
            f"  finetune.monitor: {monitor} needs evaluate.baskets: true and sessionize.split: "
            "global-time; set both, or monitor validation_ndcg@10"
        )


def _evaluation(cfg: Config) -> Iterator[str]:
    for key in ("cutoffs", "basket_cutoffs", "list_cutoffs"):
        cutoffs = list(getattr(cfg.evaluate, key))
        if cutoffs != sorted(set(cutoffs)):
            yield (
                f"  evaluate.{key}: found {cutoffs}, expected each once, the smallest first: "
                f"{sorted(set(cutoffs))}"
            )
    if 0 not in cfg.evaluate.like_weights:
        yield (
            f"  evaluate.like_weights: found {list(cfg.evaluate.like_weights)}, expected 0 among "
            "them: retrieval's own order, than which no served order may be worse"
        )


def _gate(cfg: Config) -> Iterator[str]:
    known = gate_metrics(cfg.evaluate, cfg.sessionize.split)
    named = {"gate.metric": cfg.gate.metric} | {f"gate.guards.{n}": n for n in cfg.gate.guards}
    for key, name in named.items():
        if name not in known:
            fix = "name one of these, or add its cutoff to evaluate.cutoffs"
            if name in ("auc", "log_loss"):
                fix = "it needs sessionize.split: global-time"
            elif name.startswith(BASKET):
                fix = (
                    "it needs evaluate.baskets: true, sessionize.split: global-time and its cutoff "
                    "in evaluate.basket_cutoffs"
                )
            yield f"  {key}: {name!r} is not among {', '.join(known)}{meant(name, known)}; {fix}"
    samples, lowest = cfg.evaluate.bootstrap_samples, 2 / (cfg.evaluate.bootstrap_samples + 1)
    if cfg.gate.significance < 1 and cfg.gate.significance <= lowest:
        yield (
            f"  gate.significance: no p-value is below {cfg.gate.significance:g}, as "
            f"evaluate.bootstrap_samples: {samples} gives none below {lowest:.4f}; raise either"
        )


def _columns(cfg: Config) -> Iterator[str]:
    """Check that user, item and time are three columns; the title may be the id.

    Of impressions the id of the list and the label are two more.
    """
    columns = cfg.data.columns
    seen: dict[str, str] = {}
    of_lists = () if cfg.data.impressions is None else ("impression_id", "label")
    for ours in ("user_id", "item_id", "timestamp", *of_lists):
        theirs = getattr(columns, ours)
        if theirs is None:
            yield (
                f"  data.columns.{ours}: found null, expected the name of a column of "
                f"{cfg.data.impressions}; name it, or set data.impressions to null"
            )
            continue
        if theirs in seen:
            yield (
                f"  data.columns.{ours}: {theirs!r} is data.columns.{seen[theirs]} already; name "
                "another column"
            )
        seen[theirs] = ours
