from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from jobs.contracts.errors import NotReady
from jobs.lake import Lake
from jobs.operate.report import write_report

DAY = date(2026, 1, 5)
NAMES = {"challenger": 0.2345, "champion": 0.2222, "popularity": 0.1111, "item_knn": 0.1999}


def put(lake: Lake, table: str, rows: list[dict[str, Any]], day: date = DAY) -> None:
    lake.replace(table, pa.Table.from_pylist([{"day": day, **row} for row in rows], lake.schema(table)), "test", [day], {})


def put_evaluations(lake: Lake, day: date = DAY) -> None:
    rows = []
    for name, ndcg in NAMES.items():
        metrics = {f"{prefix}{metric}": ndcg for prefix in ("", "first_") for metric in ("ndcg@10", "recall@10", "mrr")}
        metrics |= {"coverage@10": 0.5, "gini@10": 0.4, "mean_popularity@10": 0.01, "test_users": 77, "snips": 0.31}
        metrics |= {"effective_sample_size": 1234, "overlap": 0.93, "clipped_mass": 0.021}
        rows += [
            {"name": name, "metric": metric, "value": value, "lower": value - 0.01, "upper": value + 0.01, "samples": 4321} for metric, value in metrics.items()
        ]
    rows.append({"name": "logged", "metric": "mean_reward", "value": 0.2987, "lower": 0.28, "upper": 0.31, "samples": 9876})
    put(lake, "gold.evaluations", [{"policy_version": "p5", **row} for row in rows], day)


def put_verdict(lake: Lake) -> None:
    reasons = ["Ranking holds: NDCG@10 is 0.2345.", "Value holds: <b>sure</b>."]
    row = {"challenger": "p5", "champion": "p4", "verdict": "promote", "serving": "p5", "reasons": reasons, "effective_sample_size": 1234.0, "overlap": 0.93}
    put(lake, "gold.verdicts", [row])


def put_lists(lake: Lake) -> None:
    items = [{"item_id": f"i{n}", "title": f"Title & {n}", "valid_from": DAY, "available": True} for n in range(4)]
    lake.replace("silver.items", pa.Table.from_pylist(items, lake.schema("silver.items")), "test", [DAY], {})
    rows = [
        {"user_id": user, "rank": rank + 1, "item_id": f"i{rank}", "score": 1.5, "propensity": 0.98, "reason": "often taken", "policy_version": "p5"}
        for user in ("*", "anna", "bert")
        for rank in range(3)
    ]
    put(lake, "gold.recommendations", rows)
    put(lake, "gold.item_index", [{"item": 4, "item_id": "i3"}])
    step = {
        "user_id": "anna",
        "event_time": datetime(2026, 1, 5, 9, tzinfo=UTC),
        "step": 1,
        "item": 4,
        "event_type": "impression",
        "response": "click",
    }
    put(lake, "gold.transitions", [{**step, "reward": 1.0, "first": True, "bucket": 0, "as_of_day": DAY}])


def put_audit(lake: Lake, offending: int) -> None:
    put(lake, "gold.audits", [{"check": "unknown_items", "offending": offending, "sample": ['{"item_id": "ghost"}'] * offending}])


def test_the_whole_page(lake: Lake) -> None:
    learnt = {"trained_from": DAY, "trained_to": DAY, "steps": 55555, "items": 4}
    policy = {"policy_version": "p5", "name": None, "path": "policies/p5", **learnt, "manifest": '{"seed": 7}'}
    put(lake, "gold.policies", [policy])
    put_evaluations(lake, DAY - timedelta(days=1))
    put_evaluations(lake)
    put_verdict(lake)
    put_lists(lake)
    put_audit(lake, 0)
    path = write_report(lake, DAY)
    page = path.read_text()
    assert path == lake.root / "reports" / "2026-01-05.html"
    told: tuple[str, ...] = (
        "Promoted: tonight",
        "Ranking holds: NDCG@10 is 0.2345.",
        "&lt;b&gt;sure",
        "0.2345<small>0.2245 to 0.2445",
        "1,234",
        "93%",
        "2.1%",
        "0.2987",
        "9,876",
    )
    told += (
        "All 1 checks passed",
        "Title &amp; 2",
        "often taken",
        "Title &amp; 3 (impression → click)",
        "75%",
        "55,555",
        "&#34;seed&#34;: 7",
        "77 users",
        "4,321",
    )
    assert [text for text in told if text not in page] == []
    order = [page.index(f"<td>{label}</td>") for label in ("tonight&#39;s policy", "champion", "item-kNN", "popularity")]
    assert order == sorted(order)
    assert page.count("<svg") == 3  # ranking, the trend over two nights, value
    assert "<script" not in page
    assert "Incomplete" not in page
    assert not [reference for reference in ('src="http', 'href="http', "url(http") if reference in page]
    write_report(lake, DAY)
    assert path.read_text() == page
    assert [file.name for file in path.parent.rglob("*")] == [path.name]


def test_what_is_missing_is_named(lake: Lake) -> None:
    put_verdict(lake)
    put_audit(lake, 2)
    page = write_report(lake, DAY).read_text()
    assert "<b>gold.policies, gold.evaluations, gold.recommendations</b>" in page
    assert "1 of 1 checks failed: nothing is published" in page
    assert "ghost" in page
    assert "<svg" not in page


def test_a_night_with_nothing_to_judge_by(lake: Lake) -> None:
    put_evaluations(lake)
    rows = lake.read("gold.evaluations").to_pylist()
    put(lake, "gold.evaluations", [{**row, "value": 0.0, "lower": None, "upper": None, "samples": 0} for row in rows])
    assert "there was nothing to judge by" in write_report(lake, DAY).read_text()


def test_a_night_that_was_not_made_has_no_page(lake: Lake) -> None:
    with pytest.raises(NotReady, match="nothing of 2026-01-05"):
        write_report(lake, DAY)
    assert not (lake.root / "reports").exists()
