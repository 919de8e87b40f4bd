"""The evaluate stage: judge the trained network on test, beside every baseline, and report.

The only reader of the test split. Next item, leave-one-out (R1) where the split is such; next item,
temporal (R2), CTR, temporal (K1), where sessions are baskets, next basket, temporal (B1) and, of a
log with impressions, ranking inside an impression (I1) where it is global-time. Reads
`artifacts/sessions/`, `artifacts/finetune/` and the curves of `artifacts/pretrain/`. Writes
`artifacts/evaluation/`: `metrics.json`, `verdict.json` (on validation: the network, or a baseline
in its place), `rules.json` (by which a served answer is as judged), `like_weight.json` (how its
order was chosen, on validation), `queries.parquet`, `candidates.parquet` (K1), `baskets.parquet`
(B1), `impressions.parquet` (I1),
`mechanism.json` (of a network with anchors: what these do),
`plots/*.csv`, `figures/*.png`, `report.html`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console

from hpgr.config import Config
from hpgr.data.impressions import read_impressions
from hpgr.data.log import TEST, EventLog
from hpgr.data.repeats import rule as rule_of
from hpgr.evaluation import like_weight, mechanism, protocols, ranking, retrieval, rivals
from hpgr.evaluation.answer_tables import candidate_table, query_table
from hpgr.evaluation.blend import Blend
from hpgr.evaluation.examples import Names, examples, pick
from hpgr.evaluation.headline import protocol_label, terminal_table
from hpgr.evaluation.judged import Judged, load_judged, open_log
from hpgr.evaluation.metric_tables import WAYS, Tables, merged, ranking_tables, retrieval_tables
from hpgr.evaluation.model_protocols import Retriever
from hpgr.evaluation.next_basket import judge_baskets, tuned_on_baskets
from hpgr.evaluation.shown_lists import judge_lists, list_standing
from hpgr.evaluation.simple_rankers import SimpleRankers
from hpgr.metrics import RANKING_MONITORS, protocols_of
from hpgr.runtime import UserError, atomic_folder, read_json, write_json
from hpgr.terminal import cell
from hpgr.training.ending import Ending
from hpgr.workspace import HERE, Workspace

TRAINING = ("pretrain", "finetune")  # stages with curves
NO_LABELS = (
    "nothing learns to rank from a log with too few events of one label "
    "(sessionize.positive_from, sessionize.positive_actions)"
)


def evaluate(cfg: Config, workspace: Workspace = HERE) -> None:
    """Run the stage.

    Raises:
        UserError: an input is missing, or the split left nothing to test.
    """
    import torch

    from hpgr.evaluation import report  # matplotlib: the gate, which opens the log, draws nothing

    torch.set_float32_matmul_precision("highest")  # as in serving; training lowers its process's
    log = open_log(workspace)
    judged = load_judged(cfg, workspace)
    queries = protocols.next_item(log, TEST)
    if not len(queries):
        raise UserError(
            f"{workspace.sessions}: the test split holds no event with an earlier one of its user; "
            "expected at least one. Lower sessionize.min_user_events or raise "
            "sessionize.test_share."
        )
    reach = {"max_history": cfg.model.max_history}
    baselines, notes = retrieval.tuned_baselines(log, cfg.evaluate, **reach)
    models: dict[str, Retriever] = {judged.name: judged.network, **baselines}
    simple = SimpleRankers(log, cfg.evaluate)
    for_baskets, basket_notes = tuned_on_baskets(log, models, cfg.evaluate)
    shown = read_impressions(workspace.sessions)
    standing = stand(cfg, log, shown, judged, models, simple, for_baskets)
    choices = choose_like_weight(cfg, log, judged)
    choice = choices[log.meta.remove_history]
    tables, outcomes = judge_retrieval(cfg, log, queries, judged, models, choices, notes)
    candidates = protocols.labelled(log, TEST)
    probabilities: dict[str, np.ndarray] = {}
    if log.meta.split == "global-time":
        if why := no_ranking(log, candidates, judged):
            notes.append(f"{protocol_label('K1')} is left out: {why}.")
        else:
            title = f"candidates, {judged.name}"
            own = ranking.score(judged.network, log, candidates, title=title, **reach)
            probabilities = {judged.name: own, **simple.probabilities(candidates)}
            tables.append(
                ranking_tables("K1", log, candidates, probabilities, cfg.evaluate, main=judged.name)
            )
    baskets = judge_baskets(log, {**models, **for_baskets}, cfg.evaluate, main=judged.name, **reach)
    lists = judge_lists(
        log,
        shown,
        models,
        judged.network,
        cfg.evaluate,
        candidates=judged.candidates if judged.ranks else None,
        places=judged.places,
        **reach,
    )
    tables += baskets.tables + lists.tables
    anchors = mechanism.measure(
        log,
        judged.network,
        cfg.evaluate,
        split=TEST,
        ranks=judged.ranks,
        labels=judged.ranks_events,
        **reach,
    )
    notes += basket_notes + baskets.notes + lists.notes + simple.notes
    cards = examples(
        log,
        pick(log, queries, cfg.evaluate),
        judged.network,
        Names.read(workspace.sessions, log.meta.num_items),
        cfg.evaluate,
        ranks=judged.ranks,
        blend=Blend(choice.like_weight, judged.temperature),
        **reach,
    )
    endings = training_endings(workspace)
    rules = {
        "retrieve": cfg.evaluate.retrieve,
        "remove_history": log.meta.remove_history,
        "like_weight": choice.like_weight,
    }
    with atomic_folder(workspace.evaluation) as folder:
        write_json(folder / "rules.json", rules)
        write_json(folder / "like_weight.json", choice.record())
        if standing is not None:
            write_json(folder / "verdict.json", standing.record())
        if anchors is not None:
            write_json(folder / "mechanism.json", anchors.record())
        write_numbers(folder, tables)
        report.write(
            folder,
            dataset=cfg.data.path.name,
            tables=tables,
            curves=training_curves(workspace),
            endings=endings,
            standing=standing,
            mechanism=anchors,
            cards=cards,
            notes=notes,
        )
        baskets.write(folder)
        lists.write(folder)
        query_table(queries, outcomes).to_parquet(folder / "queries.parquet", index=False)
        if probabilities:
            candidate_table(candidates, probabilities).to_parquet(
                folder / "candidates.parquet", index=False
            )
    console = Console()
    for table in tables:
        title = f"{protocol_label(table.protocol)}: {table.counts['queries']:,} queries"
        console.print(terminal_table(title, table.metrics))
    if anchors is not None:
        console.print(cell(anchors.sentence))
    for note in notes:
        console.print(cell(note), style="dim")
    for sentences in endings.values():
        for number, sentence in enumerate(sentences):
            console.print(cell(sentence), style="yellow" if number else "dim")
    if standing is not None:
        style = "bold red" if standing.serve_instead else "bold"
        console.print(cell(standing.sentence), style=style)


def judge_retrieval(
    cfg: Config,
    log: EventLog,
    queries: protocols.Queries,
    judged: Judged,
    models: Mapping[str, Retriever],
    choices: Mapping[bool, like_weight.Choice],
    notes: list[str],
) -> tuple[list[Tables], dict[str, retrieval.Retrieved]]:
    """R1 or R2 for all models, by each of the rules for seen items that have a choice of weight.

    Returns:
        A table for each rule, the log's own first, and the answers by that one; `notes` get a
        sentence for each choice.
    """
    protocol = "R1" if log.meta.split == "leave-one-out" else "R2"
    blends = {r: Blend(c.like_weight, judged.temperature) for r, c in choices.items()}
    then_rank = (judged.network, blends) if protocol == "R1" and judged.ranks else None
    rule, rules = log.meta.remove_history, list(choices)
    by_rule = retrieval.run(
        log,
        queries,
        models,
        cfg.evaluate,
        max_history=cfg.model.max_history,
        title=f"{protocol} on test",
        then_rank=then_rank,
        rules=rules,
    )
    tables = [
        retrieval_tables(
            protocol if found == rule else f"{protocol}_{WAYS[found]}",
            log,
            queries,
            outcomes,
            cfg.evaluate,
            main=judged.name,
        )
        for found, outcomes in zip(rules, by_rule, strict=True)
    ]
    counts = tables[0].counts
    notes.append(
        f"Seen before: {rule_of(log.meta, cfg.evaluate)}; {counts['repeated_targets']:,} of "
        f"{counts['queries']:,} hidden items are repeats."
    )
    if len(rules) > 1:
        tables[0] = replace(tables[0], remark=notes[-1])
    if protocol == "R1" and not log.meta.can_rank:
        notes.append(f"Rows “then rank” are left out: {NO_LABELS}.")
    if then_rank is not None:
        notes.append(
            f"Rows “then rank”: the best {cfg.evaluate.retrieve} items by dot product, in the "
            "order in which the model is served."
        )
    for found, choice in choices.items():
        other = f"{protocol_label(f'{protocol}_{WAYS[found]}')}: " if found != rule else ""
        notes.append(other + choice.sentence)
    return tables, by_rule[0]


def stand(
    cfg: Config,
    log: EventLog,
    shown: pa.Table,
    judged: Judged,
    models: Mapping[str, Retriever],
    simple: SimpleRankers,
    for_baskets: Mapping[str, Retriever],
) -> rivals.Standing | None:
    """The network among its rivals on validation.

    By baskets where there are models `for_baskets`, else by the metric that chose its weights.
    """
    reach = {"max_history": cfg.model.max_history}
    if for_baskets:
        found = rivals.basket_standing(log, {**models, **for_baskets}, cfg.evaluate, **reach)
        if found is not None:
            return found
    if judged.monitor in RANKING_MONITORS and judged.ranks:
        if judged.ranks_events:
            found = rivals.ranking_standing(
                log, judged.name, judged.network, simple, cfg.evaluate, **reach
            )
        else:
            found = list_standing(log, shown, models, judged.network, cfg.evaluate, **reach)
        if found is not None:
            return found
    metric = "hr" if judged.monitor.startswith("validation_hr") else "ndcg"
    return rivals.retrieval_standing(log, models, cfg.evaluate, metric=metric, **reach)


def choose_like_weight(
    cfg: Config, log: EventLog, judged: Judged
) -> dict[bool, like_weight.Choice]:
    """The weight of the served order, by the metric that the gate decides by.

    By the log's own rule for items seen before, and then, where the log repeats, by the other one.
    Where that is AUC or of baskets, which say nothing about the served order, by NDCG at the first
    cutoff. Retrieval's own order where the network does not rank.
    """
    rule = log.meta.remove_history
    repeats = log.meta.repeat_share > cfg.evaluate.max_repeat_share
    rules = [rule, not rule] if repeats else [rule]
    metric = cfg.gate.metric
    if "R1" not in protocols_of(metric):
        metric = f"ndcg@{cfg.evaluate.cutoffs[0]}"
    if judged.temperature is None:
        return dict.fromkeys(rules, like_weight.no_choice(metric))
    return like_weight.choose(
        log,
        judged.network,
        cfg.evaluate,
        temperature=judged.temperature,
        max_history=cfg.model.max_history,
        metric=metric,
        rules=rules,
    )


def no_ranking(log: EventLog, candidates: protocols.LabelledQueries, judged: Judged) -> str | None:
    """The reason that K1 cannot be judged, or None."""
    if not judged.ranks and not log.meta.can_rank:
        return NO_LABELS
    if not judged.ranks:
        return f"{judged.name} was trained without a ranking loss (finetune.ranking_weight)"
    if not judged.ranks_events:
        return (
            f"pCTR of {judged.name} was trained on shown lists (finetune.candidates), and the "
            "log's own labels are another question"
        )
    if len(np.unique(candidates.label)) < 2:
        return (
            "all test events carry the same label (sessionize.positive_from, "
            "sessionize.positive_actions)"
        )
    return None


def training_endings(workspace: Workspace) -> dict[str, list[str]]:
    """The ending of each training stage, in sentences, by stage."""
    found = {}
    for stage in TRAINING:
        path = workspace.output(stage) / "config.json"
        trained = read_json(path).get("training") if path.is_file() else None
        if trained is not None:
            found[stage] = Ending(**trained).sentences(stage)
    return found


def training_curves(workspace: Workspace) -> dict[str, pd.DataFrame]:
    """The curves of each training stage that wrote some."""
    paths = {stage: workspace.output(stage) / "curves.csv" for stage in TRAINING}
    return {stage: pd.read_csv(path) for stage, path in paths.items() if path.is_file()}


def write_numbers(folder: Path, tables: list[Tables]) -> None:
    """Write `metrics.json` and `plots/*.csv` below `folder`."""
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
