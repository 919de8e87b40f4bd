"""A raw file before it is parsed: check that it is readable text, and yield its lines.

The first bytes of a file show whether it can be a table, and no line is read beyond MAX_LINE
characters: a file of any size and content costs a bounded amount of memory. Reads the paths it is
given, writes nothing.
"""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from hpgr.runtime import UserError

PARQUET = (".parquet", ".pq")
MAX_LINE = 1 << 20  # characters; the longest honest line is a thousand times shorter
BLOCK_BYTES = 1 << 18  # below MAX_LINE, so that no line of a block can be too long
HEAD_BYTES = 4096
BOM = b"\xef\xbb\xbf"
UNPACK = "unpack it, and name the file inside"
FOREIGN = (  # first bytes, what they mean, what to do
    (b"PAR1", "a Parquet file", f"give it the suffix {PARQUET[0]}"),
    (b"\x1f\x8b", "compressed with gzip", UNPACK),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", f"{UNPACK}, or export the sheet as CSV"),
    (b"BZh", "compressed with bzip2", UNPACK),
    (b"\xfd7zXZ", "compressed with xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
)
PART_NAME = re.compile(r"part[-.]|data_\d")  # Spark and Dask; DuckDB
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # how Spark and Hive spell a partition of no value


class Absent(UserError):
    """Nothing is where a file or folder is expected."""


def require_path(path: Path, absent: str) -> None:
    """Refuse a path that is neither a readable file nor a readable folder, without reading it.

    `absent` is the advice if nothing is there.

    Raises:
        Absent: nothing is there.
        UserError: it is a link to nothing, a device, a pipe, or may not be read.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            next(path.iterdir(), None)
        elif stat.S_ISREG(kind):
            path.open("rb").close()
        else:
            raise UserError(f"{path} is neither a file nor a folder: save what it gives to a file")
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise UserError(
                f"{path} is a link to {path.readlink()}, which does not exist: "
                "bring that file back, or put a copy in the link's place"
            ) from None
        raise Absent(f"{path} not found: {absent}") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): allow this user to read it, or name another"
        ) from error


def require_file(path: Path, absent: str) -> None:
    """Refuse a path that is not a readable file; see `require_path`.

    Raises:
        UserError: as there, or it is a folder.
    """
    require_path(path, absent)
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file: name the file inside it")


def parts_of(path: Path) -> list[Path]:
    """The data files of a table: the file itself, or those of a folder of parts, by name.

    A folder of parts is laid out as by Spark: files in it and in folders such as `date=2020-01-01`.
    Names that begin with "_" or "." are ignored.

    Raises:
        UserError: a file cannot be read, or the folder holds none.
    """
    if not path.is_dir():
        return [path]
    found = [
        file
        for file in sorted(path.rglob("*"))
        if not any(name.startswith(("_", ".")) for name in file.relative_to(path).parts)
        and not file.is_dir()
        # Spark writes no header where a part of text has no row.
        and not (file.is_file() and file.suffix not in PARQUET and file.stat().st_size == 0)
    ]
    if not found:
        raise UserError(
            f"{path} is a folder without data files: expected one file, or parts such as "
            "part-00000.parquet"
        )
    for file in found:
        require_path(file, "correct the path")
    return found


def holds_parts(path: Path) -> bool:
    """Return True if the names in the folder `path` are those that engines give to parts."""
    if not path.is_dir():
        return False
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(("_", "."))]
    return bool(names) and all(
        PART_NAME.match(name) or ("=" in name and (path / name).is_dir()) for name in names
    )


def partition_of(part: Path, table: Path) -> dict[str, str]:
    """Columns and values in the names of the folders between `table` and its file `part`."""
    pairs = (name.partition("=") for name in part.relative_to(table).parts[:-1] if "=" in name)
    values = {unquote(key): unquote(value) for key, _, value in pairs}
    return {key: "" if value == NO_PARTITION else value for key, value in values.items()}


def require_text(path: Path) -> None:
    """Refuse a file that does not begin as text in UTF-8 or in one byte per character.

    Raises:
        UserError: it is not a file, compressed, an archive, Parquet, UTF-16 or binary.
    """
    require_file(path, "correct the path")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    for mark, what, fix in FOREIGN:
        if head.startswith(mark):
            raise UserError(f"{path} is {what}, expected text: {fix}")
    if head.count(0) > len(head) // 3:
        if any(head):  # every other byte of Latin letters is 0
            raise UserError(f"{path} is UTF-16 text or binary: save it as UTF-8")
        raise UserError(f"{path} holds NUL bytes only: a write was cut off; export it again")


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text file without byte order mark.

    Each has its end: LF, CR LF or a lone CR. The last line gets one if it has none.

    Raises:
        UserError: the file is not text in `encoding`, a line is too long or holds a NUL byte.
    """
    require_text(path)
    number = 0
    try:
        codec = "utf-8-sig" if encoding == "utf-8" else encoding
        with path.open(encoding=codec, newline="") as file:
            while line := file.readline(MAX_LINE):
                number += 1
                if line[-1] not in "\r\n":
                    if len(line) == MAX_LINE:
                        raise UserError(
                            f"{path}, line {number} is longer than {MAX_LINE:,} characters: "
                            "expected one row a line; look for lost line breaks"
                        )
                    line += "\n"
                if "\0" in line:
                    raise UserError(
                        f"{path}, line {number} holds a NUL byte: the file is damaged or not text; "
                        "export it again"
                    )
                yield line
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not {encoding.upper()} text: save it as {encoding.upper()}; "
            f"`hpgr doctor {path}` shows the lines"
        ) from error


class Block(NamedTuple):
    """Whole lines of a text file.

    Attributes:
        line: number of the first, from 1.
        raw: their bytes without a byte order mark; the last ends with LF or CR. Empty if something
            behind `line` cannot be read, so that only reading line by line shows what.
        lines: as `text_lines` gives them. An iterator: it can be read once.
    """

    line: int
    raw: bytes
    lines: Iterator[str]


def text_blocks(path: Path, encoding: str = "utf-8") -> Iterator[Block]:
    """The lines of a text file in blocks of at most BLOCK_BYTES; see `text_lines`.

    Raises:
        UserError: as there, once the lines of the last block are read.
    """
    require_text(path)
    number, rest, is_last = 1, b"", False
    with path.open("rb") as file:
        while not is_last:
            raw = rest + file.read(BLOCK_BYTES - len(rest))
            is_last = len(raw) < BLOCK_BYTES
            end = len(raw) if is_last else raw.rfind(b"\n") + 1
            raw, rest = raw[:end], raw[end:]
            if b"\0" in raw or len(rest) == BLOCK_BYTES or not _decodes(raw, encoding):
                yield Block(number, b"", islice(text_lines(path, encoding), number - 1, None))
                return
            if number == 1 and encoding == "utf-8":
                raw = raw.removeprefix(BOM)
            if raw and raw[-1:] not in b"\r\n":
                raw += b"\n"
            yield Block(number, raw, _lines(raw, encoding))
            number += raw.count(b"\n") + lone_returns(raw)


def lone_returns(raw: bytes) -> int:
    """Number of lines that end with CR alone."""
    return raw.count(b"\r") - raw.count(b"\r\n") if b"\r" in raw else 0


def _decodes(raw: bytes, encoding: str) -> bool:
    try:
        return raw.isascii() or raw.decode(encoding) is not None
    except UnicodeDecodeError:
        return False


def _lines(raw: bytes, encoding: str) -> Iterator[str]:
    yield from io.StringIO(raw.decode(encoding), newline="")
