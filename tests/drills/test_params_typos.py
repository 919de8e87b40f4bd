"""Drill: a mistake in every section of params.yaml. Each names file, key and the nearest right one.

The file is the project's own with one line changed; the command is a stage, so that nothing but
the message may come of it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from params_text import params_text
from workspace import hpgr, no_traceback

from hpgr.config import Config, ConfigError, load_config

TEXT = params_text("quick")
PARAMS = yaml.safe_load(TEXT)
SECTIONS = [name for name in PARAMS if name not in ("profile", "profiles")]


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
    assert {*SECTIONS, "profile"} == fields


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
    assert f"{section}.{key}: " in message and "found [['never']]" in message


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
    ("find", "put", "told"),
    [
        ("profile: quick", "profile: qiuck", "did you mean 'quick'?"),
        ("profile: quick", "profil: quick", "profil: unknown section; did you mean 'profile'?"),
        ("profile: quick", "profile: [quick]", "profile is ['quick'], expected one of"),
        ("profiles:", "proflies:", "proflies: unknown section; did you mean 'profiles'?"),
        ("profile: quick", "profile: 1", "profile is 1, expected one of"),
        ("    pretrain.steps: 1280", "    pretrain.setps: 1280", "did you mean 'pretrain.steps'?"),
        ("    pretrain.steps: 1280", "    pretrian.steps: 1280", "did you mean 'pretrain.steps'?"),
        ("    pretrain.steps: 1280", "    pretrain: 9", "sets 'pretrain', which is no parameter"),
        ("  quick: {}", "  quick: 5", "profiles.quick is 5, expected a mapping"),
        ("  quick: {}", "  quick: {}\n  quick: {}", "'quick' is set twice"),
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
        ("    <<: *hstu", "    <<: *hstuu", "not valid YAML"),
        ("  gap_s: 1800", "  gap_s: !!python/object:os.system x", "not valid YAML"),
    ],
)
def test_a_slip_is_told(find, put, told, tmp_path):
    full = TEXT.replace("profile: quick", "profile: full", 1)
    text = full if find.startswith("    pretrain") else TEXT
    assert find in text
    assert told in refusal(tmp_path, text.replace(find, put, 1))


def test_a_slip_in_a_profile_that_is_not_in_force_is_told_too(tmp_path):
    text = TEXT.replace("    pretrain.steps: 1280", "    pretrain.setps: 1280", 1)
    assert "profiles.full sets 'pretrain.setps'" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "expected sections, found nothing"),
        (b"- a\n", "expected sections, found a list"),
        (b"profile: \xe9\n", "not UTF-8"),
        (b"a\0b", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_params_is_told(content, told, tmp_path):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        load_config(tmp_path / "params.yaml")


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    plain = tmp_path / "plain.yaml"
    plain.write_text(TEXT, encoding="utf-8")
    assert load_config(path) == load_config(plain)


def test_a_folder_in_place_of_the_file_is_told(tmp_path):
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
    assert no_traceback(done.told)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("section", "find", "put", "told"),
    [
        ("gate", "metric: ndcg@10", "metric: ndcg@20", "gate.metric: 'ndcg@20' is not among hr@10"),
        ("gate", "metric: ndcg@10", "metric: auc", "it needs sessionize.split: global-time"),
        ("gate", "coverage@10:", "coverage@50:", "gate.guards.coverage@50: 'coverage@50' is not"),
        ("gate", "served.ndcg@10:", "served.ndgc@10:", "did you mean 'served.ndcg@10'?"),
        ("evaluate", "bootstrap_samples: 2000", "bootstrap_samples: 39", "gate.significance: no"),
    ],
)  # fmt: skip
def test_a_rule_of_the_gate_that_nothing_could_meet_is_named(section, find, put, told, tmp_path):
    message = refusal(tmp_path, in_section(section, re.escape(find), put))
    assert told in message
    assert message.count("\n") == 1


def test_the_smallest_number_of_resamples_that_can_be_significant_is_one_more(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(in_section("evaluate", "bootstrap_samples: 2000", "bootstrap_samples: 40"))
    assert load_config(path).gate.significance > 2 / 41
