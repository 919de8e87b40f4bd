"""A raw file before it is parsed: that it is there, that it is text, and its lines one by one.

Reads: the paths it is given. Writes: nothing. What cannot be a table is refused by what its first
bytes say it is, and no line is read beyond MAX_LINE characters, so that a file of any size and
content costs a bounded amount of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hpgr.runtime import UserError

PARQUET = (".parquet", ".pq")
MAX_LINE = 1 << 20  # characters; the longest honest line is a thousand times shorter
HEAD_BYTES = 4096
UNPACK = "unpack it, and name the file inside"
FOREIGN = (  # first bytes, what they say, what to do
    (b"PAR1", "a Parquet file", f"give it the suffix {PARQUET[0]}"),
    (b"\x1f\x8b", "compressed with gzip", UNPACK),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", f"{UNPACK}, or export the sheet as CSV"),
    (b"BZh", "compressed with bzip2", UNPACK),
    (b"\xfd7zXZ", "compressed with xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
)


def require_file(path: Path, absent: str) -> None:
    """Refuse a path that is no readable file; `absent` says what to do where nothing is there.

    Raises:
        UserError: it is missing, a folder, a link to nothing, or a device.
    """
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file: name the file inside it")
    if path.is_symlink():
        raise UserError(
            f"{path} is a link to {path.readlink()}, which does not exist: "
            "bring that file back, or put a copy in the link's place"
        )
    if path.exists():
        raise UserError(f"{path} is neither a file nor a folder: save what it gives to a file")
    raise UserError(f"{path} not found: {absent}")


def require_text(path: Path) -> None:
    """Refuse a file whose beginning is not that of a text in one byte a character or UTF-8.

    Raises:
        UserError: it is compressed, an archive, Parquet, UTF-16 or binary.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    for mark, what, cure in FOREIGN:
        if head.startswith(mark):
            raise UserError(f"{path} is {what}, expected text: {cure}")
    if head.count(0) > len(head) // 3:
        if any(head):  # every other byte of Latin letters is 0
            raise UserError(f"{path} is UTF-16 text or binary: save it as UTF-8")
        raise UserError(f"{path} holds NUL bytes only: a write was cut off; export it anew")


def lines(path: Path, encoding: str, newline: str = "") -> Iterator[str]:
    """Lines of a text file with their ends, as `open(newline=...)` cuts them.

    Raises:
        UserError: the file is no text in `encoding`, or a line has no end or holds a NUL byte.
    """
    require_text(path)
    number = 0
    with path.open(encoding=encoding, newline=newline) as file:
        try:
            while line := file.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE and not line.endswith(("\n", "\r")):
                    raise UserError(
                        f"{path}, line {number} is longer than {MAX_LINE:,} characters: "
                        "expected one row a line; look for lost line breaks"
                    )
                if "\0" in line:
                    raise UserError(
                        f"{path}, line {number} holds a NUL byte: the file is damaged or no text; "
                        "export it anew"
                    )
                yield line
        except UnicodeDecodeError as error:
            name = encoding.removesuffix("-sig").upper()
            raise UserError(
                f"{path} is not {name} text: save it as {name}; "
                f"`hpgr doctor {path}` shows the lines"
            ) from error
