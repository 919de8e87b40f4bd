"""Training steps of RecTools' HSTU, one for each line on stdin, for `training.py --rectools`.

    peer/bin/python benchmarks/rectools_training.py EVENTS.npz SIZES

Run by benchmarks/training.py in an environment of RecTools' own; benchmarks/sasrec_reference.py
says how to make it. Model, data preparation and optimizer are RecTools', but its loss is computed
on the positions that hold a target alone. Stock RecTools also scores the whole catalogue at every
padded position, about half of all on MovieLens, and then drops those scores: the value is the
same, which is checked before the first step.

Reads: EVENTS.npz with user, item and timestamp of each training event; SIZES, a JSON object. Writes
to stdout the line "ready", then for each line on stdin a JSON object: targets of the step and CPU
seconds that it took.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rectools.dataset import Dataset
from rectools.models import HSTUModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from torch.nn import functional

USERS = 128  # of a batch; RecTools' default
TOLERANCE = 1e-4  # of the loss, against stock RecTools'


class UnpaddedLoss(TransformerLightningModule):
    """RecTools' training module with full softmax on unpadded positions alone."""

    def unpadded_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean cross-entropy of the targets of a batch."""
        network = self.torch_model
        table_VD = network.item_model.get_all_embeddings()
        states_BLD = network.encode_sessions(batch, table_VD)
        real_BL = batch["y"] != 0
        logits_TV = network.similarity_module(states_BLD[real_BL], table_VD) / self.logits_t
        return functional.cross_entropy(logits_TV, batch["y"][real_BL])


def make_model(events: Path, sizes: dict[str, Any]) -> HSTUModel:
    """RecTools' HSTU for the events, not trained."""
    found = np.load(events)
    table = pd.DataFrame({"user_id": found["user"], "item_id": found["item"], "weight": 1.0})
    table["datetime"] = pd.to_datetime(found["timestamp"], unit="s")
    model = HSTUModel(
        n_blocks=sizes["num_blocks"],
        n_heads=sizes["num_heads"],
        n_factors=sizes["dim"],
        session_max_len=sizes["max_history"],
        dropout_rate=sizes["dropout"],
        loss="softmax",
        lr=sizes["learning_rate"],
        batch_size=USERS,
        lightning_module_type=UnpaddedLoss,
        lightning_module_kwargs={"logits_t": sizes["temperature"]},
    )
    model._build_model_from_dataset(Dataset.construct(table))
    model.lightning_model.on_train_start()  # RecTools' own initial weights
    return model


def check_loss(model: HSTUModel) -> None:
    """Refuse a loss that differs from stock RecTools'."""
    training = model.lightning_model.eval()
    batch = {k: v[:16] for k, v in next(iter(model.data_preparator.get_dataloader_train())).items()}
    with torch.no_grad():
        stock = training.loss_calculator(
            training.get_batch_logits(batch), batch["y"], batch["yw"]
        ).item()
        ours = training.unpadded_loss(batch).item()
    if not abs(ours - stock) < TOLERANCE:
        raise SystemExit(f"loss on unpadded positions is {ours}, RecTools computes {stock}")


def stepper(model: HSTUModel) -> Callable[[], int]:
    """A function that trains one step, its batch included, and returns its number of targets."""
    training, loader = model.lightning_model.train(), model.data_preparator.get_dataloader_train()
    optimizer = training.configure_optimizers()
    batches = itertools.chain.from_iterable(loader for _ in itertools.count())

    def step() -> int:
        batch = next(batches)
        optimizer.zero_grad()
        training.unpadded_loss(batch).backward()
        optimizer.step()
        return int((batch["y"] != 0).sum())

    return step


def main() -> None:
    events, sizes = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answers
        model = make_model(events, sizes)
        check_loss(model)
        step = stepper(model)
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.process_time()
        targets = step()
        answer = {"targets": targets, "seconds": time.process_time() - began}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
