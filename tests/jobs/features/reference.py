"""Features straight from their definitions, in plain Python over the whole log: shares no code with the Spark version."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from tests.jobs.silver import Row

Features = dict[str, Any]


def snapshot(log: Sequence[Row], items: Sequence[Row], entity: str, day: date, types: Sequence[str]) -> dict[str, Features]:
    """Features of each user or item met within 90 days, at the end of a day. The last value is that of any of the latest instant, as a set."""
    rows = [row for row in log if row["arrival_day"] <= day and 0 <= (day - row["day"]).days < 90]
    known = {row["item_id"]: row for row in items if row["valid_from"] <= day and (row["valid_to"] is None or day < row["valid_to"])}
    found = {}
    for key in {row[f"{entity}_id"] for row in rows}:
        mine = [row for row in rows if row[f"{entity}_id"] == key]
        found[key] = _of_both(mine, day, types) | (_of_user(mine, known, day, types) if entity == "user" else _of_item(mine, rows, items, known, day, types))
    return found


def _within(rows: Sequence[Row], event_type: str, day: date, days: int) -> list[Row]:
    return [row for row in rows if row["event_type"] == event_type and day - row["day"] < timedelta(days=days)]


def _values(rows: Sequence[Row]) -> list[Decimal]:
    return [Decimal(str(row["value"])) for row in rows if row.get("value") is not None and math.isfinite(row["value"]) and abs(row["value"]) < 1e22]


def _of_both(rows: Sequence[Row], day: date, types: Sequence[str]) -> Features:
    answer: Features = {}
    first, *answers = types
    for one in types:
        for days in (1, 7, 30, 90):
            answer[f"{one}_count_{days}d"] = float(len(_within(rows, one, day, days)))
        long = _within(rows, one, day, 90)
        answer[f"{one}_recency_90d"] = float(min((day - row["day"]).days for row in long)) if long else None
        answer[f"{one}_trend_7d_30d"] = (len(_within(rows, one, day, 7)) + 1) / (len(_within(rows, one, day, 30)) * 7 / 30 + 1)
    for one in answers:
        for days in (1, 7, 30, 90):
            within = _within(rows, one, day, days)
            values = _values(within)
            answer[f"{one}_value_sum_{days}d"] = float(sum(values))
            answer[f"{one}_per_{first}_rate_{days}d"] = (len(within) + 1) / (len(_within(rows, first, day, days)) + 20)
            if days in (30, 90):
                answer[f"{one}_value_mean_{days}d"] = float(sum(values)) / len(values) if values else None
        valued = [row for row in within if _values([row])]
        latest = max((row["event_time"] for row in valued), default=None)
        answer[f"{one}_value_min_90d"] = float(min(values)) if values else None
        answer[f"{one}_value_max_90d"] = float(max(values)) if values else None
        answer[f"{one}_value_last_90d"] = {row["value"] for row in valued if row["event_time"] == latest} or {None}
    return answer


def _of_user(rows: Sequence[Row], known: dict[str, Row], day: date, types: Sequence[str]) -> Features:
    answer: Features = {}
    for one in types[1:]:
        for days in (7, 30):
            answer[f"{one}_item_distinct_{days}d"] = float(len({row["item_id"] for row in _within(rows, one, day, days)}))
        met = Counter(row["item_id"] for row in _within(rows, one, day, 30))
        categories: Counter[str] = Counter()
        vectors: dict[str, list[tuple[int, list[float]]]] = {}
        for item in sorted(met.keys() & known.keys()):
            if known[item]["category"]:
                categories[known[item]["category"][0]] += met[item]
            for name, vector in (known[item]["embeddings"] or {}).items():
                vectors.setdefault(name, []).append((met[item], vector))
        top = sorted(categories, key=lambda category: (-categories[category], category))[:3]
        answer[f"{one}_category_top_30d"] = top or None
    answer[f"{one}_vectors_mean_30d"] = [(name, _mean(vectors[name])) for name in sorted(vectors)] or None
    return answer


def _mean(vectors: list[tuple[int, list[float]]]) -> list[float]:
    alike = [(times, vector) for times, vector in vectors if len(vector) == len(vectors[0][1])]
    total = sum(times for times, _ in alike)
    sums = [0.0] * len(alike[0][1])
    for times, vector in alike:
        sums = [so_far + times * _float(x) for so_far, x in zip(sums, vector, strict=True)]
    return [_float(x / total) for x in sums]


def _float(x: float) -> float:
    return float(struct.unpack("f", struct.pack("f", x))[0])


def _of_item(rows: Sequence[Row], all_rows: Sequence[Row], items: Sequence[Row], known: dict[str, Row], day: date, types: Sequence[str]) -> Features:
    key = rows[0]["item_id"]
    answer: Features = {"price": None, "age_days": None}
    if key in known:
        answer = {"price": known[key]["price"], "age_days": float((day - min(row["valid_from"] for row in items if row["item_id"] == key)).days)}
    roots = {item: row["category"][0] for item, row in known.items() if row["category"]}
    for one in types[1:]:
        for days in (7, 30):
            of_day = _within(all_rows, one, day, days)
            mine = [row for row in of_day if key in roots and roots.get(row["item_id"]) == roots[key]]
            answer[f"{one}_category_share_{days}d"] = len(mine) / len(of_day) if key in roots and of_day else None
            answer[f"{one}_user_approx_distinct_{days}d"] = float(len({row["user_id"] for row in _within(rows, one, day, days)}))
    return answer
