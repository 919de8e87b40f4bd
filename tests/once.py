"""A folder that several processes of one test run read and one of them makes."""

import os
import shutil

from filelock import FileLock


def made_once(name, make, tmp_path_factory):
    """The folder `name` of this test run, filled by `make(folder)` in the process that is first."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed in the middle
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
