"""The page of one night, for a product manager to read: the verdict and why, the figures behind it, the lists that came out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import jinja2

from jobs.contracts.errors import LakeUnwritable, NotReady
from jobs.lake import Lake
from jobs.operate.plots import Point, intervals, trend
from jobs.storage import Location, write_whole

EVERYBODY = "*"
SAMPLE_USERS = 4
SAMPLE_ITEMS = 10
RECENT_STEPS = 8
TREND_DAYS = 30
_DAILY = ("gold.policies", "gold.evaluations", "gold.verdicts", "gold.recommendations", "gold.audits")
_OURS = ("challenger", "champion")

Row = dict[str, Any]


def write_report(lake: Lake, day: date) -> Location:
    """Write `reports/<day>.html` below the lake and return its path.

    A table that does not hold the day yet is named on the page. Raises NotReady when none holds it, LakeUnwritable when the
    page can't be written.
    """
    missing = [table for table in _DAILY if day not in lake.done(table)]
    if len(missing) == len(_DAILY):
        raise NotReady(f"The lake {lake.root} holds nothing of {day} to report on: no day of {', '.join(_DAILY)}. Run `nightjar night --day {day}` first.")
    page = _template().render(**_content(lake, day, missing))
    path = lake.root / "reports" / f"{day}.html"
    try:
        write_whole(path, page)
    except OSError as error:
        raise LakeUnwritable(f"The report {path} can't be written: {error.strerror}. Mend the rights of that folder.") from error
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs.operate", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _content(lake: Lake, day: date, missing: Sequence[str]) -> dict[str, Any]:
    """What the template shows; a part whose table misses the day is None."""
    evaluations = _rows(lake, "gold.evaluations", day)
    titles, available = _items(lake, day)
    return {
        "day": day,
        "next_day": day + timedelta(days=1),
        "missing": missing,
        "verdict": next(iter(_rows(lake, "gold.verdicts", day)), None),
        "policies": [_policy(row) for row in sorted(_rows(lake, "gold.policies", day), key=lambda row: row["name"] or "")],
        "judged": _Judged.of(evaluations) if evaluations else None,
        "trend": _trend(lake, day),
        "audits": None if "gold.audits" in missing else sorted(_rows(lake, "gold.audits", day), key=lambda row: (row["offending"] == 0, row["check"])),
        "lists": None if "gold.recommendations" in missing else _lists(lake, day, titles, available),
    }


def _rows(lake: Lake, table: str, day: date, columns: Sequence[str] | None = None) -> list[Row]:
    import pyarrow.dataset as ds

    if not lake.exists(table):
        return []
    rows: list[Row] = lake.read(table, columns, ds.field("day") == day).to_pylist()
    return rows


def _policy(row: Row) -> Row:
    return {**row, "manifest": json.dumps(json.loads(row["manifest"]), indent=2, sort_keys=True)}


def _items(lake: Lake, day: date) -> tuple[dict[str, str], frozenset[str]]:
    """Titles of the items as they held on the day, and the items that could be recommended."""
    import pyarrow.dataset as ds

    if not lake.exists("silver.items"):
        return {}, frozenset()
    holds = (ds.field("valid_from") <= day) & (ds.field("valid_to").is_null() | (ds.field("valid_to") > day))
    rows = lake.read("silver.items", ["item_id", "title", "available"], holds).to_pylist()
    return {row["item_id"]: row["title"] for row in rows if row["title"]}, frozenset(row["item_id"] for row in rows if row["available"] is not False)


@dataclass(frozen=True)
class _Judged:
    """The day's evaluations, as the template shows them."""

    cutoff: str
    rows: list[Row]
    values: list[Row]
    estimated: bool
    logged: Row | None
    test_events: int
    test_users: int
    ranking_plot: str
    value_plot: str

    @classmethod
    def of(cls, evaluations: Sequence[Row]) -> _Judged:
        """Everybody judged, the challenger first, then the champion, then the baselines, the best first."""
        by_name: dict[str, dict[str, Row]] = {}
        for row in evaluations:
            by_name.setdefault(row["name"], {})[row["metric"]] = row
        cutoff = next(row["metric"].removeprefix("ndcg@") for row in evaluations if row["metric"].startswith("ndcg@"))
        ndcg = f"ndcg@{cutoff}"
        judged = [name for name in by_name if ndcg in by_name[name]]
        names = sorted(judged, key=lambda name: (_OURS.index(name) if name in _OURS else len(_OURS), -by_name[name][ndcg]["value"]))
        shown = [
            ndcg,
            f"recall@{cutoff}",
            "mrr",
            f"first_{ndcg}",
            f"first_recall@{cutoff}",
            f"coverage@{cutoff}",
            f"gini@{cutoff}",
            f"mean_popularity@{cutoff}",
        ]
        best = {metric: max(by_name[name][metric]["value"] for name in names) for metric in shown[:6]}
        rows = [
            {
                "name": _label(name),
                "cells": [_cell(by_name[name][metric], best.get(metric)) for metric in shown],
            }
            for name in names
        ]
        value = next(metric for metric in ("snips", "snips_estimated_propensities") if metric in by_name[names[0]])
        values = [
            {"name": _label(name), **{metric: _cell(row) for metric, row in by_name[name].items()}, "snips": _cell(by_name[name][value])} for name in names
        ]
        logged = by_name.get("logged", {}).get("mean_reward")
        return cls(
            cutoff=cutoff,
            rows=rows,
            values=values,
            estimated=value != "snips",
            logged=_cell(logged) if logged else None,
            test_events=by_name[names[0]][ndcg]["samples"],
            test_users=int(by_name[names[0]]["test_users"]["value"]),
            ranking_plot=intervals(_points(by_name, names, ndcg), f"NDCG@{cutoff} with its 95% interval"),
            value_plot=intervals(
                _points(by_name, names, value),
                "Estimated reward per step with its 95% interval",
                ("logging system", logged["value"]) if logged else None,
            ),
        )


def _points(by_name: Mapping[str, Mapping[str, Row]], names: Sequence[str], metric: str) -> list[Point]:
    return [Point(_label(name), row["value"], row["lower"], row["upper"], name in _OURS) for name in names for row in [by_name[name][metric]]]


def _label(name: str) -> str:
    return {"challenger": "tonight's policy", "champion": "champion", "item_knn": "item-kNN"}.get(name, name.replace("_", " "))


def _cell(row: Row, best: float | None = None) -> Row:
    known = row["lower"] is not None and row["upper"] is not None
    interval = f"{row['lower']:.4f} to {row['upper']:.4f}" if known else ""
    return {"value": row["value"], "interval": interval, "best": best is not None and row["value"] == best > 0, "samples": row["samples"]}


def _trend(lake: Lake, day: date) -> str | None:
    """NDCG of tonight's policy and of popularity over the last nights; None before the second one."""
    import pyarrow.dataset as ds

    if not lake.exists("gold.evaluations"):
        return None
    recent = (ds.field("day") <= day) & (ds.field("day") > day - timedelta(days=TREND_DAYS)) & ds.field("name").isin(["challenger", "popularity"])
    rows = [
        row
        for row in lake.read("gold.evaluations", ["day", "name", "metric", "value"], recent).to_pylist()
        if row["metric"].startswith("ndcg@") and "minus" not in row["metric"]
    ]
    values = {(row["name"], row["day"]): row["value"] for row in rows}
    days = sorted({row["day"] for row in rows})
    if len(days) < 2:
        return None
    series = [(_label(name), [values.get((name, each)) for each in days]) for name in ("challenger", "popularity")]
    return trend(days, series, "NDCG, night by night")


def _lists(lake: Lake, day: date, titles: Mapping[str, str], available: frozenset[str]) -> Row:
    """How many lists there are and of what, and some of them with titles, beside what these users did last."""
    import pyarrow.dataset as ds

    everything = lake.read("gold.recommendations", ["user_id", "item_id", "rank"], ds.field("day") == day)
    users = sorted(set(everything["user_id"].to_pylist()) - {EVERYBODY})
    counts = sorted(everything["item_id"].value_counts().to_pylist(), key=lambda count: (-count["counts"], count["values"]))
    # Spread over the sorted ids, since ids given out in order would show the oldest users alone.
    spread = list(dict.fromkeys(users[place * len(users) // SAMPLE_USERS] for place in range(SAMPLE_USERS))) if users else []
    shown = (ds.field("day") == day) & ds.field("user_id").isin([EVERYBODY, *spread]) & (ds.field("rank") <= SAMPLE_ITEMS)
    rows = lake.read("gold.recommendations", filter=shown).sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist()
    recent = _recent(lake, day, spread, titles)
    samples = [
        {
            "user": user,
            "recent": recent.get(user, []),
            "rows": [{**row, "title": titles.get(row["item_id"], "")} for row in rows if row["user_id"] == user],
        }
        for user in [EVERYBODY, *spread]
    ]
    top = counts[0] if counts else None
    return {
        "users": len(users),
        "rows": everything.num_rows,
        "items": len(counts),
        "share": len({count["values"] for count in counts} & available) / len(available) if available else None,
        "top": {"item": titles.get(top["values"], top["values"]), "count": top["counts"]} if top else None,
        "samples": [sample for sample in samples if sample["rows"]],
    }


def _recent(lake: Lake, day: date, users: Sequence[str], titles: Mapping[str, str]) -> dict[str, list[str]]:
    """What some users did last, newest first, in words."""
    import pyarrow.dataset as ds

    if not users or not lake.exists("gold.transitions"):
        return {}
    columns = ["user_id", "event_time", "step", "item", "event_type", "response"]
    lately = (ds.field("day") <= day) & (ds.field("day") > day - timedelta(days=TREND_DAYS)) & ds.field("user_id").isin(list(users))
    rows = lake.read("gold.transitions", columns, lately).sort_by([(key, "descending") for key in ("event_time", "step")])
    index = lake.read("gold.item_index", ["item", "item_id"], ds.field("item").isin(rows["item"].unique()))
    names = {item: titles.get(item_id, item_id) for item, item_id in zip(index["item"].to_pylist(), index["item_id"].to_pylist(), strict=True)}
    recent: dict[str, list[str]] = {user: [] for user in users}
    for row in rows.to_pylist():
        if len(recent[row["user_id"]]) < RECENT_STEPS:
            answer = f" → {row['response']}" if row["response"] else ""
            recent[row["user_id"]].append(f"{names[row['item']]} ({row['event_type']}{answer})")
    return recent
