"""The patch of a changed working tree: byte by byte, whatever a person's git is set to."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hpgr.registry import worktree
from hpgr.registry.worktree import apply, changes
from hpgr.runtime import UserError

AUTHOR = ("-c", "user.name=test", "-c", "user.email=test@localhost")
SETTINGS = {  # a person's, each of which changes what `git diff` or `git apply` does
    "diff.noprefix": "true",
    "diff.mnemonicPrefix": "true",
    "diff.external": "/bin/false",
    "diff.context": "0",
    "diff.relative": "true",
    "color.ui": "always",
    "core.quotePath": "false",
    "apply.whitespace": "fix",
    "status.showUntrackedFiles": "no",
}
COMMITTED = {
    "__init__.py": b"",
    "code.py": b"WIDTH = 16\n",
    "gone.py": b"pass\n",
    "text/crlf.csv": b"a\r\nb\r\n",
    "text/latin.txt": b"caf\xe9\n",
    "zz.bin": bytes(range(256)) * 8,
    ".gitignore": b"ignored/\n",
}


def git(*arguments, cwd=None):
    done = subprocess.run(["git", *AUTHOR, *arguments], cwd=cwd, capture_output=True, check=True)
    return done.stdout.decode().strip()


def files(folder):
    """Every file but git's own: bytes and mode, or where a link leads."""
    paths = [p for p in folder.rglob("*") if ".git" not in p.relative_to(folder).parts]
    return {
        str(p.relative_to(folder)): p.readlink()
        if p.is_symlink()
        else (p.read_bytes(), p.stat().st_mode & 0o111)
        for p in sorted(paths)
        if p.is_symlink() or p.is_file()
    }


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    for name, content in COMMITTED.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    git("init", "-q", cwd=folder)
    git("add", "-A", cwd=folder)
    git("commit", "-qm", "start", cwd=folder)
    return folder


@pytest.fixture
def tree(template, tmp_path, monkeypatch):
    """A committed working tree, which is the current folder."""
    shutil.copytree(template, tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")
    return Path()


@pytest.fixture
def brought_back(template, tmp_path, monkeypatch):
    """Apply a patch in another clone, and return that clone's files."""

    def bring(patch, **settings):
        clone = tmp_path / "clone"
        shutil.copytree(template, clone)
        for name, value in settings.items():
            git("config", name, value, cwd=clone)
        (tmp_path / "changes.patch").write_bytes(patch)
        with monkeypatch.context() as inside:
            inside.chdir(clone)
            assert apply(tmp_path / "changes.patch")
        return files(clone)

    return bring


EDITS = {
    "a changed line": lambda: Path("code.py").write_bytes(b"WIDTH = 32  \n"),
    "no line end at the end": lambda: Path("code.py").write_bytes(b"WIDTH = 32"),
    "empty lines at the end": lambda: Path("code.py").write_bytes(b"WIDTH = 32\n\n\n"),
    "a file that is gone": lambda: Path("gone.py").unlink(),
    "a script": lambda: Path("code.py").chmod(0o755),
    "CRLF": lambda: Path("text/crlf.csv").write_bytes(b"a\r\nc\r\n"),
    "CRLF in place of LF": lambda: Path("code.py").write_bytes(b"WIDTH = 16\r\n"),
    "not UTF-8": lambda: Path("text/latin.txt").write_bytes(b"caf\xe8\n"),
    "a binary file at the end": lambda: Path("zz.bin").write_bytes(bytes(range(255, -1, -1)) * 8),
    "a new module": lambda: (Path("new").mkdir(), Path("new/module.py").write_text("x = 1\n")),
    "a new empty file": lambda: Path("empty").touch(),
    "a new binary file": lambda: Path("zzz.bin").write_bytes(bytes(range(256))),
    "a new name with signs": lambda: Path(":!odd *[é]\n.txt").write_text("x\n"),
    "a new name that is not UTF-8": lambda: Path(os.fsdecode(b"caf\xe9.txt")).write_text("x\n"),
    "a new link": lambda: Path("link").symlink_to("code.py"),
    "a new file that is staged": lambda: (Path("s.py").touch(), git("add", "s.py")),
    "a file out of the index": lambda: (
        git("rm", "-q", "--cached", "code.py", "gone.py"),
        Path("code.py").write_text("WIDTH = 32\n"),
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_changed_tree_comes_back_byte_by_byte(tree, brought_back, edit):
    EDITS[edit]()
    assert brought_back(changes(without=[]).patch) == files(tree)


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_of_a_person_changes_the_patch(tree, brought_back, setting):
    for edit in ("a changed line", "a binary file at the end", "a new module"):
        EDITS[edit]()
    git("config", setting, SETTINGS[setting])
    assert brought_back(changes(without=[]).patch, **{setting: SETTINGS[setting]}) == files(tree)


def test_what_git_ignores_is_kept_only_where_it_was_added_by_force(tree):
    Path("ignored").mkdir()
    for name in ("ignored/a", "ignored/b"):
        Path(name).write_text(name)
    git("add", "--force", "ignored/b")
    assert changes(without=[]).new == ["ignored/b"]


def test_what_is_kept_in_another_way_is_not_in_the_patch(tree):
    Path("code.py").write_text("WIDTH = 32\n")
    Path("dvc.lock").write_text("new\n")
    assert changes(without=["code.py", "dvc.lock"]) == (b"", [], [], {})


def test_new_files_beyond_the_limit_are_named_and_nothing_of_them_is_stored(tree, monkeypatch):
    monkeypatch.setattr(worktree, "NEW_FILES", 100)
    for name, size in {"small": 40, "middle": 60, "large": 61}.items():
        Path(name).write_bytes(b"x" * size)
    Path("inner").mkdir()
    git("init", "-q", "inner")
    (tree / "inner/file").touch()
    before = sorted(Path(".git/objects").rglob("*")), Path(".git/index").read_bytes()
    found = changes(without=[])
    assert (found.new, found.left_out) == (["middle", "small"], ["inner/", "large"])
    assert b"large" not in found.patch
    assert (sorted(Path(".git/objects").rglob("*")), Path(".git/index").read_bytes()) == before


def test_an_unchanged_tree_has_no_patch(tree):
    assert changes(without=[]) == (b"", [], [], {})


def test_outside_git_there_is_nothing_to_differ_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "code.py").touch()
    assert changes(without=[]) == (b"", [], [], {})


def test_a_patch_that_is_applied_already_is_left_alone(tree, tmp_path):
    EDITS["a new module"]()
    (tmp_path / "p").write_bytes(changes(without=[]).patch)
    before = files(tree)
    assert not apply(tmp_path / "p")
    assert files(tree) == before


def test_a_patch_that_does_not_fit_changes_nothing_and_names_the_file(tree, tmp_path):
    EDITS["a new module"]()
    EDITS["a changed line"]()
    (tmp_path / "p").write_bytes(changes(without=[]).patch)
    Path("new/module.py").write_text("mine\n")
    git("checkout", "-q", "code.py")
    before = files(tree)
    with pytest.raises(UserError, match=r"new/module\.py.*Nothing was changed"):
        apply(tmp_path / "p")
    assert files(tree) == before
