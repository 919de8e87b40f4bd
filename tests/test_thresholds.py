"""Monitoring: thresholds on made-up figures, history of a real registry, the page, the event."""

import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import mlflow
import pytest
import yaml
from evaluation_log import random_log
from prefect.client.orchestration import get_client
from prefect.events import AutomationCore, Resource
from prefect.events.filters import EventFilter, EventNameFilter
from registry_project import ROOT, make_project, write_network
from typer.testing import CliRunner

from flows import monitor as flow_module
from hpgr.cli import app
from hpgr.config import load_config
from hpgr.monitoring.champions import History, Reign, Score, Version, history
from hpgr.monitoring.thresholds import judge, metric_fall, monitor, volume_change
from hpgr.registry.moves import move
from hpgr.registry.register import register
from hpgr.runtime import write_json
from hpgr.workspace import HERE

START = datetime(2026, 1, 1, tzinfo=UTC)
BATCH = {
    "batch": "0123456789abcdef", "source": "incoming/day-1",
    "received_at": "2026-01-02T03:04:05+00:00",
    "accepted": True, "reasons": [], "rows": 12_000, "quarantined_share": 0.001,
    "first_timestamp": 1_767_225_600, "last_timestamp": 1_767_312_000, "events_per_day": 12_000.0,
    "item_drift": 0.1, "action_drift": 0.01, "unknown_items": 0.05,
}  # fmt: skip


def version(number, metric, *, protocol="R1", day=0):
    return Version(number, START + timedelta(days=day), protocol, metric, None)


def past(metrics, reigns, **changes):
    """Versions 1, 2, ... with these metrics, made a day apart; who reigned, in this order."""
    versions = {n: version(n, m, day=n) for n, m in enumerate(metrics, 1)}
    versions |= {n: replace(versions[n], **fields) for n, fields in changes.get("but", {}).items()}
    order = tuple(Reign(v, START + timedelta(days=n), "me", "why") for n, v in enumerate(reigns))
    scores = tuple(
        Score(v, START + timedelta(days=20 + n), protocol, metric)
        for n, (v, metric, protocol) in enumerate(changes.get("again", []))
    )
    return History(versions, order, reigns[-1] if reigns else None, scores)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two registered versions: the first was champion, the second took its place."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        cfg = load_config()
        write_json(folder / "artifacts/evaluation/metrics.json", {"R1": {"hpgr": {"ndcg@10": 0.4}}})
        register(cfg)
        write_network(folder / "artifacts/finetune", random_log(0), cfg, seed=1)
        rows = {"R1": {"hpgr": {"ndcg@10": 0.3}}, "B1": {"hpgr": {"ndcg@10": 0.2}}}
        write_json(folder / "artifacts/evaluation/metrics.json", rows)
        register(cfg)
        move(cfg, 2, why="a drill", force=True)
    yield folder
    mlflow.set_tracking_uri(None)


@pytest.fixture
def cfg(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield load_config()
    (HERE.accepted / "batches.json").unlink(missing_ok=True)
    (HERE.validated / "summary.json").unlink(missing_ok=True)


def states(cfg, *, batches=(), log=None, known=None, now=START):
    found = judge(cfg, batches, log, known or past([], []), now)
    return {threshold.name: threshold.state for threshold in found}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("max_item_drift", "item_drift"),
        ("max_action_drift", "action_drift"),
        ("max_unknown_items", "unknown_items"),
        ("max_quarantined", "quarantined_share"),
    ],
)
def test_the_newest_batch_decides_and_the_limit_itself_is_kept(cfg, name, key):
    limit = getattr(cfg.monitor, name)
    at, beyond = {**BATCH, key: limit}, {**BATCH, key: limit + 1e-9}
    assert states(cfg, batches=[beyond, at])[name] == "ok"
    assert states(cfg, batches=[at, beyond])[name] == "breached"
    assert states(cfg, batches=[beyond, {**BATCH, key: None}])[name] == "not measured"


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([], None),
        ([BATCH], None),
        ([{**BATCH, "events_per_day_before": 48_000.0}], 4.0),
        ([{**BATCH, "events_per_day_before": 4_000.0}], 3.0),
        ([{**BATCH, "rows": 6_000}, BATCH], 2.0),
        ([BATCH, {**BATCH, "rows": 6_000, "events_per_day_before": 18_000.0}], 2.0),
        ([{**BATCH, "rows": 6_000, "accepted": False}, BATCH], None),  # a refused one is no measure
        ([BATCH, {**BATCH, "rows": 0}], None),
    ],
)
def test_volume_changes_either_way_by_rate_or_rows(batches, expected):
    assert volume_change(batches) == (None if expected is None else pytest.approx(expected))


def test_without_a_batch_the_logs_quarantine_counts(cfg):
    found = states(cfg, log={"quarantined_share": 1.0})
    assert found["max_quarantined"] == "breached"
    assert found["max_item_drift"] == "not measured"


def test_age_counts_from_the_champions_making(cfg):
    known, limit = past([0.4, 0.4], [1]), timedelta(days=cfg.monitor.max_age_days)
    made = known.versions[1].made
    assert states(cfg, known=known, now=made + limit)["max_age_days"] == "ok"
    late = made + limit + timedelta(seconds=1)
    assert states(cfg, known=known, now=late)["max_age_days"] == "breached"


def test_an_empty_registry_and_no_data_measure_nothing(cfg):
    assert set(states(cfg).values()) == {"not measured"}


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (past([0.4, 0.3], [1, 2]), 0.25),
        (past([0.4, 0.5], [1, 2]), 0.0),
        (past([0.4, 0.3], [1, 2, 1]), 0.0),  # rolled back to the better one
        (past([0.4, 0.6, 0.3], [1, 3]), 0.25),  # version 2 never was champion
        (past([0.4, 0.3], [2]), None),  # no champion before
        (past([0.4, None], [1, 2]), None),
        (past([0.4, 0.3], [1, 2], but={1: {"protocol": "R2"}}), None),  # other queries
        (past([0.4], [1, 7]), None),  # a version that is no longer registered
        (past([0.3, 0.4], [1, 2, 1], but={2: {"rolled_back": True}}), None),  # 2 is no measure
        (past([0.3, 0.4, 0.5], [1, 2, 1, 3, 1]), 0.4),
        (past([0.4], [1], again=[(1, 0.3, "R1")]), 0.25),  # the champion itself grew old
        (past([0.4], [1], again=[(1, 0.3, "R1"), (1, 0.4, "R1")]), 0.0),  # the last one counts
        (past([0.5, 0.4], [1, 2], again=[(2, 0.3, "R1")]), 0.4),
        (past([0.4], [1], again=[(1, 0.3, "R2")]), None),  # other queries
        (past([0.4, 0.4], [1, 2], again=[(1, 0.1, "R1")]), 0.0),  # of an earlier champion
    ],
)
def test_the_fall_is_against_the_best_champion_before(known, expected):
    assert metric_fall(known) == (None if expected is None else pytest.approx(expected))


def test_the_history_is_the_registrys(cfg):
    found = history(cfg)
    assert found.champion == 2
    assert [reign.version for reign in found.reigns] == [1, 2]
    assert found.reigns[1].why == "a drill"
    figures = {number: (v.protocol, v.metric) for number, v in found.versions.items()}
    assert figures == {1: ("R1", 0.4), 2: ("R1", 0.3)}


def test_a_metric_of_baskets_is_read_from_their_protocol(cfg):
    gate = cfg.gate.model_copy(update={"metric": "basket.ndcg@10"})
    found = history(cfg.model_copy(update={"gate": gate})).versions
    figures = {number: (v.protocol, v.metric) for number, v in found.items()}
    assert figures == {1: (None, None), 2: ("B1", 0.2)}


def test_without_recorded_moves_the_champion_reigns_since_it_was_made(cfg, monkeypatch):
    monkeypatch.setattr("hpgr.monitoring.champions._moves", lambda *_: iter(()))
    found = history(cfg)
    assert [(r.version, r.since) for r in found.reigns] == [(2, found.versions[2].made)]


def test_the_page_stands_alone_and_says_what_is_breached(cfg):
    refused = {**BATCH, "accepted": False, "reasons": ["<too> much"], "item_drift": 0.9}
    write_json((HERE.accepted / "batches.json"), [BATCH, refused])
    found = monitor(cfg)
    assert [t.name for t in found.breaches] == ["max_metric_fall", "max_item_drift"]
    page = found.report.read_text()
    assert "2 of 7 thresholds breached" in page
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"https?://|<script|<link|src=\"(?!data:)", page)
    assert "&lt;too&gt; much" in page


def test_the_page_needs_no_data_and_no_champion(cfg, project, tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    found = monitor(load_config())
    assert (found.champion, found.breaches) == (None, ())
    assert "There is no champion yet." in found.report.read_text()


def test_the_command_tells_breach_and_fix_and_ends_well(cfg):
    done = CliRunner().invoke(app, ["monitor"])
    assert done.exit_code == 0
    assert "monitor.max_metric_fall is breached" in done.output
    assert "hpgr promote --roll-back" in done.output
    assert "0.250, limit 0.050" in done.output


def received(name):
    """Events of this name that the server holds; asked until one is there or a minute is over."""
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            wanted = EventFilter(event=EventNameFilter(name=[name]))  # of events until now
            if events := client.read_events(wanted, limit=50).events:
                return events
            time.sleep(0.2)
    return []


def test_a_breach_reaches_the_server_as_an_event(cfg, prefect_server):
    assert flow_module.monitor() == ["max_metric_fall"]
    (event,) = received(flow_module.BREACHED)
    assert event.resource.id == "hpgr.model.hpgr"
    assert event.payload["threshold"] == "monitor.max_metric_fall"
    assert event.payload["value"] == pytest.approx(0.25)
    assert event.payload["champion"] == 2
    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts()}
    assert {"monitoring", "monitoring-page"} <= keys


def test_the_documented_automation_is_one_that_prefect_reads_and_it_matches():
    text = (ROOT / "docs/monitoring.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    automation = AutomationCore.model_validate(yaml.safe_load(example))
    assert automation.trigger.expect == {flow_module.BREACHED}
    resource = Resource.model_validate({"prefect.resource.id": "hpgr.model.hpgr"})
    assert automation.trigger.match.matches(resource)
