"""Histories from outside, and the lists that answer them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.data import DAY_SECONDS, Bools, Evenings, Floats, Ints, Steps


def steps_of(
    histories: Sequence[Sequence[Mapping[str, Any]]],
    items: Mapping[str, int],
    event_types: Sequence[str],
    features: Sequence[Mapping[str, float | None]] | None = None,
) -> Steps:
    """Histories as steps, each that of a user of its own; `items` are indices by id. Raises KeyError, TypeError or ValueError for what is no history.

    A history's steps are oldest first; each has `item_id`, `event_type`, `response` (or None) and `event_time` (seconds since 1970).
    Items and event types that are not known count as steps with an unknown one. `features` of each user, by name, hold at whatever moment.
    """
    if features is not None and len(features) != len(histories):
        raise ValueError(f"{len(features)} users have features, and {len(histories)} a history")
    kinds = {name: code for code, name in enumerate(event_types, start=1)}
    rows = [step for history in histories for step in history]
    count = len(rows)
    time = np.array([int(row["event_time"]) for row in rows], dtype=np.int64)
    return Steps(
        user_ids=tuple(str(number) for number in range(len(histories))),
        offsets=np.cumsum([0, *(len(history) for history in histories)]).astype(np.int64),
        item=np.array([items.get(str(row["item_id"]), 0) for row in rows], dtype=np.int32),
        event=np.array([kinds.get(row["event_type"], 0) for row in rows], dtype=np.int8),
        response=np.array([kinds.get(row["response"], 0) for row in rows], dtype=np.int8),
        reward=np.zeros(count, dtype=np.float32),
        time=time,
        first=np.zeros(count, dtype=np.bool_),
        end=np.zeros(count, dtype=np.int8),
        propensity=np.full(count, np.nan, dtype=np.float32),
        candidates=np.zeros(count, dtype=np.int32),
        day=(time // DAY_SECONDS).astype(np.int32),
        known=Evenings.given(features or []),
    )


def offered(available: Bools, steps: Steps, users: Ints, repeats: bool) -> Bools:
    """What may be recommended to each user, of the items that are `available`: bool[users, items]. Without `repeats` nothing met."""
    allowed = np.tile(available, (len(users), 1))
    if not repeats:
        for row, user in enumerate(users.tolist()):
            met = steps.item[steps.offsets[user] : steps.offsets[user + 1]]
            new = available.copy()
            new[met] = False
            if new.any():  # where nothing is new to the user, old is better than none
                allowed[row] = new
    return allowed


def best(scores: Floats, allowed: Bools, n: int, item_ids: Sequence[str]) -> list[list[str]]:
    """The best n items for each user, best first, of those `allowed`, bool[users, items]."""
    found = []
    for own, candidates in zip(scores, map(np.flatnonzero, allowed), strict=True):
        order = np.argsort(-own[candidates], kind="stable")[:n]
        found.append([item_ids[item] for item in candidates[order].tolist()])
    return found
