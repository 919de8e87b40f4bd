"""Malformed logs whose rows are wrong: times, ids, text, copies; see malformed.py."""

from __future__ import annotations

import gzip
import time

import pyarrow as pa
from malformed import (
    FIELDS,
    FUTURE,
    GOOD,
    HEADER,
    NOT_WHOLE,
    TOO_EARLY,
    TOO_FINE,
    case,
    log,
    parquet,
    text,
)
from own_log import START

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


@case(accepted=62, events=(("u", '"Heroes', START), ("u", '"Low', START + 1)))
def values_that_begin_with_a_quote(folder):
    rows = [f'u,"Heroes,{START}', f'u,"Low,{START + 1}', *GOOD]
    text(folder, HEADER.replace(",", "\t"), *(row.replace(",", "\t") for row in rows))


@case(accepted=62, events=(("u", '"Great" Cats', START), ("u", '12" mix', START)))
def quotes_within_values(folder):
    text(folder, HEADER, f'u,"Great" Cats,{START}', f'u,12" mix,{START}', *GOOD)


@case(accepted=61, events=(('say "hi", twice', "i", START),))
def quotes_behind_backslashes(folder):
    text(folder, HEADER, f'"say \\"hi\\", twice",i,{START}', *GOOD)


@case(refused=("line 2", "quote", "data.quoting", "62 lines", "61 records"), doctor=("line 2",))
def quotes_that_swallow_a_row_without_a_trace(folder):
    text(folder, HEADER, f'u,"Heroes,{START}', f'v,Low",{START}', *GOOD)


@case(refused=("line 3", "quote", "data.quoting"), doctor=("line 3",))
def quotes_around_some_values_and_within_others(folder):
    text(folder, HEADER, f'u,"a, b",{START}', f'v,"Great" Cats,{START}', *GOOD)


@case(accepted=61, events=(("u", '"i"', START),))
def quotes_stated_to_be_characters(folder):
    text(folder, HEADER, f'u,"i",{START}', *GOOD)
    return {"quoting": "none"}


@case(refused=("line 2", "quote", "data.quoting"), doctor=("line 2",))
def quotes_that_break_the_stated_dialect(folder):
    text(folder, HEADER, f'u,"Great" Cats,{START}', *GOOD)
    return {"quoting": "doubled"}


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


@case(accepted=1, reasons={"exact duplicate": 59}, events=(("u0", "i0", START),))
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
