from __future__ import annotations

from datetime import date

import pyarrow as pa
import pytest

from jobs.contracts.errors import NotReady
from jobs.lake import Lake
from jobs.operate.show import print_lists, served_lists

DAY = date(2026, 1, 31)


def publish(lake: Lake) -> None:
    common = {"score": 1.5, "propensity": 0.98, "reason": "popular this week", "day": DAY, "policy_version": "p1"}
    rows = [{"user_id": user, "rank": rank, "item_id": item, **common} for user in ("*", "ann") for rank, item in ((2, "b"), (1, "a"))]
    lake.replace("serving.recommendations", pa.Table.from_pylist(rows, lake.schema("serving.recommendations")), "publish", [DAY], {})
    items = [("a", "Old A", date(2026, 1, 1), date(2026, 1, 20)), ("a", "New A", date(2026, 1, 20), None), ("b", None, date(2026, 1, 1), None)]
    known = [{"item_id": item, "title": title, "valid_from": first, "valid_to": last} for item, title, first, last in items]
    empty = dict.fromkeys(lake.schema("silver.items").names)
    lake.replace("silver.items", pa.Table.from_pylist([empty | row for row in known], lake.schema("silver.items")), "silver", [DAY], {})


def test_a_list_in_the_order_of_its_ranks_with_the_titles_of_its_day(lake: Lake) -> None:
    publish(lake)
    ann, bob = served_lists(lake, ["ann", "bob"])
    assert [(row["item_id"], row["title"]) for row in ann.rows] == [("a", "New A"), ("b", None)]
    assert (ann.is_own, bob.is_own) == (True, False)
    assert {row["user_id"] for row in bob.rows} == {"*"}


def test_what_is_printed_says_whose_list_it_is(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    publish(lake)
    print_lists(lake, ["bob"], top=1)
    printed = capsys.readouterr().out
    assert "bob, who has no list" in printed
    assert "popular this week" in printed
    assert "New A" in printed
    assert " b " not in printed


def test_nothing_published_yet(lake: Lake) -> None:
    lake.ensure("serving.recommendations")
    with pytest.raises(NotReady, match="nothing was published yet"):
        served_lists(lake, ["ann"])
