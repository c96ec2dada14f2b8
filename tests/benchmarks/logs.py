"""The real logs that rankers are measured on, read without a lake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyarrow import csv

from models.data import END_CODES, Catalogue, Ints, Steps, day_number

DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"
_HOUR, _DAY = 3_600, 86_400  # seconds
_REWARDS = {"pv": 0.1, "fav": 0.3, "cart": 0.4, "buy": 1.0}


@dataclass(frozen=True)
class Log:
    """All steps of a set. Items are numbered in the order in which they were first met, so those met before some day are the first so many."""

    steps: Steps
    catalogue: Catalogue
    event_types: tuple[str, ...]
    repeats: bool


def movietweetings(folder: Path) -> Log:
    """The 5-core, days in UTC; a film's category is the first of its genres. Nobody rates a film twice, and a week's pause ends an episode."""
    rows = np.array([line.split("::") for line in (folder / "ratings.dat").read_text().splitlines()], dtype=np.int64)
    rows = rows[core(rows[:, 0], rows[:, 1], 5)]
    films = (line.split("::") for line in (folder / "movies.dat").read_text("utf-8").splitlines())
    paths = {int(film): tuple(genres.split("|")[:1]) for film, _, genres in films if genres}
    users, items, ratings, times = rows.T
    return _log(users, items, np.ones_like(items), ratings / 10, times, times // _DAY, paths, 168 * _HOUR, ("rating",), repeats=False)


def core(users: Ints, items: Ints, least: int) -> Ints:
    """The rows left when users and items with less than so many rows are dropped until there are none."""
    rows = np.arange(len(users))
    while True:
        kept = rows
        for column in (users, items):
            _, which, counts = np.unique(column[kept], return_inverse=True, return_counts=True)
            kept = kept[counts[which] >= least]
        if len(kept) == len(rows):
            return rows
        rows = kept


def taobao(folder: Path, by_item: bool) -> Log:
    """Days of China, the rows outside the window dropped. The items are categories; or the items themselves, the steps with one that less than three
    users met dropped, from histories too: whoever recommends such items has never known the others.
    """
    table = csv.read_csv(folder / "UserBehavior_first815users.csv", csv.ReadOptions(column_names=["user", "item", "category", "behaviour", "time"]))
    users, items, categories, times = (table[name].to_numpy() for name in ("user", "item", "category", "time"))
    events = np.array([[*_REWARDS].index(behaviour) for behaviour in table["behaviour"].to_pylist()])
    days = (times + 8 * _HOUR) // _DAY
    rows = np.flatnonzero((days >= day_number(date(2017, 11, 25))) & (days <= day_number(date(2017, 12, 3))))
    paths: dict[int, tuple[str, ...]] = {}
    if by_item:
        met = np.unique(np.stack([items[rows], users[rows]]), axis=1)[0]  # once for each user
        known, counts = np.unique(met, return_counts=True)
        rows = rows[np.isin(items[rows], known[counts >= 3])]
        paths = dict(zip(items.tolist(), ((str(category),) for category in categories.tolist()), strict=True))
    chosen, rewards = items if by_item else categories, np.array([*_REWARDS.values()])[events]
    return _log(users[rows], chosen[rows], events[rows] + 1, rewards[rows], times[rows], days[rows], paths, 6 * _HOUR, tuple(_REWARDS), repeats=True)


def _log(
    users: Ints,
    items: Ints,
    events: Ints,
    rewards: NDArray[np.float64],
    times: Ints,
    days: Ints,
    paths: Mapping[int, tuple[str, ...]],
    gap: int,
    event_types: tuple[str, ...],
    repeats: bool,
) -> Log:
    """Rows in any order. A pause of more than `gap` seconds ends an episode, and the end of the log ends the last one of each user."""
    order = np.lexsort((times, users))
    users, items, times = users[order], items[order], times[order]
    user_ids, counts = np.unique(users, return_counts=True)
    by_time = np.argsort(times, kind="stable")
    known, first = np.unique(items[by_time], return_index=True)
    place = np.empty(len(known), dtype=np.int32)
    place[np.argsort(first)] = np.arange(1, len(known) + 1)
    is_new = np.insert(users[1:] != users[:-1], 0, True)
    is_first = is_new | np.insert(np.diff(times) > gap, 0, True)
    end = np.where(np.append(is_first[1:], True), END_CODES["truncated_gap"], 0)
    end[np.append(is_new[1:], True)] = END_CODES["truncated_window"]
    steps = Steps(
        user_ids=tuple(map(str, user_ids)),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        item=place[np.searchsorted(known, items)],
        event=events[order].astype(np.int8),
        response=np.zeros(len(items), dtype=np.int8),
        reward=rewards[order].astype(np.float32),
        time=times,
        first=is_first,
        end=end.astype(np.int8),
        propensity=np.full(len(items), np.nan, dtype=np.float32),
        candidates=np.zeros(len(items), dtype=np.int32),
        day=days[order].astype(np.int32),
    )
    ids = known[np.argsort(first)].tolist()
    size = len(ids) + 1
    return Log(steps, Catalogue(("", *map(str, ids)), ((), *(paths.get(item, ()) for item in ids)), (None,) * size, np.arange(size) > 0), event_types, repeats)
