"""Malformed logs whose files are wrong: Parquet, none at all, tables beside, MovieLens' formats."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from malformed import (
    FIELDS,
    GOOD,
    HEADER,
    NOT_WHOLE,
    PARQUET,
    case,
    log,
    parquet,
    text,
)
from own_log import START, good_rows

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


@case(accepted=60, events=(("u0", "i0", START),))
def folder_of_parquet_parts(folder):
    (folder / "log").mkdir()
    for name in ("_SUCCESS", ".part-00000.parquet.crc"):
        (folder / "log" / name).touch()
    parquet(folder)
    (folder / "log.parquet").rename(folder / "log/part-00000.parquet")
    return {"interactions": "log"}


@case(refused=("part-00001.parquet", "is not a whole Parquet file"))
def part_that_was_cut_off(folder):
    folder_of_parquet_parts(folder)
    whole = (folder / "log/part-00000.parquet").read_bytes()
    (folder / "log/part-00001.parquet").write_bytes(whole[: len(whole) // 2])
    return {"interactions": "log"}


@case(refused=("part-00001.parquet", "neither a file nor a folder"))
def pipe_among_the_parts(folder):
    folder_of_parquet_parts(folder)
    os.mkfifo(folder / "log/part-00001.parquet")
    return {"interactions": "log"}


@case(refused=("/dev/zero", "neither a file nor a folder"))
def device(folder):
    return {"interactions": "/dev/zero"}


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
