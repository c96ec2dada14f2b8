"""The public data sets, converted: as many lines as their own descriptions count."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.ingest.convert import convert

DATA = Path(__file__).parents[3] / "shared" / "data"


def lines(landing: Path, feed: str) -> Iterator[dict[str, Any]]:
    for path in landing.glob(f"{feed}/ds=*/*.gz"):
        with gzip.open(path) as stream:
            yield from map(json.loads, stream)


@pytest.mark.parametrize(
    ("format", "folder", "days", "first", "last", "events", "items"),
    [
        ("movietweetings", "movietweetings", 186, "2013-02-28", "2013-09-01", {"rating": 100_000}, 10_506),
        ("taobao", "taobao_userbehavior", 10, "2017-11-24", "2017-12-03", {"view": 75_872, "cart": 4_497, "favourite": 2_356, "purchase": 1_750}, 55_369),
    ],
)
def test_counts(tmp_path: Path, format: str, folder: str, days: int, first: str, last: str, events: dict[str, int], items: int) -> None:
    """One of Taobao's 55,368 items changes its category, so it is told twice."""
    landing = tmp_path / "landing"
    convert(format, DATA / folder, landing)
    arrivals = [path.name.removeprefix("ds=") for path in landing.glob("events/ds=*")]
    assert (len(arrivals), min(arrivals), max(arrivals)) == (days, first, last)
    assert Counter(line["event_type"] for line in lines(landing, "events")) == events
    assert sum(1 for _ in lines(landing, "items")) == items
