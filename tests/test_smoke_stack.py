"""Each part of the stack in use: what `pip check` and imports do not tell of a set of versions.

Every test uses the feature that broke in some combination of versions; docs/decisions.md says
which. Own folders and stores, no network but the loopback.
"""

import os
import subprocess
import sys

import pytest

from hpgr.runtime import TELEMETRY_OFF


def python(code, cwd, **environment):
    """Run code in a process of its own, so that no setting of one part reaches another."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **TELEMETRY_OFF, **environment},
    )


PREFECT = """
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client

@task
def add(x):
    return x + 1

@flow
def smoke():
    create_markdown_artifact(key="smoke", markdown="| a |")
    return add(add(1))

if __name__ == "__main__":
    assert smoke() == 3
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs()
        assert run.state.is_completed()
        # Null body fields: answered with 422 by some versions of FastAPI.
        body = {"limit": None, "sort": None}
        client.request("POST", "/deployments/filter", json=body).raise_for_status()
    print("prefect works")
"""


def test_prefect_runs_a_flow_on_its_temporary_server(tmp_path):
    (tmp_path / "smoke_flow.py").write_text(PREFECT)
    done = python(
        "import runpy; runpy.run_path('smoke_flow.py', run_name='__main__')",
        tmp_path,
        PREFECT_HOME=str(tmp_path / "prefect"),
        PREFECT_API_URL="",
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
    )
    assert "prefect works" in done.stdout, done.stderr


def test_dvc_runs_skips_and_restores(tmp_path):
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  a:\n    cmd: cp in out\n    deps: [in]\n    outs: [out]\n"
    )
    (tmp_path / "in").write_text("1")

    def dvc(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **TELEMETRY_OFF},
        ).stdout

    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)
    dvc("init", "-q")
    assert "Running stage 'a'" in dvc("repro")
    assert "didn't change, skipping" in dvc("repro")
    (tmp_path / "in").write_text("2")
    dvc("repro")
    (tmp_path / "in").write_text("1")
    assert "is cached - skipping run" in dvc("repro")
    assert (tmp_path / "out").read_text() == "1"


def test_ibis_on_duckdb_makes_lists_and_drops_tables():
    import ibis
    import pandas as pd

    connection = ibis.duckdb.connect()
    table = connection.create_table("t", pd.DataFrame({"a": [1, 2]}), overwrite=True)
    assert table.a.sum().to_pyarrow().as_py() == 3
    assert connection.list_tables() == ["t"]
    connection.create_view("v", table)
    connection.drop_view("v")
    assert connection.list_tables() == ["t"]


def test_great_expectations_names_the_bad_rows():
    import great_expectations as gx
    import pandas as pd
    from great_expectations.expectations import ExpectColumnValuesToBeBetween

    context = gx.get_context(mode="ephemeral")
    source = context.data_sources.add_pandas("source")
    batch = source.add_dataframe_asset("asset").add_batch_definition_whole_dataframe("whole")
    between = ExpectColumnValuesToBeBetween(column="a", min_value=0, max_value=1)
    suite = context.suites.add(gx.ExpectationSuite(name="suite", expectations=[between]))
    result = batch.get_batch({"dataframe": pd.DataFrame({"a": [0, 5]})}).validate(
        suite, result_format="COMPLETE"
    )
    assert not result.success
    assert result.results[0].result["unexpected_index_list"] == [1]


MLFLOW_MODEL = """
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Double(PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["a"] * 2

set_model(Double())
"""

MLFLOW = """
import mlflow, pandas as pd
from pathlib import Path
mlflow.set_tracking_uri(f"sqlite:///{Path('store.db').resolve()}")
with mlflow.start_run():
    mlflow.pyfunc.log_model(
        name="m", python_model="model.py", pip_requirements=["mlflow"], registered_model_name="m"
    )
client = mlflow.MlflowClient()
client.set_registered_model_alias("m", "champion", "1")
model = mlflow.pyfunc.load_model("models:/m@champion")
assert list(model.predict(pd.DataFrame({"a": [2]}))) == [4]
print("mlflow works")
"""


def test_mlflow_registers_and_serves_a_model_from_code(tmp_path):
    (tmp_path / "model.py").write_text(MLFLOW_MODEL)
    done = python(MLFLOW, tmp_path, MLFLOW_TRACKING_URI="")
    assert "mlflow works" in done.stdout, done.stderr


def test_torch_trains_and_safetensors_brings_the_weights_back(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    x = torch.eye(2)
    first = loss = (layer(x) ** 2).mean()
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(x) ** 2).mean()
        loss.backward()
        optimizer.step()
    assert loss < first / 2
    save_file(layer.state_dict(), tmp_path / "w.safetensors")
    loaded = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in layer.state_dict().items())


def test_torch_is_the_pinned_version():
    import torch

    assert torch.__version__.split("+")[0] == "2.13.0"


@pytest.mark.gpu
def test_torch_computes_on_the_gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
    torch.testing.assert_close((x @ x.T).cpu(), x.cpu() @ x.cpu().T, rtol=2e-2, atol=1e-1)
