"""Profiles are files whose values are written into params.yaml."""

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from params_text import ROOT, params_text

from hpgr.config import ConfigError, load_config
from hpgr.profiles import ABSENT, ChangedValue, read_overrides, set_params, with_params

NAMES = sorted(path.stem for path in (ROOT / "profiles").iterdir())


@pytest.fixture
def params(tmp_path, monkeypatch):
    """params.yaml of profile quick in a folder with copies of the profiles, which is current."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "params.yaml").write_text(params_text("quick"))
    return tmp_path / "params.yaml"


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_the_values_of_quick_with_its_own_on_top(params, name):
    wanted = copy.deepcopy(read(params))
    for file in ("quick", name):
        for section, values in read(Path(f"profiles/{file}.yaml")).items():
            same = section != "model" or values.get("name", "hpgr") == "hpgr"
            wanted[section] = wanted[section] | values if same else values
    changes = set_params(profile=name)
    assert read(params) == wanted
    load_config()
    quick = yaml.safe_load(params_text("quick"))
    message = {change.key: change.after for change in changes if change.after is not ABSENT}
    removed = {change.key for change in changes if change.after is ABSENT}
    assert removed == {f"model.{key}" for key in quick["model"].keys() - wanted["model"].keys()}
    assert message == {
        f"{section}.{key}": value
        for section, values in wanted.items()
        for key, value in values.items()
        if value != quick[section].get(key)
    }


@pytest.mark.parametrize("before", NAMES)
def test_the_way_back_to_quick_leaves_the_file_as_it_was(params, before):
    text = params.read_text()
    set_params(profile=before)
    set_params(profile="quick")
    assert params.read_text() == text


def test_what_no_profile_lists_stays_as_it_was_set(params):
    set_params({"sessionize.gap_s": 900, "serve.port": 9000})
    set_params(profile="smoke")
    cfg = load_config()
    assert (cfg.sessionize.gap_s, cfg.serve.port, cfg.model.dim) == (900, 9000, 16)


def test_values_change_their_lines_and_no_other(params):
    before = params.read_text().splitlines()
    changed = set_params({"sessionize.gap_s": 900}, "smoke")
    assert ChangedValue("sessionize.gap_s", 1800, 900) in changed
    after = params.read_text().splitlines()
    different = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(different) == len(changed) == 11
    assert any(re.match("  gap_s: 900 +# inactivity longer", line) for line in different)
    assert load_config().sessionize.gap_s == 900


def test_a_single_value_wins_over_the_profile_it_comes_with(params):
    set_params({"pretrain.steps": 7}, "smoke")
    assert load_config().pretrain.steps == 7
    set_params(profile="full")
    assert load_config().pretrain.steps == 160


def test_what_changes_nothing_leaves_the_file_alone(params):
    before = params.stat()
    assert set_params({"sessionize.gap_s": 1800, "finetune.decay": True}, "quick") == []
    after = params.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_another_file_is_written_and_the_one_here_stays(params, tmp_path):
    before, other = params.read_bytes(), tmp_path / "cell" / "params.yaml"
    other.parent.mkdir()
    shutil.copy(params, other)
    set_params({"finetune.seed": 3}, "smoke", path=other)
    assert load_config(other).finetune.seed == 3
    assert load_config(other).model.dim == 16
    assert params.read_bytes() == before


def test_values_for_the_moment_are_checked_alike_and_not_written(params):
    before = params.read_text()
    cfg = with_params({"refresh.max_item_drift": 0.9}, "smoke")
    assert (cfg.refresh.max_item_drift, cfg.model.dim) == (0.9, 16)
    with pytest.raises(ConfigError, match=r"no parameter 'refresh\.max_drift'; did you mean"):
        with_params({"refresh.max_drift": 0.9})
    assert params.read_text() == before


def test_a_key_with_a_point_in_its_name_can_be_set(params):
    set_params({"gate.guards.served.ndcg@10": 0.5, "data.columns.title": None})
    assert load_config().gate.guards["served.ndcg@10"] == 0.5
    assert load_config().data.columns.title is None


@pytest.mark.parametrize(
    ("values", "profile", "message"),
    [
        ({"sessionize.gap": 1}, None, "no parameter 'sessionize.gap'; did you mean"),
        ({"model": 3}, None, "model: found 3"),
        ({"sessionize.gap_s": -1}, None, "expected more than 0 [set by overrides]"),
        ({"gate.guards.mrr": 1}, None, "no parameter 'gate.guards.mrr'"),
        ({"model.dim": 3}, "smoke", "model.dim: found 3, expected at least 4 [set by overrides]"),
        (
            {},
            "huge",
            "profile is 'huge', expected the name of a file in profiles/: esasrec, full, hstu",
        ),
        ({}, "smok", "did you mean 'smoke'?"),
        ({}, "../profiles/smoke", "expected the name of a file in profiles/"),
        ({}, "sub/smoke", "expected the name of a file in profiles/"),
        ({}, "", "expected the name of a file in profiles/"),
        ({}, "smoke.yaml", "expected the name of a file in profiles/"),
        ({}, ".hidden", "expected the name of a file in profiles/"),
    ],
)
def test_a_wrong_value_or_name_is_refused_and_nothing_written(params, values, profile, message):
    before = params.read_text()
    Path("profiles/sub").mkdir()
    for path in ("profiles/sub/smoke.yaml", "profiles/.hidden.yaml"):
        shutil.copy("profiles/smoke.yaml", path)
    with pytest.raises(ConfigError) as refused:
        set_params(values, profile)
    assert message in str(refused.value)
    assert params.read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pretrain:\n  setps: 9\n", "mine.yaml: pretrain.setps is not in profiles/quick.yaml; did"),
        ("serve:\n  port: 9\n", "mine.yaml: serve.port is not in profiles/quick.yaml"),
        ("pretrain: 9\n", "mine.yaml: pretrain is 9, expected a section with its keys"),
        ("pretrain.steps: 9\n", "mine.yaml: pretrain.steps is 9, expected a section"),
        ("pretrain:\n  steps: 0.5\n", "pretrain.steps: found 0.5, expected a whole number [set by"),
        ("pretrain:\n  steps: 9\n  steps: 8\n", "mine.yaml is not valid YAML: 'steps' is set twic"),
        ("pretrain:\n  steps: 010\n", "mine.yaml is not valid YAML: 010 in line 2"),
        ("pretrain: {steps: [\n", "mine.yaml is not valid YAML"),
        ("", "mine.yaml: expected sections, found nothing"),
        ("model:\n  name: hstu\n", "model.dropout: is missing; add it [set by profiles/mine.yaml]"),
        ("model:\n  name: hsut\n", "did you mean 'hstu'? [set by profiles/mine.yaml]"),
    ],
)
def test_a_slip_in_a_profile_is_refused_with_its_file(params, text, message):
    before = params.read_text()
    Path("profiles/mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        set_params(profile="mine")
    assert message in str(refused.value)
    assert "profiles/mine.yaml" in str(refused.value)
    assert params.read_text() == before


def test_a_slip_in_quick_is_refused_with_its_file(params):
    quick = Path("profiles/quick.yaml")
    quick.write_text(quick.read_text().replace("  clip_norm: 1.0", "  clip_norn: 1.0"))
    with pytest.raises(ConfigError) as refused:
        set_params(profile="smoke")
    message = (
        "finetune.clip_norn: unknown key; did you mean 'clip_norm'? [set by profiles/quick.yaml]"
    )
    assert message in str(refused.value)
    quick.unlink()
    with pytest.raises(ConfigError, match=r"profiles/quick\.yaml not found"):
        set_params(profile="smoke")
    shutil.rmtree("profiles")
    with pytest.raises(ConfigError, match="run hpgr in the project's root folder"):
        set_params(profile="smoke")


FORMER = "profile: smoke  # one of these\n\nprofiles:\n  smoke:\n    model.dim: 8\n\n"


def test_a_file_that_names_profiles_itself_is_refused_with_the_command_that_mends_it(params):
    text = params.read_text()
    params.write_text(FORMER + text)
    with pytest.raises(ConfigError, match=r"profile and profiles cannot .* params --profile smoke"):
        load_config()
    with pytest.raises(ConfigError, match="params --profile smoke"):
        set_params({"model.dim": 32})
    changes = set_params(profile="smoke")
    assert [str(change) for change in changes if change.after is ABSENT] == [
        "profile: removed",
        "profiles: removed",
    ]
    assert read(params) == yaml.safe_load(params_text("smoke"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("gap_s", "expected SECTION.KEY=VALUE"),
        ("=3", "expected SECTION.KEY=VALUE"),
        ("model.dim=[", "is not valid YAML"),
        ("model.dim=010", "octal"),
    ],
)
def test_an_entry_of_the_command_line_that_is_none_is_refused(entry, message):
    with pytest.raises(ConfigError) as refused:
        read_overrides([entry])
    assert str(refused.value).startswith(f"--set '{entry}'") and message in str(refused.value)


def test_entries_of_the_command_line_are_yaml():
    entries = ["a.b=[1, 2]", "a.c=", "a.d=1e-3", "a.e=x=y", "a.f=true"]
    assert read_overrides(entries) == {
        "a.b": [1, 2], "a.c": None, "a.d": 0.001, "a.e": "x=y", "a.f": True,
    }  # fmt: skip
    assert read_overrides(None) == {}


def hpgr(*arguments):
    command = [sys.executable, "-m", "hpgr.cli", "params", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_says_what_it_changes(params):
    done = hpgr("--profile", "smoke", "--set", "sessionize.gap_s=900", "--set", "pretrain.steps=5")
    assert done.returncode == 0, done.stderr
    assert {"model.dim: 64 -> 16", "sessionize.gap_s: 1800 -> 900", "pretrain.steps: 480 -> 5"} <= {
        *done.stdout.splitlines()
    }
    assert done.stdout.splitlines()[-1] == "params.yaml: 11 values changed"
    again = hpgr("--profile", "smoke", "--set", "sessionize.gap_s=900", "--set", "pretrain.steps=5")
    assert again.stdout == "params.yaml: no values changed\n"
    wrong = hpgr("--profile", "smok")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: profile is 'smok'")


def signature(command):
    """Options and arguments of a command: name, spelling and default."""
    from hpgr.added_commands import as_command

    return [(p.name, p.opts, str(p.default)) for p in as_command(command, "x").params]


@pytest.mark.parametrize(
    ("plain", "flow"),
    [("promote", "promote"), ("recommend_all", "recommend"), ("monitor", "monitor")],
)
def test_a_command_and_its_prefect_run_take_the_same_options(plain, flow):
    import inspect
    from importlib import import_module

    from flows.commands import _as_run
    from hpgr import cli

    declared = getattr(cli, plain)
    assert signature(_as_run(declared, flow)) == signature(declared)
    run = getattr(import_module(f"flows.{flow}"), flow)
    assert [name for name, *_ in signature(declared)] == [*inspect.signature(run.fn).parameters]
