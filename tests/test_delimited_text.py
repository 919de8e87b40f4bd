"""Blocks that Arrow reads give what reading line by line gives; the oracle is the latter."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpgr.intake import delimited_text, dialect, raw_file
from hpgr.intake.delimited_text import Dialect, Malformed, PlainRows, pieces
from hpgr.intake.raw_file import Block, text_lines
from hpgr.intake.table_files import table_chunks
from hpgr.runtime import UserError

COLUMNS = {"user_id": "a", "item_id": "b", "timestamp": "c", "session_id": "a"}
HEADER = b"a,b,c\n"
BYTES = [b'"', b'""', b",", b"\n", b"\r", b"\r\n", b"\\", b" ", b"x", b"1", b"\x0b", b"null"]
WIDE = ["é", "\ufeff", "\u2028", "\x85"]
UNREADABLE = [b"\0", b"\xff"]
LINES = [
    b"u,i,1\n",
    b"v,,2\r\n",
    b"w,j k,3\n",
    b'"q","r",4\n',
    b'"s,t",u,5\n',
    b"short,5\n",
    b"l,o,n,g\n",
]
TEXTS = st.lists(
    st.sampled_from([*LINES[:3] * 8, *LINES, *BYTES, *(c.encode() for c in WIDE)]), max_size=25
).map(b"".join)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("texts") / "log.csv"


def one_by_one(path, encoding="utf-8"):
    yield Block(1, b"", text_lines(path, encoding))


def outcome(path, reading, rows):
    """The chunks of a file, or why it is refused."""
    try:
        return list(table_chunks(path, COLUMNS, rows, reading))
    except UserError as error:
        return str(error)


def compare(path, text, reading, rows, block_bytes):
    path.write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_file, "BLOCK_BYTES", block_bytes)
        found = outcome(path, reading, rows)
        for module in (delimited_text, dialect):
            patch.setattr(module, "text_blocks", one_by_one)
        expected = outcome(path, reading, rows)
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
        return
    assert [len(frame) for frame in found] == [len(frame) for frame in expected]
    if expected:
        pd.testing.assert_frame_equal(pd.concat(found), pd.concat(expected))


@settings(max_examples=150, deadline=None)
@example(b"u,i,1\n\xef\xbb\xbfu,i,2\n" * 9, "none", 3, 16)  # a mark that begins a block
@example(b"u,i,1\n\nv,i,2\n" * 3, "auto", 2, 14)
@example(b'u,"i\nj",1\nv,i,2\n' * 3, "auto", 2, 12)
@example(b'u,"i ""j""",1\n"a\\"",i,2\n' * 3, "doubled", 2, 20)
@example(b'"a\\"",i,2\n"u",\\,1\n' * 3, "backslash", 2, 20)
@example(b'"a\\\\",i,2\n"a\\","b",1\n' * 3, "backslash", 2, 30)
@example(b'u,i,1\nu,i,"1\n', "doubled", 2, 30)
@example(b'u,a"b,"c"\n"u"x,"b",1\n' * 3, "doubled", 2, 30)
@example(b"u,i\rj,1\n" * 3, "doubled", 2, 12)
@given(
    TEXTS,
    st.sampled_from(["auto", "doubled", "backslash", "none"]),
    st.integers(1, 7),
    st.integers(8, 60),
)
def test_blocks_of_any_size_read_as_single_lines(path, text, quoting, rows, block_bytes):
    compare(path, HEADER + text, quoting, rows, block_bytes)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.sampled_from(UNREADABLE), TEXTS, st.sampled_from(["auto", "none"]))
def test_a_text_that_cannot_be_read_is_refused_as_before(path, before, wrong, after, quoting):
    text = (before + wrong + after).replace(b'"', b"")
    compare(path, HEADER + text, quoting, 3, 24)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.booleans(), st.integers(8, 40))
def test_byte_order_marks_and_other_first_lines(path, text, has_mark, block_bytes):
    compare(path, raw_file.BOM * has_mark + b'"a",b,"c"\r\n' + text, "doubled", 4, block_bytes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([*LINES[:3] * 2, b":,x:,:\n", b"a,\x1f,1\n", b"\xe9,\xff,1\n", b"x\n"])
    ).map(b"".join),
    st.sampled_from([",", "::", "|"]),
    st.integers(8, 40),
)
def test_texts_without_a_header(path, text, separator, block_bytes):
    text = text.replace(b",", separator.encode())
    reading = Dialect(separator, "none", "latin-1", names=("a", "b", "c"))
    compare(path, text or b"u\n", reading, 4, block_bytes)


def test_only_blocks_with_something_unusual_are_read_line_by_line(path, monkeypatch):
    monkeypatch.setattr(raw_file, "BLOCK_BYTES", 600)
    lines = b"u,i,1\n" * 300 + b'"u","i,j",1\r\n' * 300
    path.write_bytes(HEADER + lines + b'u,"i ""j""",1\n' + lines)
    found = list(pieces(path, Dialect(",", "doubled"), 3))
    plain = [len(piece.cells) for piece in found if isinstance(piece, PlainRows)]
    single = len(found) - len(plain)
    assert sum(plain) + single == 1201
    assert 0 < single <= 100


def test_a_value_with_line_breaks_may_be_longer_than_a_block(path):
    lines = b"u,i,1\n" * 5
    compare(path, HEADER + b'u,"' + b"x,y\n" * 20 + b'",1\n' + lines, "doubled", 3, 16)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(8, 60), st.sampled_from(["doubled", "backslash"]))
def test_the_evidence_on_quotes_does_not_depend_on_blocks(path, text, block_bytes, quotes):
    path.write_bytes(HEADER + text)

    def evidence():
        found = dialect._Comparison()
        try:
            for piece in pieces(path, Dialect(",", quotes), 3):
                found.add(piece, ",", 3)
        except Malformed as malformed:
            return str(malformed)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_file, "BLOCK_BYTES", block_bytes)
        found = evidence()
        patch.setattr(delimited_text, "text_blocks", one_by_one)
        assert found == evidence()
