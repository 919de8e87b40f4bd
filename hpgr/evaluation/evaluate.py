"""The evaluate stage: judge the trained model on test, beside every baseline, and report.

The only reader of the test split. R1 where the split is leave-one-out; R2 and K1 where it is
global-time. Reads `artifacts/sessions/`, `artifacts/finetune/`, the curves of `artifacts/pretrain/`
and, where it is there, `artifacts/finetune_hstu/` (a second network for the same tables). Writes
`artifacts/evaluation/`: `metrics.json`, `verdict.json` (on validation: the model, or a baseline in
its place), `rules.json` (by which a served answer is as judged),
`queries.parquet`, `candidates.parquet` (K1), `plots/*.csv`, `figures/*.png`, `report.html`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from hpgr.config import Config
from hpgr.data.log import TEST, EventLog
from hpgr.data.repeats import rule as rule_of
from hpgr.evaluation import protocols, ranking, retrieval, rivals
from hpgr.evaluation.baselines import Retriever
from hpgr.evaluation.examples import Example, Names, examples, pick
from hpgr.evaluation.metric_tables import (
    WAYS,
    Tables,
    label,
    merged,
    ranking_tables,
    retrieval_tables,
)
from hpgr.evaluation.retrieval import FromNetwork, Network, Outcome
from hpgr.metrics import metric_label
from hpgr.runtime import UserError, atomic_folder, read_json, write_json
from hpgr.terminal import cell
from hpgr.training.ending import Ending
from hpgr.workspace import HERE, Workspace

SESSIONS = Path("artifacts/sessions")
TRAINED = (Path("artifacts/finetune"), Path("artifacts/finetune_hstu"))
TRAINING = {"pretrain": Path("artifacts/pretrain"), "finetune": TRAINED[0]}
TARGET = Path("artifacts/evaluation")
NO_LABELS = (
    "nothing learns to rank from a log with too few events of one label "
    "(sessionize.positive_from, sessionize.positive_actions)"
)


def evaluate(cfg: Config, workspace: Workspace = HERE) -> None:
    """Run the stage.

    Raises:
        UserError: an input is missing, or the split left nothing to test.
    """
    log = open_log()
    networks, rankers = load_networks(cfg)
    main = next(iter(networks))
    queries = protocols.next_item(log, TEST)
    if not len(queries):
        raise UserError(
            f"{SESSIONS}: the test split holds no event with an earlier one of its user; expected "
            "at least one. Lower sessionize.min_user_events or raise sessionize.test_share."
        )
    protocol = "R1" if log.meta.split == "leave-one-out" else "R2"
    reach = {"max_history": cfg.model.max_history}
    baselines, notes = retrieval.tuned_baselines(log, cfg.evaluate, **reach)
    standing = stand(cfg, log, networks, rankers, baselines)
    rule = log.meta.remove_history
    repeats = log.meta.repeat_share > cfg.evaluate.max_repeat_share
    by_rule = retrieval.run_by_rules(
        log,
        queries,
        {name: FromNetwork(network) for name, network in networks.items()} | baselines,
        cfg.evaluate,
        title=f"{protocol} on test",
        end_to_end=rankers if protocol == "R1" else {},
        rules=[rule, not rule] if repeats else [rule],
        **reach,
    )
    outcomes = by_rule[rule]
    tables = [
        retrieval_tables(
            protocol if found == rule else f"{protocol}_{WAYS[found]}",
            log,
            queries,
            by_rule[found],
            cfg.evaluate,
            main=main,
        )
        for found in by_rule
    ]
    notes.append(seen_rule(log, cfg, tables[0].counts))
    if repeats:
        tables[0] = replace(tables[0], remark=notes[-1])
    if protocol == "R1" and not log.meta.can_rank:
        notes.append(f"Rows “then rank” are left out: {NO_LABELS}.")
    if protocol == "R1" and rankers:
        notes.append(
            f"Rows “then rank”: the best {cfg.evaluate.retrieve} items by dot product, ordered by "
            "predicted probability of being liked, as the model is served."
        )
    candidates = protocols.labelled(log, TEST)
    probabilities: dict[str, np.ndarray] = {}
    if protocol == "R2":
        if why := no_ranking(log, candidates, main, rankers):
            notes.append(f"K1 is left out: {why}.")
        else:
            probabilities = score_candidates(cfg, log, candidates, rankers)
            tables.append(ranking_tables("K1", candidates, probabilities, cfg.evaluate, main=main))
    cards = examples(
        log,
        pick(log, queries, cfg.evaluate),
        networks[main],
        Names.read(SESSIONS, log.meta.num_items),
        cfg.evaluate,
        ranks=main in rankers,
        **reach,
    )
    rules = {"retrieve": cfg.evaluate.retrieve, "remove_history": rule}
    with atomic_folder(TARGET) as folder:
        write_json(folder / "rules.json", rules)
        if standing is not None:
            write_json(folder / "verdict.json", standing.record())
        write_outputs(folder, cfg, tables, list(networks), cards, notes, standing)
        query_table(queries, outcomes).to_parquet(folder / "queries.parquet", index=False)
        if probabilities:
            candidate_table(candidates, probabilities).to_parquet(
                folder / "candidates.parquet", index=False
            )
    console = Console()
    for table in tables:
        console.print(results_table(table))
    for note in notes:
        console.print(cell(note), style="dim")
    for sentences in endings().values():
        for number, sentence in enumerate(sentences):
            console.print(cell(sentence), style="yellow" if number else "dim")
    if standing is not None:
        style = "bold red" if standing.serve_instead else "bold"
        console.print(cell(standing.sentence), style=style)


def open_log() -> EventLog:
    """The sessionized log.

    Raises:
        UserError: it is missing or is not what the contract says.
    """
    try:
        return EventLog.open(SESSIONS / "arrays")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} not found: run `hpgr sessionize` first") from error


def load_networks(cfg: Config) -> tuple[dict[str, Network], dict[str, Network]]:
    """The trained networks by name, the judged one first; the name is the encoder's.

    Returns:
        All networks, and those of them whose ranking head was trained.

    Raises:
        UserError: there is no trained model.
    """
    if not (TRAINED[0] / "config.json").is_file():
        raise UserError(f"{TRAINED[0] / 'config.json'} not found: run `hpgr finetune` first")
    networks: dict[str, Network] = {}
    rankers: dict[str, Network] = {}
    for folder in TRAINED:
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
        if config is not None and config["encoder"] not in networks:
            name = config["encoder"]
            networks[name] = load_network(folder, cfg.finetune.device)
            if config["ranking"]:
                rankers[name] = networks[name]
    return networks, rankers


def stand(
    cfg: Config,
    log: EventLog,
    networks: Mapping[str, Network],
    rankers: Mapping[str, Network],
    baselines: Mapping[str, Retriever],
) -> rivals.Standing | None:
    """The judged network among its rivals on validation, by the metric that chose its weights."""
    monitor = monitored()
    main = next(iter(networks))
    reach = {"max_history": cfg.model.max_history}
    if monitor == "validation_auc" and main in rankers:
        found = rivals.ranking_standing(log, rankers, cfg.evaluate, main=main, **reach)
        if found is not None:
            return found
    metric = "hr" if monitor.startswith("validation_hr") else "ndcg"
    return rivals.retrieval_standing(log, networks, baselines, cfg.evaluate, metric=metric, **reach)


def monitored() -> str:
    """What early stopping of the judged network watched."""
    trained = read_json(TRAINED[0] / "config.json").get("training", {})
    return str(trained.get("monitor", "validation_ndcg@10"))


def endings() -> dict[str, list[str]]:
    """How each training stage ended, in sentences, by stage."""
    found = {}
    for stage, folder in TRAINING.items():
        config = folder / "config.json"
        trained = read_json(config).get("training") if config.is_file() else None
        if trained is not None:
            found[stage] = Ending(**trained).sentences(stage)
    return found


def seen_rule(log: EventLog, cfg: Config, counts: Mapping[str, int]) -> str:
    """By which rule items that a user had before were judged, one sentence."""
    hidden = f"{counts['repeated_targets']:,} of {counts['queries']:,} hidden items are repeats"
    return f"Seen before: {rule_of(log.meta, cfg.evaluate)}; {hidden}."


def no_ranking(
    log: EventLog,
    candidates: protocols.Candidates,
    main: str,
    rankers: Mapping[str, Network],
) -> str | None:
    """Why K1 cannot be judged, or None."""
    if main not in rankers and not log.meta.can_rank:
        return NO_LABELS
    if main not in rankers:
        return f"{main} was trained without a ranking loss (finetune.ranking_weight)"
    if not 0 < candidates.label.sum() < len(candidates.label):
        return (
            "all test events carry the same label (sessionize.positive_from, "
            "sessionize.positive_actions)"
        )
    return None


def load_network(folder: Path, device: str) -> Network:
    """A trained network; torch is imported here, so that the command line stays light."""
    from hpgr.model.scoring import Scorer

    return Scorer.load(folder, device)


def score_candidates(
    cfg: Config,
    log: EventLog,
    candidates: protocols.Candidates,
    rankers: Mapping[str, Network],
) -> dict[str, np.ndarray]:
    """K1: probability of every candidate, by model, networks first."""
    scored = {
        name: ranking.score(
            network, log, candidates, max_history=cfg.model.max_history, title=f"candidates, {name}"
        )
        for name, network in rankers.items()
    }
    means = ranking.mean_models(log, candidates, prior_events=cfg.evaluate.prior_events)
    return scored | dict(reversed(means.items()))


def write_outputs(
    folder: Path,
    cfg: Config,
    tables: list[Tables],
    networks: list[str],
    cards: list[Example],
    notes: list[str],
    standing: rivals.Standing | None,
) -> None:
    """Write `metrics.json`, `plots/*.csv`, `figures/*.png` and `report.html` below `folder`."""
    from hpgr.evaluation import report

    write_json(
        folder / "metrics.json",
        {
            t.protocol: {
                model: {metric: round(value, 6) for metric, value in row.items()}
                for model, row in t.metrics.items()
            }
            | {"counts": t.counts}
            for t in tables
        },
    )
    (folder / "plots").mkdir()
    for name, frame in merged(tables).items():
        frame.round(6).to_csv(folder / "plots" / f"{name}.csv", index=False)
    report.write(
        folder,
        dataset=cfg.data.path.name,
        tables=tables,
        networks=networks,
        curves={
            stage: pd.read_csv(path / "curves.csv")
            for stage, path in TRAINING.items()
            if (path / "curves.csv").is_file()
        },
        endings=endings(),
        standing=standing,
        cards=cards,
        notes=notes,
    )


def query_table(queries: protocols.Queries, outcomes: dict[str, Outcome]) -> pd.DataFrame:
    """One row a query: user, target and request time, and the target's rank by every model."""
    columns: dict[str, Any] = {
        "user": queries.user.astype(np.int32),
        "target": queries.target.astype(np.int32),
        "request_time": queries.request_time,
    }
    columns |= {f"rank_{name}": o.ranks.astype(np.int32) for name, o in outcomes.items()}
    return pd.DataFrame(columns)


def candidate_table(
    candidates: protocols.Candidates, probabilities: dict[str, np.ndarray]
) -> pd.DataFrame:
    """One row a candidate of K1: user, item, request time, label, probability by every model."""
    columns: dict[str, Any] = {
        "user": candidates.candidate_user().astype(np.int32),
        "item": candidates.item.astype(np.int32),
        "request_time": np.repeat(candidates.request_time, np.diff(candidates.offsets)),
        "label": candidates.label,
    }
    columns |= {f"probability_{n}": p.astype(np.float32) for n, p in probabilities.items()}
    return pd.DataFrame(columns)


def results_table(tables: Tables) -> Table:
    """The headline table of one protocol for the terminal, the judged model first."""
    metrics = list(next(iter(tables.metrics.values())))
    gains = [m for m in metrics if m.startswith("ndcg")]
    wide = {*gains[1:], *(m for m in metrics if m.startswith(("coverage", "head_share")))}
    metrics = [m for m in metrics if m not in wide]  # 80 columns hold six numbers
    table = Table(title=f"{label(tables.protocol)}: {tables.counts['queries']:,} queries")
    table.add_column("model", no_wrap=True)
    for metric in metrics:
        table.add_column(metric_label(metric), justify="right")
    for model, row in tables.metrics.items():
        table.add_row(
            label(model),
            *(f"{row[m]:.4f}" if m in row else "–" for m in metrics),
            style="bold" if model == tables.main else None,
        )
    return table
