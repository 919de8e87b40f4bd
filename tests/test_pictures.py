"""The pictures of docs/performance.md show what the committed results say."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHOWN = {
    "training": ("hstu_targets_per_s", "hpgr_targets_per_s", "rectools_fast_targets_per_s"),
    "serving": ("p99_ms_8", "p99_ms_64", "rps_8", "rps_64", "network_ms_of_1"),
    "scoring": ("users_per_s_ml1m", "share_of_gemm_limit_4k", "share_of_gemm_limit_1m"),
    "data": ("validate_s_20m", "sessionize_s_20m", "duckdb_read_s", "duckdb_cut_s"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_picture_shows_the_results_that_are_committed(name):
    """Bars carry their values as text, to three digits."""
    figures = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())["figures"]
    drawn = (ROOT / f"docs/images/speed-{name}.svg").read_text()
    labels = re.findall(r">([\d,.]+)</text>", drawn)
    numbers = [float(label.replace(",", "")) for label in labels]
    for key in SHOWN[name]:
        assert any(n == pytest.approx(figures[key], rel=0.005) for n in numbers), key
