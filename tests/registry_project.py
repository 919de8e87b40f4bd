"""A project with a small untrained network in place of a trained one, ready to be registered."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from evaluation_log import random_log, write_arrays
from params_text import params_text
from safetensors.torch import save_file

from hpgr.config import load_config
from hpgr.data.log import FIRST_ITEM, TRAIN
from hpgr.data.trained_events import remember
from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import build
from hpgr.registry.resources import COLUMNS
from hpgr.runtime import write_json
from hpgr.workspace import HERE

EVENT_COLUMNS = ("item", "timestamp", "action", "label", "session", "split")
ROOT = Path(__file__).parents[1]
METRICS = {"R1": {"hpgr": {"hr@10": 0.5, "mrr": 0.25}, "counts": {"queries": 40}}}


def write_network(folder, log, cfg, *, seed=0):
    """Outputs of the finetune stage, untrained."""
    torch.manual_seed(seed)
    catalogue = Catalogue.of(log)
    model = build(cfg.model, catalogue, ranking=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors"
    )
    sizes = {
        k: v for k, v in asdict(log.meta).items() if k in ("num_items", "num_actions", "gap_s")
    }
    write_json(
        folder / "config.json",
        {
            "ranking": True,
            "model": cfg.model.model_dump(),
            "finetune": {"temperature": cfg.finetune.temperature},
            "catalogue": {**sizes, "num_categories": log.meta.num_categories},
        },
    )
    write_json(folder / "metrics.json", {"best_epoch": 1, "device": "cpu"})
    (folder / "curves.csv").write_text("epoch,step,loss,note\n1,10,2.5,\n2,20,1.5,x\n")
    rows = ["1000.5,50,100,0", "1001,75,120,0"]
    (folder / "resources.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")


def write_tables(folder, log):
    """The sessionize stage's tables that serving and registration read."""
    ids = range(FIRST_ITEM, log.meta.num_items)
    titles = [f"Title {i}" for i in ids]
    items = {"item": pa.array(ids, pa.int32()), "item_id": [f"id{i}" for i in ids], "title": titles}
    counts = np.bincount(log.item[log.split == TRAIN], minlength=log.meta.num_items)
    items["train_events"] = pa.array(counts[FIRST_ITEM:])
    pq.write_table(pa.table(items), folder / "items.parquet")
    actions = {"action": pa.array([1, 2], pa.int16()), "name": ["1", "5"]}
    pq.write_table(pa.table(actions), folder / "actions.parquet")
    categories = {"category": pa.array([], pa.int32()), "name": pa.array([], pa.string())}
    pq.write_table(pa.table(categories), folder / "categories.parquet")
    users = {"user": pa.array(range(log.meta.num_users), pa.int32())}
    users["user_id"] = [f"user{u}" for u in range(log.meta.num_users)]
    pq.write_table(pa.table(users), folder / "users.parquet")
    events = {name: np.asarray(getattr(log, name)) for name in EVENT_COLUMNS}
    events["user"] = log.user_of_event().astype(np.int32)
    events["position"] = np.arange(log.meta.num_events) - log.user_offsets[events["user"]]
    pq.write_table(pa.table(events), folder / "events.parquet")
    remember(folder, HERE.base)


def make_project(folder):
    """A project folder with the artifacts of every stage, and nothing registered."""
    (folder / "params.yaml").write_text(params_text("smoke"))
    shutil.copy(ROOT / "requirements.lock", folder)
    (folder / "mlflow").mkdir()
    shutil.copy(ROOT / "mlflow" / "model_card.md.j2", folder / "mlflow")
    (folder / "data.dvc").write_text("outs:\n- md5: abc.dir\n  hash: md5\n  path: data\n")
    lock = {"deps": [{"path": "data/x", "hash": "md5", "md5": "d1"}], "outs": []}
    (folder / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"validate": lock}}))
    log = random_log(0)
    sessions = folder / "artifacts" / "sessions"
    write_arrays(log, sessions / "arrays")
    write_tables(sessions, log)
    write_network(folder / "artifacts" / "finetune", log, load_config(folder / "params.yaml"))
    write_json(folder / "artifacts" / "evaluation" / "metrics.json", METRICS)
    drops = {"random": {"ndcg@10": {"value": 0.125}}}
    write_json(folder / "artifacts" / "evaluation" / "mechanism.json", {"drops": drops})
    (folder / "artifacts" / "evaluation" / "report.html").write_text("<html>report</html>")
    return folder
