"""Each part of the stack in use: what `pip check` and imports do not tell of a set of versions.

Every test uses the feature that broke in some combination of versions; docs/decisions.md says
which. Prefect, DVC and MLflow are in use in test_pipeline.py.
"""

import pytest


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
