"""Answers histories with lists, line by line, for whoever plays a policy step by step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np

from jobs.contracts.errors import BadRequest
from jobs.lake import Lake
from jobs.settings import Settings
from models.data import Catalogue, Steps
from models.serving import Served, load_served

_EXPECTED = '{"n": 10, "histories": [[{"item_id": "i1", "event_type": "view", "response": null, "event_time": 1767225600}], []]}'


def answers(lines: Iterable[str], lake: Lake, settings: Settings, day: date, policy: str | None) -> Iterator[str]:
    """For each line `{"n": …, "histories": [[step, …], …]}` a line `{"lists": [[item_id, …], …]}`, best item first.

    A history's steps are oldest first; each has `item_id`, `event_type`, `response` (or null) and `event_time` (seconds since 1970).
    Items and event types that are not known count as steps with an unknown one. `policy` as in `load_served`, whose errors these are;
    BadRequest for a line that is none of this.
    """
    served = load_served(lake, settings, day, policy)
    for number, line in enumerate(lines, start=1):
        try:
            request = json.loads(line)
            n, histories = int(request["n"]), request["histories"]
            steps = steps_of(histories, served.catalogue, tuple(settings.event_types))
        except (ValueError, KeyError, TypeError) as error:
            raise BadRequest(f"Line {number} of the input can't be read ({error!r}). Expected something like {_EXPECTED}") from error
        yield json.dumps({"lists": best(served, steps, n, settings.evaluate.repeats)})


def best(served: Served, steps: Steps, n: int, repeats: bool) -> list[list[str]]:
    """The best n candidates for each user of `steps`, without exploration."""
    users = np.arange(len(steps.user_ids))
    scores = served.ranker.score(steps, users, steps.offsets[1:])
    allowed = served.candidates(steps, users, repeats)
    found = []
    for row in users.tolist():
        candidates = np.flatnonzero(allowed[row])
        order = np.argsort(-scores[row, candidates], kind="stable")[:n]
        found.append([served.catalogue.item_ids[item] for item in candidates[order].tolist()])
    return found


def steps_of(histories: Sequence[Sequence[Mapping[str, Any]]], catalogue: Catalogue, event_types: Sequence[str]) -> Steps:
    """Histories as steps, each that of a user of its own. Raises KeyError, TypeError or ValueError for what is no history."""
    items, kinds = catalogue.index(), {name: code for code, name in enumerate(event_types, start=1)}
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
        day=(time // 86_400).astype(np.int32),
    )
