"""Reads the files of public data sets, and says what they should hold where they don't."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import NoReturn

from jobs.contracts.errors import BadSource


def find_file(source: Path, pattern: str, holds: str) -> Path:
    """The one file of `source` that fits the pattern. Raises BadSource, which says what it `holds`, when there is none or several."""
    found = sorted(source.glob(pattern)) if source.is_dir() else []
    if len(found) != 1:
        there = ", ".join(sorted(path.name for path in source.iterdir())[:10]) if source.is_dir() else "no such folder"
        raise BadSource(f"Expected one file {pattern} in {source.absolute()}, with lines `{holds}`; found {len(found)} ({there or 'an empty folder'}).")
    return found[0]


def read_rows(path: Path, separator: str, columns: int, holds: str, fallback: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line, in UTF-8, or else in the encoding `fallback`.

    Raises BadSource for a line with another number of fields, or one that is not UTF-8 where there is no fallback.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                fields = line.decode().rstrip("\r\n").split(separator)
            except UnicodeDecodeError:
                if fallback is None:
                    bad_line(path, number, repr(line), holds)
                fields = line.decode(fallback).rstrip("\r\n").split(separator)
            if len(fields) != columns:
                bad_line(path, number, separator.join(fields), holds)
            yield number, fields


def read_csv(path: Path, columns: int, holds: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row after the header, quoted as CSV is. Raises BadSource as `read_rows` does."""
    with path.open(encoding="utf-8", errors="backslashreplace", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            for fields in rows:
                if len(fields) != columns:
                    bad_line(path, rows.line_num, ",".join(fields), holds)
                if rows.line_num > 1:
                    yield rows.line_num, fields
        except csv.Error as error:
            bad_line(path, rows.line_num, str(error), holds)


def bad_line(path: Path, number: int, line: str, holds: str) -> NoReturn:
    """Raise BadSource for a line that does not hold what it should."""
    raise BadSource(f"{path}, line {number}: expected `{holds}`, got {line[:120]!r}.")


def film_item(film: str, title: str, genres: Sequence[str]) -> dict[str, object]:
    """The item of a film, of whose title the year is a part: `Title (1999)`."""
    item: dict[str, object] = {"item_id": film, "title": title}
    if genres:
        item["category"] = [*genres]
    if year := re.search(r"\((\d{4})\)\s*$", title):
        item["attributes"] = {"year": year.group(1)}
    return item


def utc_day(seconds: int) -> date:
    """UTC day of an epoch in seconds, of a time before 1970 too; the last day there is for one beyond the calendar."""
    try:
        return date(1970, 1, 1) + timedelta(days=seconds // 86400)
    except OverflowError:
        return date.max if seconds > 0 else date.min
