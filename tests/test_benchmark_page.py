"""The page of all results: its numbers are those of the files, and what files say is text."""

import json
import shutil
from html.parser import HTMLParser
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ablations, figures, goals, model_figures, page, sensitivity, table
from benchmarks.matrix import Cell, Matrix

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
HOSTILE = '<img src="x" onerror="alert(1)">&'


class Reader(HTMLParser):
    """Tags with their attributes, rows of cells, and the text of pictures."""

    def __init__(self):
        super().__init__()
        self.tags, self.rows, self.labels, self.place = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.place = tag if tag in ("text", "td") else self.place
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.place = "" if tag in ("text", "td") else self.place

    def handle_data(self, data):
        if self.place == "td":
            self.rows[-1][-1] += data
        elif self.place == "text":
            self.labels.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page of a copy of the results, to which a hostile file is added, and the files."""
    folder = tmp_path_factory.mktemp("results")
    shutil.copytree(RESULTS, folder, dirs_exist_ok=True)
    path = folder / "R2-ml-1m-mtgr-0.json"
    found = json.loads(path.read_text())
    found["machine"] = HOSTILE
    found["same_queries"][HOSTILE] = found["metrics"]
    path.write_text(json.dumps(found))
    with pytest.MonkeyPatch.context() as patch:
        for module in (table, ablations, figures, goals, page):
            patch.setattr(module, "RESULTS", folder)
        for name, (title, note, draw) in page.SECTIONS.items():
            if name != "parts":  # of the others one picture each: drawing takes most of the time
                first = (title, note, lambda draw=draw: islice(draw(), 1))
                patch.setitem(page.SECTIONS, name, first)
        text = page.page()
    reader = Reader()
    reader.feed(text)
    return text, reader, {p.name: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}


def numbers_of(value):
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers_of(one)
    elif isinstance(value, int | float):
        yield value


def test_every_number_of_every_file_stands_on_the_page(made):
    text, _, files = made
    assert len(files) > 40
    for (name, content), following in pairwise([*files.items(), ("<main>", None)]):
        part = text.partition(f'<details id="{name}">')[2]
        part = part.partition(f'<details id="{following[0]}">')[0] if following[1] else part
        reader = Reader()
        reader.feed(part)
        values = [json.loads(cells[1]) for cells in reader.rows if holds_numbers(cells[1])]
        assert [*numbers_of(values)] == [*numbers_of(content)], name


def holds_numbers(text):
    try:
        return isinstance(json.loads(text), int | float | list)
    except ValueError:
        return False


def test_a_model_has_its_mean_its_spread_and_what_training_cost(made):
    _, reader, files = made
    runs = [files[f"R2-ml-1m-hpgr-{seed}.json"] for seed in range(5)]
    values = [run["metrics"]["ndcg@10"] for run in runs]
    expected = f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}".replace("0.", ".")
    (row,) = [cells for cells in reader.rows if cells[:1] == ["HPGR"] and expected in cells]
    seconds = np.mean([run["train_seconds"] for run in runs])
    speed = np.mean([run["events_per_second"] for run in runs])
    assert row[5:9] == ["5", f"{runs[0]['num_params']:,}", f"{seconds:,.0f}", f"{speed:,.0f}"]


def test_bars_show_the_distance_from_the_whole(made):
    _, reader, files = made
    for protocol, metric in (("R2", "ndcg@10"), ("K1", "auc")):
        names = ("hpgr-no-readout", "hpgr-short")
        own, whole = (files[f"{protocol}-ml-1m-{name}-0.json"] for name in names)
        distance = own["metrics"][metric] - whole["metrics"][metric]
        assert f"{distance:+.4f}".replace("0.", ".") in reader.labels


def test_a_comparison_stands_with_its_interval(made):
    _, reader, files = made
    own = next(
        one
        for one in files["paired-ml-1m-global-time.json"]["comparisons"]
        if (one["protocol"], one["model"], one["metric"]) == ("K1", "mtgr-successors", "auc")
    )
    numbers = [f"{own[key]:+.4f}".replace("-", "\N{MINUS SIGN}") for key in ("low", "high")]
    names = [table.NAMES[own[key]].replace("*", "") for key in ("model", "against")]
    (row,) = [cells for cells in reader.rows if cells[1:4] == [*names, "AUC"]]
    assert row[5] == " to ".join(numbers)


def test_a_section_without_a_picture_is_left_out(monkeypatch):
    for name in ("headlines", "comparisons"):
        for module in (table, ablations):
            monkeypatch.setattr(module, name, list, raising=False)
    monkeypatch.setattr(figures, "PICTURES", {})
    text = page.page()
    assert 'id="models"' in text
    assert not any(f'"#{name}"' in text or f'id="{name}"' in text for name in page.SECTIONS)


@pytest.mark.parametrize("words", ["ReChorus", "profile quick", "profile full", "noise:", "trees"])
def test_a_goal_of_models_has_found_its_results(words):
    """They are found by their names: one that was renamed would leave its goal out."""
    assert any(words in standing.subject for standing in goals.standings())


def test_a_goal_is_reached_or_missed_as_its_file_says(made):
    _, reader, files = made
    verdict = {cells[0]: cells[3] for cells in reader.rows if len(cells) == 5}
    rps = files["serving.json"]["figures"]["rps_8"]
    assert verdict["serving, 8 clients: answers a second"] == (
        "reached" if rps >= 400 else "missed"
    )
    seconds = files["data.json"]["figures"]["sessionize_s_20m"]
    assert verdict["sessionize 20 million events, s"] == ("reached" if seconds <= 25 else "missed")
    memory = files["attention.json"]["peak_mib_4096"]
    least = memory["sparse"] <= memory["eager"] / 10
    subject = "sparse attention, 4,096 events: peak memory over the whole matrix's"
    assert verdict[subject] == ("reached" if least else "missed")


def test_what_a_file_says_is_text_and_nothing_is_loaded(made):
    text, reader, _ = made
    assert HOSTILE in {cells[0] for cells in reader.rows if cells}
    assert "<img" not in text
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "image"}
    for _, attributes in reader.tags:
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")


def test_names_inside_pictures_are_unique(made):
    _, reader, _ = made
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a.get("xlink:href") or a.get("href") for _, a in reader.tags} - {None}
    assert {target.removeprefix("#") for target in targets} <= set(ids)


def test_a_model_in_a_picture_is_text():
    runs = {0: {"metrics": {"ndcg@10": 0.1, "hr@10": 0.2}}}
    drawn = page.inline("x", lambda: model_figures.part_bars("R1", runs, {"<b>$x": runs}))
    assert "<b>" not in drawn and "&lt;b&gt;$x" in drawn


def sliced(model, seed, values, counts=(200, 300, 9)):
    names = ["history: 1 to 20 events", "history: 21 to 50", "history: 51 to 200"]
    return {
        "protocol": "R2", "model": model, "seed": seed, "metrics": {"ndcg@10": values[0]},
        "same_queries": {"ease": {"ndcg@10": 0.05}}, "best_step": 100,
        "slices": {
            "slice": names, "queries": [*counts],
            "ndcg@10": {model: values, "ease": [0.05, None, 0.1]},
        },
        "curve": {"step": [50, 100], "ndcg@10": values[:2]},
    }  # fmt: skip


def test_slices_are_means_over_seeds_and_small_ones_are_left_out():
    runs = [sliced("hpgr", 0, [0.1, 0.2, 0.3]), sliced("hpgr", 1, [0.3, 0.6, 0.3])]
    runs += [sliced("mtgr", 0, [0.4, 0.5, 0.6]), {"protocol": "R2", "model": "sasrec"} | NO_SLICES]
    figure = model_figures.slice_lines("ndcg@10", runs)
    (ax,) = figure.axes
    drawn = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
    assert drawn["HPGR"] == pytest.approx([0.2, 0.4])
    assert drawn["MTGR"] == [0.4, 0.5]
    assert drawn["EASE, recency-weighted"] == pytest.approx([0.05, np.nan], nan_ok=True)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["1 to 20\n200", "21 to 50\n300"]


NO_SLICES = {"seed": 0, "metrics": {"ndcg@10": 0.9}, "same_queries": {}}


def test_a_curve_is_drawn_for_each_seed_with_the_step_that_was_kept():
    runs = [sliced("hpgr", seed, [0.1, 0.2 + seed, 0.3]) for seed in (0, 1)]
    (ax,) = model_figures.curve_lines({"ndcg@10": "NDCG@10"}, runs).axes
    drawn = [(line.get_xdata(), line.get_ydata()) for line in ax.lines]
    assert [[*map(list, one)] for one in drawn] == [
        [[50, 100], [0.1, 0.2]], [[100], [0.2]], [[50, 100], [0.1, 1.2]], [[100], [1.2]],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"pretrain": {"steps": 7}}, ("pretrain.steps", 7.0)),
        ({"pretrain": {"steps": 7, "seed": 5}}, None),  # two numbers
        ({"model": {"preference": False}}, None),
        ({"finetune": {"monitor": "validation_auc"}}, None),
        ({}, None),
    ],
)
def test_sensitive_to_one_number_alone(changed, expected, monkeypatch):
    monkeypatch.chdir(RESULTS.parents[1])
    profile = {"global-time": "ranking"}
    models = {"hpgr": profile, "other": {**profile, "set": changed}}
    cells = [Cell("tiny", "global-time", model) for model in models]
    found = sensitivity.single(*cells, Matrix([], {"tiny": {}}, models))
    assert found and (found[0], found[2]) == expected if expected else found is None


def test_the_document_and_its_pictures_are_those_of_the_committed_results(tmp_path, monkeypatch):
    committed = page.DOCUMENT.read_text()
    monkeypatch.setattr(page, "DOCUMENT", tmp_path / "benchmark.md")
    monkeypatch.setattr(figures, "IMAGES", tmp_path)
    monkeypatch.setattr(figures, "save", lambda draw, path: path.write_text(""))
    page.write_markdown()
    assert (tmp_path / "benchmark.md").read_text() == committed
    for image in tmp_path.glob("*.svg"):
        assert (RESULTS.parents[1] / "docs/images" / image.name).is_file()
        assert f"(images/{image.name})" in committed
