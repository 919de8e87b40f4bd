"""benchmarks/stage_one.py: it reads the vectors of both stages as the networks do."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import parameters

from benchmarks import stage_one
from hpgr.data.log import EventLog
from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import build, network_class
from hpgr.model.scoring import Scorer
from hpgr.training.item_probe import MRR, RECALL, SessionProbe
from hpgr.workspace import Workspace


@pytest.fixture
def workspace(registered_project, tmp_path):
    """A workspace with the weights of both stages."""
    shutil.copytree(registered_project / "artifacts", tmp_path / "artifacts")
    found = Workspace(tmp_path)
    weights = load_file(found.finetuned / "model.safetensors")
    inherited = {k.removeprefix("trunk."): v for k, v in weights.items() if k.startswith("trunk.")}
    found.pretrained.mkdir()
    save_file(inherited, found.pretrained / "model.safetensors")
    return found


def test_a_workspace_is_measured_with_the_vectors_of_its_networks(workspace):
    network = Scorer.load(workspace.finetuned).model
    expected = network.trunk.items.table()[: network.trunk.items.num_items]
    vectors = stage_one.item_vectors(workspace.finetuned / "model.safetensors")
    assert torch.allclose(vectors, expected, atol=1e-6)
    figures, _ = stage_one.measure(workspace)
    found = SessionProbe(EventLog.open(workspace.arrays), seed=0)(expected)
    assert figures["stage 1"] == figures["stage 2"] == pytest.approx(found, abs=1e-4)
    names = {"stage 1", "stage 2", "ppmi_svd", "popularity", "like_popularity", "random"}
    assert figures.keys() == names
    assert all(0 <= row[key] <= 1 for row in figures.values() for key in (RECALL, MRR))


def test_neighbours_are_the_nearest_known_items_in_order():
    angle = torch.tensor([0.0, 0.5, 0.9, 3.0, 3.3, 3.4, 1.2])
    vectors = torch.stack([angle.cos(), angle.sin()], dim=1)
    nearest = stage_one.neighbours(vectors, np.array([0, 4, 4, 4, 4, 4, 4]))
    centred = vectors - vectors[1:].mean(0)
    for item in range(1, 7):
        likeness = torch.cosine_similarity(centred[item], centred, dim=1).tolist()
        others = sorted({*range(1, 7)} - {item}, key=lambda other: -likeness[other])
        assert nearest[item].tolist() == others[: stage_one.NEIGHBOURS]


def test_titles_name_the_neighbours(workspace):
    titles = pq.read_table(workspace.sessions / "items.parquet")["title"].to_pylist()
    _, named = stage_one.measure(workspace, titles=(titles[0],))
    assert named.keys() == {"stage 1", "stage 2", "ppmi_svd"}
    assert all(set(rows[titles[0]]) <= set(titles) for rows in named.values())


def test_stage_two_inherits_directions_at_the_length_of_a_fresh_table(small_log):
    cfg, catalogue = parameters(), Catalogue.of(small_log)
    torch.manual_seed(0)
    one = network_class("hpgr").stage_one(cfg.model, catalogue, blocks=1)
    one.start_items(torch.randn(small_log.meta.num_items, cfg.model.dim))
    given = one.trunk.items.table().detach()
    for fresh in (True, False):
        two = build(cfg.model, catalogue, ranking=False)
        length = two.trunk.items.table().detach().norm(dim=1).mean()
        two.inherit(one.trunk.state_dict(), fresh=fresh)
        found = two.trunk.items.table().detach()
        expected = length if fresh else given.norm(dim=1).mean()
        torch.testing.assert_close(found.norm(dim=1).mean(), expected)
        torch.testing.assert_close(found / expected, given / given.norm(dim=1).mean())


def test_stage_two_starts_with_a_tenth_of_what_sessions_add(small_log):
    cfg, catalogue = parameters(), Catalogue.of(small_log)
    torch.manual_seed(0)
    one = network_class("hpgr").stage_one(cfg.model, catalogue, blocks=1)
    for fresh, share in ((True, 0.1), (False, 1.0)):
        two = build(cfg.model, catalogue, ranking=False)
        two.inherit(one.trunk.state_dict(), fresh=fresh)
        given, found = one.trunk.sessions.state_dict(), two.trunk.sessions.state_dict()
        for name, weight in given.items():
            added = name.startswith(("from_intra", "from_inter"))
            torch.testing.assert_close(found[name], weight * (share if added else 1.0))
