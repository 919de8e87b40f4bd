"""Low-level errors get a message, in whatever words a library reports them."""

import importlib.util
import py_compile
from importlib.machinery import SourceFileLoader
from pathlib import Path

from hpgr import failure

SOURCE = "NAMES = ('a', 1, 2.5)\n\ndef twice(number):\n    return 2 * number\n"
HEADER = 16  # bytes before the code; Python compiles again where even these are missing


def test_a_compiled_module_that_is_cut_off_anywhere_is_recognised(tmp_path, monkeypatch):
    monkeypatch.setattr(failure, "CODE", tmp_path)
    source = tmp_path / "module_that_is_cut.py"
    source.write_text(SOURCE)
    py_compile.compile(str(source), doraise=True)
    compiled = Path(importlib.util.cache_from_source(str(source)))
    whole = compiled.read_bytes()
    unrecognised = []
    for length in range(HEADER, len(whole)):
        compiled.parent.mkdir(exist_ok=True)
        compiled.write_bytes(whole[:length])
        try:
            SourceFileLoader("module_that_is_cut", str(source)).get_code("module_that_is_cut")
        except Exception as error:
            message = failure.describe(error, tmp_path / "output")
            if message is None or "cut off" not in message or compiled.exists():
                unrecognised.append((length, error))
    assert unrecognised == []


def test_an_end_of_input_elsewhere_is_not_a_compiled_module(tmp_path, monkeypatch):
    monkeypatch.setattr(failure, "CODE", tmp_path)
    monkeypatch.chdir(tmp_path)
    try:
        raise EOFError("marshal data too short")
    except EOFError as error:
        assert failure.describe(error, tmp_path / "output") is None
