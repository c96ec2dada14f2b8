"""From the events of some users to their steps: which step each answer belongs to, what came of it, and where episodes end.

Pure functions of Arrow columns, without Spark. Rewards are whole millionths, so that no order of a sum changes a bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.contracts.tables import ENDS
from jobs.settings import Settings
from jobs.transitions.cuts import maturity_days, reach_days

_TERMINATED, _GAP, _WINDOW, _IMMATURE = range(len(ENDS))
_DAY_MICROS = 86_400_000_000
_FAR = np.iinfo(np.int64).max

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rules:
    """What the settings say of the event types, each by its place among them, and of episodes."""

    is_step: Bools
    terminates: Bools
    maturity: Ints  # days
    gap: int  # microseconds
    longest: int  # days after which no reward of a step grows any more
    reach: int  # days around a step within which something can change its row

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """The rules that settings state."""
        types = settings.event_types.values()
        return cls(
            is_step=np.array([event_type.step for event_type in types]),
            terminates=np.array([event_type.terminates for event_type in types]),
            maturity=np.array([event_type.maturity_days for event_type in types], dtype=np.int64),
            gap=round(settings.episodes.gap_hours * 3_600_000_000),
            longest=maturity_days(settings),
            reach=reach_days(settings),
        )


@dataclass(frozen=True)
class Events:
    """Events of whole users, as columns of one length, in order of user, time, steps before answers, position and event id."""

    user: Ints  # codes in the order of the ids
    time: Ints  # microseconds since 1970
    day: Ints  # days since 1970
    type: Ints
    item: Ints
    reward: Ints  # millionths
    as_of: Ints  # days since 1970; -1 = of a day that is not to be made
    is_step: Bools
    rows: Ints  # where each stood in the table


STEPS = pa.schema(
    [
        ("user_id", pa.string()),
        ("event_time", pa.timestamp("us", "UTC")),
        ("step", pa.int32()),
        ("item", pa.int32()),
        ("event_type", pa.int8()),  # place in the settings, as in all of these tables
        ("response", pa.int8()),
        ("reward", pa.int64()),  # millionths
        ("first", pa.bool_()),
        ("end", pa.int8()),  # place in ENDS
        ("propensity", pa.float32()),
        ("candidate_set", pa.int64()),
        ("as_of_day", pa.date32()),
        ("day", pa.date32()),
    ]
)
STRAYS = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("item", pa.int32()),
        ("event_type", pa.int8()),
        ("reward", pa.int64()),
        ("reason", pa.int8()),  # place in UNATTRIBUTED_REASONS
        ("as_of_day", pa.date32()),
        ("day", pa.date32()),
    ]
)
SUMS = pa.schema(
    [
        ("event_day", pa.date32()),
        ("event_type", pa.int8()),
        ("reason", pa.int8()),  # null = they belong to steps
        ("events", pa.int64()),
        ("reward", pa.int64()),
        ("as_of_day", pa.date32()),
        ("day", pa.date32()),
    ]
)


def outcomes(table: pa.Table, rules: Rules) -> dict[str, pa.Table]:
    """What becomes of the events of some users: their `steps`, the `strays` (rewarded answers that belong to none), and `sums` of rewards.

    `table` has the rows that looks at days show, with `as_of_day` null where a day is only looked at.
    """
    events = in_order(table, rules)
    latest, step = attributed(events, table["request_id"], rules)
    strays = _strays(events, step)
    too_late = _too_late(events, latest, strays, rules)
    return {
        "steps": _steps(table, events, step, rules),
        "strays": _of(STRAYS, table.take(events.rows[strays]), reason=too_late.astype(np.int8)),
        "sums": _sums(events, step, strays, too_late),
    }


def in_order(table: pa.Table, rules: Rules) -> Events:
    """Sort. Steps of one instant are in the order of their position, a missing one first, then of their event id; answers likewise."""
    users = table["user_id"].combine_chunks().dictionary_encode()
    rank = np.empty(len(users.dictionary), dtype=np.int64)
    rank[pc.sort_indices(users.dictionary).to_numpy()] = np.arange(len(rank))
    user = rank[users.indices.to_numpy()]
    time, event_type, position = _ints(table["event_time"]), _ints(table["event_type"]), _ints(table["position"], missing=-1)
    is_step = rules.is_step[event_type]
    instant = 2 * time + ~is_step
    rows = np.lexsort((position, instant, user))
    same = np.ones(max(len(rows) - 1, 0), dtype=np.bool_)
    for key in (user, instant, position):
        same &= key[rows[1:]] == key[rows[:-1]]
    if same.any():
        tied = np.append(same, False) | np.insert(same, 0, False)
        ties = pa.table({"tie": np.cumsum(~np.insert(same, 0, False))[tied], "event_id": table["event_id"].take(pa.array(rows[tied])), "row": rows[tied]})
        rows[tied] = ties.sort_by([("tie", "ascending"), ("event_id", "ascending")])["row"].to_numpy()
    return Events(
        user=user[rows],
        time=time[rows],
        day=_ints(table["day"])[rows],
        type=event_type[rows],
        item=_ints(table["item"])[rows],
        reward=_ints(table["reward"])[rows],
        as_of=_ints(table["as_of_day"], missing=-1)[rows],
        is_step=is_step[rows],
        rows=rows,
    )


def attributed(events: Events, request_id: pa.ChunkedArray, rules: Rules) -> tuple[Ints, Ints]:
    """The latest step on the same item up to each event, whatever its age, and the step that the event belongs to; -1 = none.

    A step belongs to itself. An answer belongs to the latest step of the same request, user and item, else to the latest one of the
    user and item; neither lies after the answer, nor more than the maturity of its type before it.
    """
    pair = events.user << 32 | events.item
    latest = _latest_step(pair, events.is_step)
    request = pc.fill_null(request_id.combine_chunks().dictionary_encode().indices, -1).to_numpy()[events.rows].astype(np.int64)
    of_request = np.where((request >= 0) & (latest >= 0), latest, -1)
    elsewhere = np.flatnonzero(of_request >= 0)
    elsewhere = elsewhere[request[latest[elsewhere]] != request[elsewhere]]
    of_request[elsewhere] = -1
    if len(elsewhere):
        among = np.flatnonzero(np.isin(pair, pair[elsewhere]) & (request >= 0))
        pairs = np.unique(pair[among], return_inverse=True)[1]
        found = _latest_step(pairs * (request.max() + 1) + request[among], events.is_step[among])
        of_request[among] = np.where(found >= 0, among[found], -1)

    def in_time(step: Ints) -> Bools:
        return (step >= 0) & (events.day - events.day[step] <= rules.maturity[events.type])

    step = np.where(in_time(of_request), of_request, np.where(in_time(latest), latest, -1))
    return latest, np.where(events.is_step, np.arange(len(step)), step)


def _latest_step(key: Ints, is_step: Bools) -> Ints:
    """The last place up to each at which a step with the same key stands; -1 = none."""
    by_key = np.argsort(key, kind="stable")
    key = key[by_key]
    last = np.maximum.accumulate(np.where(is_step[by_key], np.arange(len(key)), 0))
    answer = np.empty_like(by_key)
    answer[by_key] = np.where(is_step[by_key[last]] & (key[last] == key), by_key[last], -1) if len(key) else -1
    return answer


def _steps(table: pa.Table, events: Events, step: Ints, rules: Rules) -> pa.Table:
    steps = np.flatnonzero(events.is_step)
    user, time, day, as_of = events.user[steps], events.time[steps], events.day[steps], events.as_of[steps]
    follows = user[1:] == user[:-1]
    next_time = np.append(np.where(follows, time[1:], _FAR), _FAR)[: len(steps)]
    pause = np.insert(np.where(follows, time[1:] - time[:-1], _FAR), 0, _FAR)[: len(steps)]
    closed = _closed(events, steps, rules)
    goes_on = (next_time - time <= rules.gap) & ~closed
    is_over = time + rules.gap < (as_of + 1) * _DAY_MICROS
    end = np.where(goes_on, -1, np.where(closed, _TERMINATED, np.where(is_over, _GAP, _WINDOW)))
    end = np.where(day + rules.longest > as_of, _IMMATURE, end)

    place = np.full(len(step), -1)
    place[steps] = np.arange(len(steps))
    answers = np.flatnonzero(~events.is_step & (step >= 0))
    answered = place[step[answers]]
    reward = events.reward[steps]
    np.add.at(reward, answered, events.reward[answers])
    before_next = events.time[answers] < next_time[answered]
    answers, answered = answers[before_next], answered[before_next]
    weightiest = np.lexsort((events.reward[answers], answered))
    last = np.append(answered[weightiest][1:] != answered[weightiest][:-1], True)[: len(answers)]
    response = np.full(len(steps), -1)
    response[answered[weightiest][last]] = events.type[answers[weightiest][last]]

    new_day = np.insert(~follows | (day[1:] != day[:-1]), 0, True)[: len(steps)]
    number = np.arange(len(steps)) - np.maximum.accumulate(np.where(new_day, np.arange(len(steps)), 0)) + 1
    first = (pause > rules.gap) | np.insert(closed, 0, True)[: len(steps)]
    made = np.flatnonzero(as_of >= 0)
    made = made[np.argsort(day[made], kind="stable")]  # as they are written: by day, user and time
    return _of(
        STEPS,
        table.take(events.rows[steps[made]]),
        step=number[made],
        reward=reward[made],
        first=first[made],
        response=_nullable(response[made]),
        end=_nullable(end[made]),
    )


def _closed(events: Events, steps: Ints, rules: Rules) -> Bools:
    """Whether the log says, within the gap after a step and before the next one, that the user's episode is over."""
    says = rules.terminates[events.type]
    if not says.any():
        return np.zeros(len(steps), dtype=np.bool_)
    place = np.arange(len(says))
    following = np.minimum.accumulate(np.where(says, place, len(says))[::-1])[::-1][steps]  # the first such event from the step itself on
    next_step = np.append(steps[1:], len(says))[: len(steps)]
    inside = np.minimum(following, len(says) - 1)
    return np.asarray((following < next_step) & (events.user[inside] == events.user[steps]) & (events.time[inside] - events.time[steps] <= rules.gap))


def _strays(events: Events, step: Ints) -> Ints:
    return np.flatnonzero(~events.is_step & (step < 0) & (events.reward != 0) & (events.as_of >= 0))


def _too_late(events: Events, latest: Ints, strays: Ints, rules: Rules) -> Bools:
    """Whether there was a step, too far back. Further back than `reach` lies what a run over more days would see and a run over fewer would not."""
    return np.asarray((latest[strays] >= 0) & (events.day[strays] - events.day[latest[strays]] <= rules.reach))


def _sums(events: Events, step: Ints, strays: Ints, too_late: Bools) -> pa.Table:
    """Where the rewards of each day went."""
    given = np.flatnonzero((events.reward != 0) & (step >= 0) & (events.as_of[step] >= 0))
    rewarded, at = np.concatenate([given, strays]), np.concatenate([step[given], strays])
    reason = np.concatenate([np.full(len(given), -1), too_late])
    keys = np.stack([events.day[at], events.as_of[at], events.day[rewarded], events.type[rewarded], reason])
    (day, as_of_day, event_day, event_type, reason), which = np.unique(keys, axis=1, return_inverse=True)
    reward = np.zeros(len(day), dtype=np.int64)
    np.add.at(reward, which, events.reward[rewarded])
    columns = {"event_type": event_type, "reason": _nullable(reason), "events": np.bincount(which, minlength=len(day)), "reward": reward}
    days = {"day": day, "as_of_day": as_of_day, "event_day": event_day}
    return _of(SUMS, pa.table({name: pa.array(values, pa.int32()).cast(pa.date32()) for name, values in days.items()}), **columns)


def _of(schema: pa.Schema, rows: pa.Table, **columns: Any) -> pa.Table:
    """Rows of a schema: what is not among `columns` is taken from `rows`."""
    return pa.table([columns.get(name, rows[name] if name in rows.column_names else None) for name in schema.names], names=schema.names).cast(schema)


def _ints(column: pa.ChunkedArray, missing: int | None = None) -> Any:
    """A column as int64; times as microseconds, days as days since 1970."""
    if pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    column = column.cast(pa.int64())
    return (column if missing is None else pc.fill_null(column, missing)).to_numpy()


def _nullable(codes: Ints) -> pa.Array:
    return pa.array(codes, pa.int8(), mask=codes < 0)
