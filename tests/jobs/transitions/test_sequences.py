"""Steps, rewards and ends of a group of users against the reference, over generated logs, without Spark."""

from __future__ import annotations

import os
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.contracts.rewards import UNATTRIBUTED_REASONS
from jobs.contracts.tables import ENDS
from jobs.transitions.sequences import Rules, outcomes
from tests.jobs.silver import FIRST, Row, at, event
from tests.jobs.transitions.reference import GAP, LONGEST, REACH, TYPES, Expected, expected, worth

DAYS = [FIRST + timedelta(days=number) for number in range(5)]
NAMES = list(TYPES)
REASONS = list(UNATTRIBUTED_REASONS)
RULES = Rules(
    is_step=np.array([step for step, *_ in TYPES.values()]),
    terminates=np.array([terminates for *_, terminates in TYPES.values()]),
    maturity=np.array([maturity for _, _, maturity, _ in TYPES.values()]),
    gap=GAP // timedelta(microseconds=1),
    longest=LONGEST,
    reach=REACH,
)
# Few users, items and instants, so that ties, repeats, crossings of midnight and pauses of exactly the gap are common.
ROWS = st.builds(
    lambda kind, day, hour, user, item, value, request, position: event(
        kind, at(day, hour), user_id=user, item_id=item, value=value, request_id=request, position=position
    ),
    st.sampled_from(NAMES),
    st.integers(0, len(DAYS) - 1),
    st.sampled_from((0.0, 0.5, 6.5, 12.0, 17.999, 18.0, 23.75)),
    st.sampled_from(("ann", "b", "Zoë")),
    st.sampled_from(("1", "2")),
    st.sampled_from((None, 0.1, 45.0, float("nan"))),
    st.sampled_from((None, "r", "s")),
    st.sampled_from((None, 0, 1)),
)


def table_of(log: list[Row], as_of: date | None) -> pa.Table:
    columns: dict[str, tuple[pa.DataType, Any]] = {
        "user_id": (pa.string(), lambda row: row["user_id"]),
        "event_time": (pa.timestamp("us", "UTC"), lambda row: row["event_time"]),
        "position": (pa.int32(), lambda row: row["position"]),
        "event_id": (pa.string(), lambda row: row["event_id"]),
        "item": (pa.int32(), lambda row: int(row["item_id"])),
        "event_type": (pa.int8(), lambda row: NAMES.index(row["event_type"])),
        "request_id": (pa.string(), lambda row: row["request_id"]),
        "reward": (pa.int64(), lambda row: int(worth(row) * 1_000_000)),
        "propensity": (pa.float32(), lambda row: row.get("propensity")),
        "candidate_set": (pa.int64(), lambda row: None),
        "as_of_day": (pa.date32(), lambda row: as_of),
        "day": (pa.date32(), lambda row: row["day"]),
    }
    return pa.table({name: pa.array([value(row) for row in log], kind) for name, (kind, value) in columns.items()})


def made_of(log: list[Row], as_of: date) -> Expected:
    """What `outcomes` says, in the terms of the reference."""
    made = outcomes(table_of(log, as_of), RULES)
    answer = Expected({}, {}, set(), {})
    for row in made["steps"].to_pylist():
        key = row["user_id"], row["day"], row["step"]
        assert key not in answer.transitions
        answer.transitions[key] = {
            **{name: row[name] for name in ("event_time", "propensity", "first", "as_of_day")},
            "item_id": str(row["item"]),
            "event_type": NAMES[row["event_type"]],
            "reward": row["reward"] / 1_000_000,
            "response": None if row["response"] is None else NAMES[row["response"]],
            "end": None if row["end"] is None else ENDS[row["end"]],
            "items": None,
        }
    for row in made["strays"].to_pylist():
        answer.unattributed[row["event_id"]] = {
            "reward": row["reward"] / 1_000_000,
            "reason": REASONS[row["reason"]],
            "as_of_day": row["as_of_day"],
            "item_id": str(row["item"]),
        }
    for row in made["sums"].to_pylist():
        reason = None if row["reason"] is None else REASONS[row["reason"]]
        answer.rewards[row["day"], row["event_day"], NAMES[row["event_type"]], reason] = (row["events"], Decimal(row["reward"]) / 1_000_000)
    return answer


@settings(max_examples=int(os.environ.get("NIGHTJAR_EXAMPLES", "300")), deadline=None)
@given(st.lists(ROWS, max_size=40), st.integers(0, len(DAYS) - 1), st.randoms())
def test_any_log_gives_what_the_definitions_give(rows: list[Row], last: int, shuffle: Any) -> None:
    log = [row | {"event_id": f"e{number * 7919 % 10_000:04}"} for number, row in enumerate(rows) if row["day"] <= DAYS[last]]
    truth = expected(log, dict.fromkeys(DAYS[: last + 1], DAYS[last]))
    assert made_of(log, DAYS[last]) == truth
    shuffle.shuffle(log)
    assert made_of(log, DAYS[last]) == truth
    came = sum((reward for _, reward in truth.rewards.values()), Decimal(0))
    assert came == sum(map(worth, log)), "rewards in are rewards out"


def test_what_is_only_looked_at_makes_no_row() -> None:
    log = [
        event("show", at(0), position=0, request_id=None, item_id="1", event_id="a"),
        event("buy", at(0, 13), position=0, request_id=None, item_id="2", event_id="b"),
    ]
    assert all(len(table) == 0 for table in outcomes(table_of(log, None), RULES).values())


def test_ends_that_the_log_tells_worked_out_by_hand() -> None:
    """A parting within the gap closes the episode before it; one after the gap, or after the next step, does not close this one."""

    def parted(*events: tuple[str, float]) -> list[tuple[bool, str | None]]:
        log = [event(kind, at(0, hour), item_id="1", position=None, request_id=None, event_id=f"{n}") for n, (kind, hour) in enumerate(events)]
        return [(row["first"], row["end"]) for row in made_of(log, DAYS[4]).transitions.values()]

    assert parted(("show", 1), ("leave", 2), ("show", 3)) == [(True, "terminated"), (True, "truncated_gap")]
    assert parted(("show", 1), ("show", 2), ("leave", 2)) == [(True, None), (False, "terminated")]
    assert parted(("show", 1), ("leave", 1)) == [(True, "terminated")]
    assert parted(("show", 1), ("leave", 7)) == [(True, "terminated")]
    assert parted(("show", 1), ("leave", 7.01)) == [(True, "truncated_gap")]
    assert parted(("leave", 0.5), ("show", 1)) == [(True, "truncated_gap")]
    assert parted(("show", 1), ("quit", 2), ("show", 3)) == [(True, None), (False, "terminated"), (True, "truncated_gap")]
