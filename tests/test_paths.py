"""Paths that come from params.yaml, an override or a deployment lie inside the project."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from params_text import params_text

import flows.given_path
from flows.given_path import given_path
from hpgr.config import ConfigError, resolve
from hpgr.profiles import set_params
from hpgr.runtime import UserError

KEYS = ("data.path", "recommend.allow", "recommend.deny")
PARAMS = yaml.safe_load(params_text("quick"))
NAMES = ("data.interactions", "data.items", "data.users")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project's folder beside a secret one, with links to it and to a folder of its own."""
    secret, project = tmp_path / "secret", tmp_path / "project"
    for path in (secret, project / "data/own"):
        path.mkdir(parents=True)
    (secret / "ids.txt").write_text("password\n")
    (project / "data/out").symlink_to(secret)
    (project / "data/list.txt").symlink_to(secret / "ids.txt")
    (project / "data/circle").symlink_to("circle")
    (project / "data/in").symlink_to("own")
    (project / "params.yaml").write_text(params_text("quick"))
    monkeypatch.chdir(project)
    return project


OUTSIDE = {
    "absolute": "/etc",
    "up": "../secret",
    "up in the middle": "data/../../secret",
    "a link to a folder": "data/out",
    "below a link": "data/out/ids.txt",
    "a link to a file": "data/list.txt",
    "a circle of links": "data/circle",
    "hidden": ".git/config",
    "hidden file": "environment/.env",
    "nothing": "",
    "the project itself": ".",
    "no name": "a\0b",
}


def resolved(key, value):
    """The configuration with `key` in the file set to `value`."""
    section, _, name = key.partition(".")
    return resolve({**PARAMS, section: {**PARAMS[section], name: value}})


@pytest.mark.parametrize("value", OUTSIDE.values(), ids=OUTSIDE)
def test_a_path_out_of_the_project_is_refused_with_one_line(folder, value):
    for key in KEYS:
        with pytest.raises(ConfigError, match=rf"\n  {key}: ") as refused:
            resolved(key, value)
        assert str(refused.value).count("\n") == 1
        assert repr(value) in str(refused.value)
        assert "password" not in str(refused.value)


@pytest.mark.parametrize("value", ["/etc/passwd", "../x.csv", "a/../../x", "", ".", ".env", "a/.b"])
def test_a_file_name_stays_inside_data_path(value):
    for key in NAMES:
        with pytest.raises(ConfigError, match=rf"\n  {key}: "):
            resolved(key, value)


@pytest.mark.parametrize("value", ["data/own", "data/in", "data/ml-1m", "raw", "data/a b?%25"])
def test_a_path_inside_is_taken_whether_it_is_there_or_not(folder, value):
    assert resolved("data.path", value).data.path == Path(value)
    assert resolved("recommend.deny", value).recommend.deny == Path(value)
    assert resolved("data.items", "part/items.csv").data.items == "part/items.csv"


def test_an_override_that_leads_out_is_not_kept(folder):
    before = (folder / "params.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"data\.path"):
        set_params({"data.path": "/etc", "sessionize.gap_s": 60})
    assert (folder / "params.yaml").read_bytes() == before


@pytest.fixture(params=[True, False], ids=["by a deployment", "by a command"])
def deployed(request, monkeypatch):
    """Return True if the run is one that Prefect's API started."""
    place = SimpleNamespace(id="1" if request.param else None)
    monkeypatch.setattr(flows.given_path, "deployment", place)
    return request.param


def test_only_a_command_names_files_elsewhere(folder, deployed):
    assert given_path("incoming", "data/own") == Path("data/own")
    for text in ("/etc", "../secret", "data/out"):
        if deployed:
            with pytest.raises(UserError, match=f"^incoming: .*found '{text}'"):
                given_path("incoming", text)
        else:
            assert given_path("incoming", text) == Path(text)
