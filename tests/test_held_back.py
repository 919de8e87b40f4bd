"""Files with a secret are not kept with a version, wherever it stands; others are."""

import subprocess
from pathlib import Path

import pytest

from hpgr.registry.held_back import in_file
from hpgr.registry.worktree import apply, changes

AUTHOR = ("-c", "user.name=test", "-c", "user.email=test@localhost")
ROOT = Path(__file__).parents[1]
PLANTED = "hunter2-planted"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----\n"
DVC_CONFIG = f"['remote \"there\"']\n    url = s3://bucket/x\n    password = {PLANTED}\n"
SECRET = {
    ".env": f"ANY={PLANTED}\n",
    "deploy/.env.production": "x\n",
    "server.pem": KEY,
    "ssh/id_rsa": KEY,
    ".aws/config": "[default]\n",
    ".netrc": "x\n",
    "environment/credentials.json": "{}\n",
    ".dvc/config": DVC_CONFIG,
    ".dvc/config.local": "x\n",
    "notes.txt": f"db_password: {PLANTED}\n",
    "setup.sh": f"export MLFLOW_TRACKING_TOKEN={PLANTED}\n",
    "code.py": f'connect("http://me:{PLANTED}@host")\n',
    "module.py": f'PASSWORD = "{PLANTED}"\n',
    "settings.yaml": f"a: 1\nsecret_access_key: {PLANTED}\n",
    "aws.md": "uses AKIAIOSFODNN7EXAMPLE\n",
    "key.txt": KEY,
    "query.toml": f'url = "https://host/?token={PLANTED}"\n',
    "packages.lock": f"x @ git+https://{PLANTED}@github.com/me/x\n",
    "wide.ini": f"password = {PLANTED}\n".encode("utf-16"),
    "dump.bin": b"\0\1\2" + f"http://me:{PLANTED}@host".encode() + bytes(range(256)),
}
HARMLESS = {
    "form.py": "def log_in(password=None):\n    return send(password=password, token=token)\n",
    "place.py": 'token = os.environ["MLFLOW_TRACKING_TOKEN"]\nurl = f"http://{user}:{pw}@host"\n',
    "names.py": 'PASSWORD = "MLFLOW_TRACKING_PASSWORD"\nbatch_tokens = 16384\n',
    "example.md": "Set `MLFLOW_TRACKING_URI=https://user:password@host`; the password is masked.\n",
    "model.yaml": "batch_tokens: 16384\nkey: user_id\nauthor: me@example.org\n",
    "remote.ini": "url = s3://bucket/path\nurl2 = ssh://git@host/x\ndb = postgresql://me@host/db\n",
    "where.sh": 'export PASSWORD="$1"\nTOKEN=${TOKEN:-}\n',
    ".env.example": "POSTGRES_PASSWORD=\n",
}


def git(*arguments, cwd=None):
    subprocess.run(["git", *AUTHOR, *arguments], cwd=cwd, capture_output=True, check=True)


def put(files):
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    folder = tmp_path / "tree"
    folder.mkdir()
    monkeypatch.chdir(folder)
    put({"kept.py": "x = 1\n", ".dvc/config": "[core]\n", "old.ini": "a = 1\n"})
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "start")
    return folder


@pytest.mark.parametrize("name", SECRET)
def test_a_file_with_a_secret_is_held_back_and_named_with_the_reason(tree, name):
    put({name: SECRET[name], "kept.py": "x = 2\n", "new.py": "y = 1\n"})
    found = changes(without=[])
    assert list(found.held_back) == [name]
    assert found.new == ["new.py"]
    assert name.encode() not in found.patch and b"x = 2" in found.patch
    assert PLANTED not in found.held_back[name]


@pytest.mark.parametrize("name", HARMLESS)
def test_a_file_that_only_speaks_of_secrets_is_kept(tree, name):
    put({name: HARMLESS[name]})
    found = changes(without=[])
    assert (found.new, found.held_back) == ([name], {})


def test_the_reason_names_the_line(tree):
    put({"settings.yaml": SECRET["settings.yaml"]})
    assert "line 2" in changes(without=[]).held_back["settings.yaml"]


def test_a_changed_line_is_found_in_a_long_file_and_others_of_it_do_not_matter(tree):
    lines = [f"line{n} = {n}\n" for n in range(100)]
    put({"long.ini": "".join([f"password = {PLANTED}\n", *lines])})
    git("add", "-A")
    git("commit", "-qm", "a secret that git has already")
    lines[90] = "line90 = 0\n"
    put({"long.ini": "".join([f"password = {PLANTED}\n", *lines])})
    assert changes(without=[]).held_back == {}
    lines[95] = f"token = {PLANTED}\n"
    put({"long.ini": "".join([f"password = {PLANTED}\n", *lines])})
    assert "line 97" in changes(without=[]).held_back["long.ini"]


def test_a_secret_that_was_taken_out_is_not_in_the_patch_either(tree):
    put({"old.ini": f"password = {PLANTED}\n"})
    git("commit", "-qam", "with it")
    put({"old.ini": "a = 1\n"})
    found = changes(without=[])
    assert list(found.held_back) == ["old.ini"] and found.patch == b""


def test_a_secret_of_the_environment_is_known_in_any_file(tree, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PLANTED)
    put({"words.py": f"# remember {PLANTED}\n"})
    assert list(changes(without=[]).held_back) == ["words.py"]


def test_a_link_in_place_of_a_file_does_not_shift_the_others(tree):
    Path("kept.py").unlink()
    Path("kept.py").symlink_to("old.ini")
    put({"old.ini": "a = 2\n", "z.ini": f"password = {PLANTED}\n"})
    found = changes(without=[])
    assert list(found.held_back) == ["z.ini"]
    assert b"a = 2" in found.patch and b"120000" in found.patch


def test_the_rest_of_the_patch_can_be_applied(tree, tmp_path):
    put({**SECRET, "kept.py": "x = 2\n", "new.bin": bytes(range(256)), "old.ini": "a = 2\n"})
    (tmp_path / "patch").write_bytes(changes(without=[]).patch)
    git("stash", "-q", "--include-untracked")
    assert apply(tmp_path / "patch")
    assert Path("kept.py").read_text() == "x = 2\n"
    assert Path("new.bin").read_bytes() == bytes(range(256))
    assert not Path(".env").exists() and Path(".dvc/config").read_text() == "[core]\n"


def test_none_of_this_projects_code_is_held_back():
    for path in (p for name in ("hpgr", "flows", "host") for p in (ROOT / name).rglob("*.py")):
        assert in_file(path) is None, path
    for name in ("params.yaml", "requirements.lock", "data.dvc", "dvc.yaml"):
        assert in_file(ROOT / name) is None, name
