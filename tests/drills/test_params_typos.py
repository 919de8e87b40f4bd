"""Drill: a mistake in every section of params.yaml. Each names file, key and the nearest right one.

The file is the project's own with one line changed; the command is a stage, so that nothing but
the message may come of it.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml
from params_text import params_text
from workspace import hpgr, no_traceback

from hpgr.config import Config, ConfigError, load_config, resolve

TEXT = params_text("quick")
PARAMS = yaml.safe_load(TEXT)
SECTIONS = [*PARAMS]


def refusal(folder: Path, text: str) -> str:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    message = str(error.value)
    assert message.startswith(str(path))
    return message


def in_section(section: str, find: str, put: str) -> str:
    """The file with the first match of `find` below `section:` replaced."""
    head, name, rest = TEXT.partition(f"\n{section}:")
    changed = re.sub(find, put, rest, count=1, flags=re.MULTILINE)
    assert changed != rest
    return head + name + changed


def first_key(section: str) -> str:
    return next(iter(PARAMS[section]))


def test_every_section_is_drilled():
    fields = {field.alias or name for name, field in Config.model_fields.items()}
    assert set(SECTIONS) == fields


@pytest.mark.parametrize("section", SECTIONS)
def test_a_misspelt_key_is_named_with_the_one_that_was_meant(section, tmp_path):
    key = first_key(section)
    wrong = key * 2 if len(key) < 4 else key[:-2] + key[-1] + key[-2]
    message = refusal(tmp_path, in_section(section, rf"^  {key}:", f"  {wrong}:"))
    assert f"{section}.{wrong}: unknown key; did you mean '{key}'?" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("section", SECTIONS)
def test_a_misspelt_section_is_named_with_the_one_that_was_meant(section, tmp_path):
    wrong = section[:-2] + section[-1] + section[-2]
    message = refusal(tmp_path, TEXT.replace(f"\n{section}:", f"\n{wrong}:", 1))
    assert f"{wrong}: unknown section; did you mean '{section}'?" in message


@pytest.mark.parametrize("section", SECTIONS)
def test_a_value_of_a_wrong_type_is_named(section, tmp_path):
    key = first_key(section)
    message = refusal(tmp_path, in_section(section, rf"^  {key}:.*$", f"  {key}: [[never]]"))
    assert re.search(rf"{section}\.{key}(\.0)?: .*found \[+'never'", message)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_is_none_is_named(section, tmp_path):
    params = {**PARAMS, section: 5}
    message = refusal(tmp_path, yaml.safe_dump(params))
    assert f"{section}: " in message and "found 5" in message


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_is_missing_is_named(section, tmp_path):
    params = {name: value for name, value in PARAMS.items() if name != section}
    assert f"{section}: " in refusal(tmp_path, yaml.safe_dump(params))


@pytest.mark.parametrize("section", SECTIONS)
def test_a_key_set_twice_is_an_error(section, tmp_path):
    """YAML itself would take the last one without a word."""
    key = first_key(section)
    text = in_section(section, rf"^  {key}:", f"  {key}: 1\n  {key}:")
    line = text[: text.index(f"\n  {key}: 1\n")].count("\n") + 3
    message = refusal(tmp_path, text)
    assert f"line {line}" in message and f"'{key}' is set twice" in message


@pytest.mark.parametrize(
    ("find", "put", "expected"),
    [
        ("  gap_s: 1800", "  gap_s: 1,800", "sessionize.gap_s: "),
        ("  gap_s: 1800", "  gap_s: -1", "sessionize.gap_s: "),
        ("  gap_s: 1800", "  gap_s: 1800s", "found '1800s'"),
        ("  gap_s: 1800", "  gap_s: yes", "sessionize.gap_s: "),
        ("  gap_s: 1800", "  gap_s: 1800.5", "sessionize.gap_s: "),
        ("  gap_s: 1800", "  gap_s:", "sessionize.gap_s: "),
        ("  gap_s: 1800", "  gap_s: .nan", "sessionize.gap_s: "),
        ("  dropout: 0.2", "  dropout: .nan", "model.dropout: "),
        ("  engine: duckdb", "  engine: duckbd", "did you mean 'duckdb'?"),
        ("    user_id: user_id", "    userid: user_id", "data.columns.userid: unknown key"),
        ("  gap_s: 1800", "\tgap_s: 1800", "line"),
        ("  gap_s: 1800", "  gap_s: 'it", "not valid YAML"),
        ("  gap_s: 1800", "  gap_s: {1800", "not valid YAML"),
        ("  gap_s: 1800", "   gap_s: 1800", "not valid YAML"),
        ("  gap_s: 1800", "  gap_s 1800", "not valid YAML"),
        ("  gap_s: 1800", "  gap_s: *seconds", "not valid YAML"),
        ("  gap_s: 1800", "  gap_s: !!python/object:os.system x", "not valid YAML"),
    ],
)
def test_a_slip_is_reported(find, put, expected, tmp_path):
    assert find in TEXT
    assert expected in refusal(tmp_path, TEXT.replace(find, put, 1))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected sections, found nothing"),
        (b"- a\n", "expected sections, found a list"),
        (b"data: \xe9\n", "not UTF-8"),
        (b"a\0b", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_params_is_reported(content, expected, tmp_path):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load_config(tmp_path / "params.yaml")


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    plain = tmp_path / "plain.yaml"
    plain.write_text(TEXT, encoding="utf-8")
    assert load_config(path) == load_config(plain)


def test_a_folder_in_place_of_the_file_is_reported(tmp_path):
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path / "params.yaml")


@pytest.mark.parametrize("stage", ["validate", "finetune"])
def test_a_stage_ends_with_the_message_and_code_2(stage, tmp_path):
    (tmp_path / "params.yaml").write_text(TEXT.replace("  gap_s: 1800", "  gap: 1800"))
    done = hpgr(stage, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: params.yaml")
    assert "sessionize.gap: unknown key; did you mean 'gap_s'?" in done.stderr
    assert no_traceback(done.output)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("section", "find", "put", "expected"),
    [
        ("gate", "metric: ndcg@10", "metric: ndcg@20", "gate.metric: 'ndcg@20' is not among hr@10"),
        ("gate", "metric: ndcg@10", "metric: auc", "it needs sessionize.split: global-time"),
        ("gate", "metric: ndcg@10", "metric: basket.ndcg@10", "it needs evaluate.baskets: true, s"),
        ("gate", "hr@50:", "basket.recall@20:", "gate.guards.basket.recall@20: 'basket.recall@20'"),
        ("gate", "coverage@10:", "coverage@50:", "gate.guards.coverage@50: 'coverage@50' is not"),
        ("gate", "served.ndcg@10:", "served.ndgc@10:", "did you mean 'served.ndcg@10'?"),
        ("finetune", "monitor: validation_ndcg@10", "monitor: validation_basket_ndcg@10",
         "finetune.monitor: validation_basket_ndcg@10 needs evaluate.baskets: true"),
        ("evaluate", "bootstrap_samples: 2000", "bootstrap_samples: 39", "gate.significance: no"),
    ],
)  # fmt: skip
def test_a_rule_that_nothing_could_meet_is_named(section, find, put, expected, tmp_path):
    message = refusal(tmp_path, in_section(section, re.escape(find), put))
    assert expected in message
    assert message.count("\n") == 1


def test_the_smallest_number_of_resamples_that_can_be_significant_is_one_more(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(in_section("evaluate", "bootstrap_samples: 2000", "bootstrap_samples: 40"))
    assert load_config(path).gate.significance > 2 / 41


@pytest.mark.parametrize(
    ("section", "find", "put", "message"),
    [
        ("model", "num_heads: 2", "num_heads: 3", "model.num_heads: 3 heads do not divide "
         "model.dim: 64; possible: 1, 2, 4, 8, 16, 32, 64"),
        ("model", "dim: 64", "dim: 65", "possible: 1, 5, 13, 65"),
        ("model", "dim: 64", "dim: 1000000000", "model.dim: found 1000000000, expected at most"),
        ("model", "position_bias: true", "position_bias: maybe",
         "model.position_bias: found 'maybe', expected true or false"),
        ("evaluate", r"cutoffs: .*", "cutoffs: [0, 10]",
         "evaluate.cutoffs.0: found 0, expected at least 1"),
        ("evaluate", r"cutoffs: .*", "cutoffs: [-5, 10]",
         "evaluate.cutoffs.0: found -5, expected at least 1"),
        ("evaluate", r"cutoffs: .*", "cutoffs: [10, 10, 50]",
         "evaluate.cutoffs: found [10, 10, 50], expected each once, the smallest first: [10, 50]"),
        ("evaluate", r"cutoffs: .*", "cutoffs: 10",
         "evaluate.cutoffs: found 10, expected a list, such as [10]"),
        ("evaluate", r"basket_cutoffs: .*", "basket_cutoffs: [20, 10]",
         "evaluate.basket_cutoffs: found [20, 10], expected each once, the smallest first"),
        ("evaluate", r"history_decays: [^#]*", "history_decays: [0.5, 5.0] ",
         "evaluate.history_decays.1: found 5.0, expected at most 1"),
        ("evaluate", r"history_decays: [^#]*", "history_decays: [0.0] ",
         "in 1 place:\n  evaluate.history_decays.0: found 0.0, expected more than 0"),
        ("finetune", "learning_rate: 0.002", "learning_rate: 0,002",
         "finetune.learning_rate: found '0,002', expected a number, such as 0.002 (a point"),
        ("finetune", "learning_rate: 0.002", "learning_rate: 1.0e+6",
         "finetune.learning_rate: found 1000000.0, expected at most 1"),
        ("finetune", "temperature: 0.05", "temperature: 0.001",
         "finetune.temperature: found 0.001, expected at least 0.0125"),
        ("pretrain", "seed: 0", "seed: 010", "010 in line"),
        ("pretrain", "seed: 0", "seed: 1e30", "pretrain.seed: found '1e30', expected"),
        ("sessionize", "gap_s: 1800", "gap_s: 30:00", "30:00 in line"),
        ("sessionize", "positive_actions: null", "positive_actions: buy",
         "sessionize.positive_actions: found 'buy', expected a list, such as [buy]"),
        ("sessionize", "positive_actions: null", "positive_actions: on",
         "sessionize.positive_actions: a switch"),
        ("data", "items: null", "items: no", "data.items: a switch"),
        ("data", "item_id: item_id", "item_id: user_id",
         "data.columns.item_id: 'user_id' is data.columns.user_id already"),
        ("serve", "max_k: 100", "max_k: 5", "serve.k: found 10, expected at most serve.max_k: 5"),
    ],
)  # fmt: skip
def test_an_impossible_value_is_refused_with_what_is_possible(
    section, find, put, message, tmp_path
):
    assert message in refusal(tmp_path, in_section(section, find, put))


def test_a_score_of_a_head_that_is_not_trained_cannot_be_watched(tmp_path):
    text = in_section("finetune", "monitor: [^ ]*", "monitor: validation_auc")
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert load_config(path).finetune.monitor == "validation_auc"
    text = text.replace("  ranking_weight: 0.2", "  ranking_weight: 0.0")
    assert "finetune.monitor: validation_auc needs a ranking head" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("[on, buy]", ("on", "buy")),
        ('["on", "buy"]', ("on", "buy")),
        ("[1, 2]", ("1", "2")),
        ("[No]", ("No",)),
    ],
)
def test_positive_actions_are_words(written, meant, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(
        in_section("sessionize", "positive_actions: null", f"positive_actions: {written}")
    )
    assert load_config(path).sessionize.positive_actions == meant


def test_a_file_of_opening_brackets_is_refused_in_one_line(tmp_path):
    assert "nested too deep" in refusal(tmp_path, "[" * 20_000)


def values(section: dict, place: str = ""):
    for key, value in section.items():
        if isinstance(value, dict) and key not in ("guards", "remote"):
            yield from values(value, f"{place}{key}.")
        else:
            yield f"{place}{key}"


@pytest.mark.parametrize("odd", ["word", [], {}, -1, 10**40, 0.5, None, True, [[None]], ""])
def test_no_message_speaks_the_language_of_the_library(odd):
    """Every key with a value of every kind: accepted, or refused in our own words."""
    for dotted in values(PARAMS):
        params = copy.deepcopy(PARAMS)
        *sections, key = dotted.split(".")
        target = params
        for section in sections:
            target = target[section]
        target[key] = odd
        try:
            resolve(params)
        except ConfigError as error:
            assert "Input should" not in str(error) and "Value error" not in str(error), dotted
            assert dotted in str(error) or key in str(error)
