"""Prefect's authentication string: made once, whole, and for its owner's eyes alone."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from host.access import FILE, for_server, new_string, read_string, string_file
from hpgr.runtime import UserError

ROOT = Path(__file__).parents[1]


def test_a_string_is_made_for_its_owner_alone_and_stays(tmp_path):
    home = tmp_path / "home"
    before = os.umask(0)
    try:
        path = string_file(home)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = read_string(home)
    assert first.startswith("hpgr:") and len(first) > 40
    assert read_string(home) == first
    assert [p.name for p in home.iterdir()] == [FILE]
    assert new_string() != new_string()


def test_all_who_make_it_at_once_have_the_same(tmp_path):
    code = (
        "from pathlib import Path; from host.access import read_string; print(read_string(Path()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    assert len({maker.communicate()[0] for maker in makers}) == 1
    assert [maker.returncode for maker in makers] == [0, 0, 0]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_string_that_others_may_read_is_refused_with_the_fix(tmp_path, mode):
    path = string_file(tmp_path)
    path.chmod(mode)
    with pytest.raises(UserError, match=f"chmod 600 {path}"):
        read_string(tmp_path)
    path.chmod(0o600)
    assert read_string(tmp_path)


def test_an_empty_one_is_no_string(tmp_path):
    string_file(tmp_path).write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_string(tmp_path)


def test_it_reaches_prefects_settings_as_a_secret():
    from prefect.settings import get_current_settings, temporary_settings

    with temporary_settings(for_server("hpgr:zyxwvut", "http://127.0.0.1:1")):
        settings = get_current_settings()
        assert settings.api.auth_string.get_secret_value() == "hpgr:zyxwvut"
        assert settings.server.api.auth_string.get_secret_value() == "hpgr:zyxwvut"
        assert settings.server.api.cors_allowed_origins == "http://127.0.0.1:1"
        assert "zyxwvut" not in repr(settings)
        passed_on = settings.to_environment_variables(exclude_unset=True)
    assert passed_on["PREFECT_SERVER_API_AUTH_STRING"] == "hpgr:zyxwvut"
