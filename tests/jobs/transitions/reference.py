"""What transitions are, written from the definitions alone, in plain Python, over a whole log. It shares no code with what it judges."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

from tests.jobs.silver import Row

GAP = timedelta(hours=6)
# type: (is it a step, what it is worth, maturity in days, does it end the episode)
TYPES: dict[str, tuple[bool, str, int, bool]] = {
    "show": (True, "0", 0, False),
    "play": (True, "min(1, value / 30)", 0, False),
    "click": (False, "1", 1, False),
    "buy": (False, "5 + 0.1 * value", 2, False),
    "hide": (False, "-1", 0, False),
    "share": (False, "0", 1, False),
    "leave": (False, "0", 0, True),
    "quit": (True, "-0.5", 0, True),
}
REACH, LONGEST = 2, 2


def worth(row: Row) -> Decimal:
    value = row.get("value")
    number = Decimal(0) if value is None or math.isnan(value) else Decimal(str(value))
    worths = {
        "play": min(Decimal(1), number / 30).quantize(Decimal("0.000001")),
        "click": Decimal(1),
        "buy": 5 + number / 10,
        "hide": Decimal(-1),
        "quit": Decimal("-0.5"),
    }
    return worths.get(row["event_type"], Decimal(0))


def in_order(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["event_time"], -1 if row.get("position") is None else row["position"], row["event_id"]))


def is_step(row: Row) -> bool:
    return TYPES[row["event_type"]][0]


def step_of(answer: Row, steps: list[Row]) -> Row | None:
    """The step that an answer belongs to, among one user's steps in order."""
    maturity = timedelta(days=TYPES[answer["event_type"]][2])
    near = [
        step
        for step in steps
        if step["item_id"] == answer["item_id"] and step["event_time"] <= answer["event_time"] and answer["day"] - step["day"] <= maturity
    ]
    asked = [step for step in near if answer.get("request_id") is not None and step.get("request_id") == answer["request_id"]]
    found = asked or near
    return found[-1] if found else None


@dataclass
class Expected:
    transitions: dict[tuple[str, date, int], Row]  # by user, day and place in the user's day
    unattributed: dict[str, Row]
    candidate_sets: set[tuple[date, tuple[str, ...]]]
    rewards: dict[tuple[date, date, str, str | None], tuple[int, Decimal]]  # by day of the step, day and type of the event, reason


def as_of_days(log: list[Row], nights: Iterable[date], days: Iterable[date]) -> dict[date, date]:
    """Last night that had a reason to rebuild each day."""
    last: dict[date, date] = {}
    for night in sorted(nights):
        for day in days:
            ripened = night - timedelta(days=REACH) <= day <= night
            news = any(row["arrival_day"] == night and abs((row["day"] - day).days) <= REACH for row in log)
            if day <= night and (ripened or news):
                last[day] = night
    return last


def expected(log: list[Row], as_of_days: dict[date, date]) -> Expected:
    """What the tables hold of these days, each as of its own day."""
    answer = Expected({}, {}, set(), {})

    def book(day: date, row: Row, reason: str | None) -> None:
        if worth(row) != 0:
            key = (day, row["day"], row["event_type"], reason)
            events, reward = answer.rewards.get(key, (0, Decimal(0)))
            answer.rewards[key] = (events + 1, reward + worth(row))

    for day, as_of in as_of_days.items():
        seen = [row for row in log if row["arrival_day"] <= as_of]
        for user in {row["user_id"] for row in seen}:
            steps = in_order(row for row in seen if row["user_id"] == user and is_step(row))
            answers = [row for row in seen if row["user_id"] == user and not is_step(row)]
            partings = [row for row in answers if TYPES[row["event_type"]][3]]
            belongs: dict[str, list[Row]] = defaultdict(list)
            for row in answers:
                step = step_of(row, steps)
                if step is not None:
                    belongs[step["event_id"]].append(row)
                elif row["day"] == day and worth(row) != 0:
                    before = [s["day"] for s in steps if s["item_id"] == row["item_id"] and s["event_time"] <= row["event_time"]]
                    late = before and row["day"] - max(before) <= timedelta(days=REACH)
                    reason = "too_late" if late else "no_step"
                    answer.unattributed[row["event_id"]] = {"reward": float(worth(row)), "reason": reason, "as_of_day": as_of, "item_id": row["item_id"]}
                    book(day, row, reason)
            for before_it, step, after_it in zip([None, *steps], steps, [*steps[1:], None], strict=False):
                if step["day"] != day:
                    continue
                number = 1 + sum(other["day"] == day for other in steps[: steps.index(step)])
                came = belongs[step["event_id"]]
                items = tuple(sorted(set(step.get("candidates") or ())))
                for row in (step, *came):
                    book(day, row, None)
                answer.transitions[user, day, number] = {
                    **{name: step[name] for name in ("event_time", "item_id", "event_type")},
                    "propensity": step.get("propensity"),
                    "reward": float(worth(step) + sum(worth(row) for row in came)),
                    "response": heaviest(row for row in came if after_it is None or row["event_time"] < after_it["event_time"]),
                    "first": before_it is None or step["event_time"] - before_it["event_time"] > GAP or is_closed(before_it, step, partings),
                    "end": end(step, after_it, partings, as_of),
                    "as_of_day": as_of,
                    "items": items or None,
                }
                if items:
                    answer.candidate_sets.add((day, items))
    return answer


def heaviest(answers: Iterable[Row]) -> str | None:
    ranked = sorted(in_order(answers), key=worth)  # of those that weigh the same the last
    return ranked[-1]["event_type"] if ranked else None


def is_closed(step: Row, after_it: Row | None, partings: list[Row]) -> bool:
    """At one instant, steps come before what is no step."""
    until = step["event_time"] + GAP
    return TYPES[step["event_type"]][3] or any(
        step["event_time"] <= row["event_time"] <= until and (after_it is None or row["event_time"] < after_it["event_time"]) for row in partings
    )


def end(step: Row, after_it: Row | None, partings: list[Row], as_of: date) -> str | None:
    if step["day"] + timedelta(days=LONGEST) > as_of:
        return "immature"
    if is_closed(step, after_it, partings):
        return "terminated"
    if after_it is not None and after_it["event_time"] - step["event_time"] <= GAP:
        return None
    passed = step["event_time"] + GAP < datetime.combine(as_of + timedelta(days=1), time(), UTC)
    return "truncated_gap" if passed else "truncated_window"
