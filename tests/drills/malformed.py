"""Malformed logs, one function a case, and what the project must make of each.

A case writes into an empty raw folder and returns the changes of the data section. It ends in one
of three ways: every row is accepted, rows go to quarantine for the reasons named, or the log is
refused with a message that holds the words named. The oracle is the contract as
docs/your-own-data.md tells it, spelled out here by hand.
"""

from __future__ import annotations

import gzip
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from own_log import START, good_rows

HEADER = "user_id,item_id,timestamp"
GOOD = [",".join(map(str, row)) for row in good_rows(60)]
PARQUET = {"interactions": "log.parquet"}
NOT_WHOLE = "timestamp is not a whole number"
TOO_FINE = "timestamp is in milliseconds or finer"
TOO_EARLY = "timestamp is too early"
FUTURE = "timestamp is in the future"
FIELDS = "wrong number of fields"


@dataclass(frozen=True)
class Case:
    """One malformed log.

    `refused` are words of the refusal, `doctor` words that one line of the doctor's must hold
    (those of the refusal by default); `reasons` the quarantined rows by reason; `accepted` the
    rows that go on, `events` what the first of them must be.
    """

    write: Callable[[Path], dict[str, Any] | None]
    refused: tuple[str, ...] = ()
    reasons: dict[str, int] | None = None
    accepted: int | None = None
    events: tuple[tuple[Any, ...], ...] = ()
    doctor: tuple[str, ...] = ()


CASES: dict[str, Case] = {}


def case(**verdict: Any) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Enter the decorated function under its name."""

    def enter(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
        CASES[write.__name__] = Case(write, **verdict)
        return write

    return enter


def text(folder: Path, *lines: str, name: str = "log.csv") -> None:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")


def log(folder: Path, *lines: str) -> None:
    """The good rows, then `lines`."""
    text(folder, HEADER, *GOOD, *lines)


def parquet(folder: Path, **columns: Any) -> dict[str, Any]:
    """Sixty good rows with some columns replaced."""
    user, item, stamp = (pa.array(column) for column in zip(*good_rows(60), strict=True))
    table = {"user_id": user, "item_id": item, "timestamp": stamp, **columns}
    pq.write_table(pa.table(table), folder / "log.parquet")
    return PARQUET


# --- time -------------------------------------------------------------------------------------


@case(accepted=60, reasons={TOO_FINE: 1})
def milliseconds(folder):
    log(folder, f"u,i,{START}000")


@case(accepted=60, reasons={TOO_FINE: 1})
def microseconds(folder):
    log(folder, f"u,i,{START}000000")


@case(accepted=60, reasons={TOO_FINE: 1})
def nanoseconds(folder):
    log(folder, f"u,i,{START}000000000")


@case(refused=("60 x " + TOO_FINE, "divide by 1000"), doctor=(TOO_FINE,))
def all_in_milliseconds(folder):
    text(folder, HEADER, *(f"{line}000" for line in GOOD))


@case(accepted=60, reasons={NOT_WHOLE: 3}, doctor=("timestamp is a date", "to_datetime"))
def iso_times_in_mixed_zones(folder):
    moments = ("2020-09-13T12:26:40Z", "2020-09-13T14:26:40+02:00", "2020-09-13 12:26:40")
    log(folder, *(f"u,i,{moment}" for moment in moments))


@case(accepted=60, reasons={NOT_WHOLE: 1}, doctor=("epoch seconds with a fraction", "cut"))
def fraction_of_a_second(folder):
    log(folder, f"u,i,{START}.25")


@case(accepted=60, reasons={NOT_WHOLE: 1}, doctor=("scientific notation", "spreadsheet"))
def time_in_scientific_notation(folder):
    log(folder, "u,i,1.6E+09")


@case(accepted=60, reasons={TOO_EARLY: 1})
def negative_time(folder):
    log(folder, "u,i,-1")


@case(accepted=60, reasons={TOO_EARLY: 1})
def time_zero(folder):
    log(folder, "u,i,0")


@case(accepted=60, reasons={FUTURE: 1})
def time_in_the_future(folder):
    log(folder, f"u,i,{int(time.time()) + 10 * 86400}")


@case(accepted=60, reasons={"timestamp is missing": 4})
def times_that_are_empty_or_not_a_number(folder):
    log(folder, "u,i,", "u,j,NaN", "u,k,null", "u,l,  ")


@case(accepted=60, reasons={NOT_WHOLE: 3}, doctor=("no number",))
def infinite_times(folder):
    log(folder, "u,i,inf", "u,j,-Infinity", "u,k,1e999")


@case(accepted=60, reasons={TOO_FINE: 1})
def time_of_five_thousand_digits(folder):
    log(folder, f"u,i,{'9' * 5000}")


@case(accepted=60, reasons={NOT_WHOLE: 1}, doctor=("no number",))
def time_in_other_digits(folder):
    log(folder, "u,i,١٦٠٠٠٠٠٠٠٠")  # Arabic-Indic: a number to Unicode, not to the contract


@case(accepted=60, reasons={NOT_WHOLE: 2}, doctor=("no number",))
def time_with_thousands_separators_or_sign(folder):
    log(folder, 'u,i,"1,600,000,000"', "u,j,+1600000000")


@case(accepted=60, reasons={NOT_WHOLE: 1}, doctor=("no number", f"' {START} '"))
def time_with_spaces_around(folder):
    log(folder, f"u,i, {START} ")


# --- ids --------------------------------------------------------------------------------------


@case(accepted=62, events=(("1" + "0" * 30, "i", START),))
def huge_number_as_id(folder):
    text(folder, HEADER, f"1{'0' * 30},i,{START}", f"1{'0' * 29}1,i,{START}", *GOOD)


@case(accepted=61, events=(("x" * 10_000, "i", START),))
def id_of_ten_thousand_letters(folder):
    text(folder, HEADER, f"{'x' * 10_000},i,{START}", *GOOD)


@case(accepted=62, events=(("007", "0010", START), ("7", "10", START)))
def leading_zeros_stay(folder):
    text(folder, HEADER, f"007,0010,{START}", f"7,10,{START}", *GOOD)


@case(accepted=62, events=(("1e3", "2E-1", START), ("1000", "0.2", START)))
def scientific_notation_in_ids_stays(folder):
    text(folder, HEADER, f"1e3,2E-1,{START}", f"1000,0.2,{START}", *GOOD)


@case(accepted=63, events=(("Ann", "i", START), ("ann", "i", START), (" Ann", "i", START)))
def ids_that_differ_by_case_or_spaces(folder):
    text(folder, HEADER, f"Ann,i,{START}", f"ann,i,{START}", f" Ann,i,{START}", *GOOD)


@case(accepted=61, events=(("日本 🎬", "'; DROP TABLE log; --", START),))
def ids_of_any_script(folder):
    text(folder, HEADER, f"日本 🎬,'; DROP TABLE log; --,{START}", *GOOD)


@case(accepted=60, reasons={"user_id is missing": 1, "item_id is missing": 1})
def missing_ids(folder):
    log(folder, f",i,{START}", f"u,None,{START}")


@case(accepted=60, events=(("0", "0", START),))
def float_ids_of_parquet_lose_their_point(folder):
    numbers = pa.array([float(n) for n in range(60)])
    return parquet(folder, user_id=numbers, item_id=numbers)


# --- text -------------------------------------------------------------------------------------


@case(accepted=60, events=(("u0", "i0", START),))
def utf8_byte_order_mark(folder):
    (folder / "log.csv").write_bytes(b"\xef\xbb\xbf" + "\n".join([HEADER, *GOOD]).encode())


@case(refused=("UTF-16", "save it as UTF-8"))
def utf16(folder):
    (folder / "log.csv").write_text("\n".join([HEADER, *GOOD]), encoding="utf-16")


@case(refused=("UTF-16", "save it as UTF-8"))
def utf16_without_mark(folder):
    (folder / "log.csv").write_text("\n".join([HEADER, *GOOD]), encoding="utf-16-le")


@case(accepted=60, events=(("u0", "i0", START),))
def windows_line_ends(folder):
    (folder / "log.csv").write_bytes("\r\n".join([HEADER, *GOOD, ""]).encode())


@case(accepted=60, events=(("u0", "i0", START),))
def old_mac_line_ends(folder):
    (folder / "log.csv").write_bytes("\r".join([HEADER, *GOOD, ""]).encode())


@case(accepted=60, events=(("u0", "i0", START),))
def line_ends_mixed(folder):
    ends = ("\n", "\r\n", "\r")
    lines = (line + ends[n % 3] for n, line in enumerate([HEADER, *GOOD]))
    (folder / "log.csv").write_bytes("".join(lines).encode())


@case(accepted=60, events=(("u0", "i0", START),))
def no_line_end_at_the_end(folder):
    (folder / "log.csv").write_text("\n".join([HEADER, *GOOD]))


@case(refused=("never closed", "line 62"))
def quote_that_is_never_closed(folder):
    text(folder, HEADER, *GOOD, f'u,"i,{START}', *(f"{line}" for line in GOOD * 100))


@case(accepted=61, events=(('say "hi", twice\nor so', "i", START),))
def quoted_separators_quotes_and_line_breaks(folder):
    text(folder, HEADER, f'"say ""hi"", twice\nor so",i,{START}', *GOOD)


@case(refused=("log.csv", "not UTF-8"), doctor=("line 62", "not UTF-8", "byte EB"))
def latin1(folder):
    (folder / "log.csv").write_bytes("\n".join([HEADER, *GOOD, f"Zoë,i,{START}"]).encode("latin-1"))


@case(refused=("NUL", "line 62"))
def nul_inside(folder):
    (folder / "log.csv").write_bytes("\n".join([HEADER, *GOOD, f"u\0,i,{START}"]).encode())


@case(refused=("log.csv", "NUL"))
def zero_bytes_only(folder):
    (folder / "log.csv").write_bytes(bytes(4096))


@case(refused=("is empty", "header"))
def empty_file(folder):
    (folder / "log.csv").touch()


@case(refused=("is empty", "header"))
def blank_lines_only(folder):
    (folder / "log.csv").write_text("\n\n\n")


@case(refused=("no rows",))
def header_alone(folder):
    text(folder, HEADER)


@case(refused=("'item_id'", "more than once"), doctor=("repeated column", "item_id"))
def repeated_header(folder):
    text(folder, "user_id,item_id,timestamp,item_id", f"u,i,{START},j")


@case(refused=("'timestamp'", "did you mean 'time_stamp'"), doctor=("missing column", "time_stamp"))
def missing_column(folder):
    text(folder, "user_id,item_id,time_stamp", *GOOD)


@case(refused=("lacks 3", "It has: u0, i0"), doctor=("missing column",))
def no_header(folder):
    text(folder, *GOOD)


@case(accepted=60, events=(("u0", "i0", START),))
def further_columns(folder):
    text(folder, f"extra,{HEADER},more", *(f"x,{line},y" for line in GOOD))


@case(accepted=60, reasons={FIELDS: 1, f"{FIELDS}; timestamp is missing": 1}, doctor=(FIELDS,))
def ragged_rows(folder):
    log(folder, "u,i", f"u,i,{START},more")


@case(refused=("no row is accepted", "60 x " + FIELDS), doctor=(FIELDS,))
def another_separator_than_the_header(folder):
    text(folder, HEADER, *(line.replace(",", ";") for line in GOOD))


@case(refused=("no row is accepted", "60 x " + NOT_WHOLE), doctor=("no number",))
def every_row_bad(folder):
    text(folder, HEADER, *(f"u,i{n},yesterday" for n in range(60)))


@case(refused=("gzip", "unpack"))
def compressed_under_a_text_name(folder):
    (folder / "log.csv").write_bytes(gzip.compress("\n".join([HEADER, *GOOD]).encode()))


@case(refused=("gzip", "unpack"))
def truncated_gzip(folder):
    packed = gzip.compress("\n".join([HEADER, *GOOD]).encode())
    (folder / "log.csv.gz").write_bytes(packed[: len(packed) // 2])
    return {"interactions": "log.csv.gz"}


@case(refused=("zip", "unpack"))
def spreadsheet(folder):
    (folder / "log.xlsx").write_bytes(b"PK\x03\x04" + bytes(200))
    return {"interactions": "log.xlsx"}


@case(refused=("Parquet", ".parquet"))
def parquet_under_a_text_name(folder):
    parquet(folder)
    (folder / "log.parquet").rename(folder / "log.csv")


# --- what is copied, few or many ----------------------------------------------------------------


@case(refused=("59 x exact duplicate", "drop the copies"), doctor=("exact duplicate",))
def the_same_event_over_and_over(folder):
    text(folder, HEADER, *[GOOD[0]] * 60)


@case(accepted=60)
def one_user(folder):
    text(folder, HEADER, *(f"u,i{n},{START + n}" for n in range(60)))


@case(accepted=60)
def one_item(folder):
    text(folder, HEADER, *(f"u{n},i,{START + n}" for n in range(60)))


@case(accepted=5000)
def a_kind_of_action_for_every_row(folder):
    rows = (f"u{n % 7},i{n % 11},{START + n},spent {n}.99" for n in range(5000))
    text(folder, f"{HEADER},action", *rows)
    return {"columns": {"action": "action"}}


# --- Parquet ------------------------------------------------------------------------------------


@case(refused=("is not a whole Parquet file", "copy it again"))
def truncated_parquet(folder):
    parquet(folder)
    whole = (folder / "log.parquet").read_bytes()
    (folder / "log.parquet").write_bytes(whole[: len(whole) // 2])
    return PARQUET


@case(refused=("log.parquet", "damaged"))
def parquet_with_flipped_bytes(folder):
    parquet(folder)
    whole = bytearray((folder / "log.parquet").read_bytes())
    whole[4:200] = bytes(196)
    (folder / "log.parquet").write_bytes(whole)
    return PARQUET


@case(refused=("is not a", "Parquet file"))
def text_under_a_parquet_name(folder):
    text(folder, HEADER, *GOOD, name="log.parquet")
    return PARQUET


@case(refused=("is not a", "Parquet file"))
def empty_parquet_file(folder):
    (folder / "log.parquet").touch()
    return PARQUET


@case(refused=("'user_id'", "struct", "expected text, numbers or times"))
def structs_as_ids(folder):
    return parquet(folder, user_id=pa.array([{"a": n} for n in range(60)]))


@case(refused=("'item_id'", "list", "expected text, numbers or times"))
def lists_as_ids(folder):
    return parquet(folder, item_id=pa.array([[n] for n in range(60)]))


@case(refused=("'user_id'", "binary", "expected text, numbers or times"))
def bytes_as_ids(folder):
    return parquet(folder, user_id=pa.array([b"\xff\xfe%d" % n for n in range(60)]))


@case(accepted=60, events=(("u0", "i0", START),))
def decimal_times(folder):
    stamps = [Decimal(f"{row[2]}.00") for row in good_rows(60)]
    return parquet(folder, timestamp=pa.array(stamps, pa.decimal128(20, 2)))


@case(accepted=60, events=(("u0", "i0", START),))
def times_with_a_zone(folder):
    when = [datetime.fromtimestamp(row[2], UTC) for row in good_rows(60)]
    return parquet(folder, timestamp=pa.array(when, pa.timestamp("ns", tz="Asia/Tokyo")))


@case(accepted=60, events=(("u0", "i0", START),))
def times_without_a_zone_are_utc(folder):
    when = [datetime.fromtimestamp(row[2], UTC).replace(tzinfo=None) for row in good_rows(60)]
    return parquet(folder, timestamp=pa.array(when, pa.timestamp("ms")))


@case(refused=("60 x " + NOT_WHOLE,), doctor=("no number",))
def times_of_the_day(folder):
    return parquet(folder, timestamp=pa.array(range(60), pa.time64("us")))


@case(refused=("60 x " + NOT_WHOLE,), doctor=("no number", "'true'"))
def booleans_as_times(folder):
    return parquet(folder, timestamp=pa.array([True] * 60))


@case(accepted=60, events=(("u0", "i0", START),))
def dictionary_encoded_ids(folder):
    users = pa.array([row[0] for row in good_rows(60)]).dictionary_encode()
    return parquet(folder, user_id=users)


@case(
    refused=("share of quarantined rows", "timestamp is missing"), doctor=("timestamp is missing",)
)
def nan_and_infinity_in_parquet(folder):
    stamps = [float(row[2]) for row in good_rows(58)] + [float("nan"), float("inf")]
    return parquet(folder, timestamp=pa.array(stamps))


@case(refused=("no rows",))
def parquet_without_rows(folder):
    empty = pa.table({name: pa.array([], pa.string()) for name in HEADER.split(",")})
    pq.write_table(empty, folder / "log.parquet")
    return PARQUET


# --- files that are none ------------------------------------------------------------------------


@case(refused=("log.csv not found", "params.yaml"), doctor=("log.csv: missing",))
def absent(folder):
    pass


@case(refused=("log.csv", "is a folder"))
def folder_in_place_of_a_file(folder):
    (folder / "log.csv").mkdir()


@case(refused=("log.csv", "link to", "gone.csv"))
def dangling_link(folder):
    (folder / "log.csv").symlink_to(folder / "gone.csv")


@case(refused=("log.csv", "neither a file nor a folder"))
def pipe(folder):
    os.mkfifo(folder / "log.csv")


@case(refused=("log.csv", "neither a file nor a folder"))
def file_that_cannot_be_opened(folder):
    # A socket cannot be opened by anyone, which a file without permissions can by root.
    here = Path.cwd()
    os.chdir(folder)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind("log.csv")
    finally:
        os.chdir(here)


# --- items and users ----------------------------------------------------------------------------


def items(folder: Path, *lines: str, header: str = "item_id,title") -> dict[str, Any]:
    log(folder)
    text(folder, header, *lines, name="items.csv")
    return {"items": "items.csv"}


ITEMS = [f"i{n},Title {n}" for n in range(11)]


@case(accepted=60)
def titles_with_emoji(folder):
    return items(folder, *ITEMS[:-1], 'i10,"🎬 “Été”, <b>\u202e"')


@case(refused=("60 x item is not in the items table", "data.items"), doctor=("items table",))
def items_of_another_log(folder):
    return items(folder, "a,A", "b,B")


@case(refused=("item_id occurs more than once", "'i3'"), doctor=("occurs more than once",))
def repeated_items(folder):
    return items(folder, *ITEMS, "i3,Once more")


@case(refused=("item_id is missing",), doctor=("item_id is missing",))
def item_without_id(folder):
    return items(folder, *ITEMS, ",Nameless")


@case(refused=("items.csv, line 3", "fields"), doctor=(FIELDS,))
def ragged_items(folder):
    return items(folder, *ITEMS[:1], "i1,Title, with comma", *ITEMS[2:])


@case(refused=("items.csv", "no rows"))
def empty_items(folder):
    return items(folder)


@case(refused=("user_id occurs more than once", "'u1'"), doctor=("occurs more than once",))
def repeated_users(folder):
    log(folder)
    text(folder, "user_id,age", *(f"u{n},30" for n in range(7)), "u1,31", name="users.csv")
    return {"users": "users.csv"}


# --- MovieLens' formats -------------------------------------------------------------------------


def movielens(folder: Path, **files: bytes) -> dict[str, Any]:
    ratings = "".join(f"{n % 7}::{n % 11}::5::{START + n}\n" for n in range(60)).encode()
    good = {
        "ratings": ratings,
        "movies": "".join(f"{n}::Été {n}::Drama\n" for n in range(11)).encode("latin-1"),
        "users": "".join(f"{n}::F::1::10::02460\n" for n in range(7)).encode(),
    }
    for name, content in {**good, **files}.items():
        (folder / f"{name}.dat").write_bytes(content)
    return {"format": "movielens-1m"}


@case(accepted=60, events=(("0", "0", START),))
def movielens_as_published(folder):
    return movielens(folder)


@case(refused=("60 x " + FIELDS,), doctor=(FIELDS,))
def movielens_with_tabs(folder):
    ratings = "".join(f"{n % 7}\t{n % 11}\t5\t{START + n}\n" for n in range(60)).encode()
    return movielens(folder, ratings=ratings)


@case(refused=("movies.dat, line 1", "fields"))
def movielens_with_commas_in_the_items(folder):
    return movielens(folder, movies=b"0,A,Drama\n")


@case(refused=("ratings.dat", "no rows"))
def movielens_without_ratings(folder):
    return movielens(folder, ratings=b"")


@case(refused=("movies.dat", "no rows"))
def movielens_without_movies(folder):
    return movielens(folder, movies=b"")


@case(refused=("items.tsv", "not UTF-8"))
def movielens_100k_in_latin1(folder):
    (folder / "u.data").write_text("".join(f"1\t10\t5\t{START + n}\n" for n in range(60)))
    (folder / "items.tsv").write_bytes("10\tÉté\tDrama\n".encode("latin-1"))
    (folder / "u.user").write_text("1|24|M|writer|85711\n")
    return {"format": "movielens-100k"}


@case(refused=("transactions.parquet lacks basket_id",))
def complete_journey_without_a_column(folder):
    tables = {
        "transactions": {"household_id": [1], "product_id": [1], "transaction_timestamp": [START]},
        "products": {
            **{"product_id": [1], "product_type": ["A"], "department": ["B"]},
            **{"product_category": ["C"], "brand": ["D"]},
        },
        "demographics": {"household_id": [1]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return {"format": "complete-journey"}
