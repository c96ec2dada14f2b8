"""Answers histories with lists, line by line, for whoever plays a policy step by step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import date

import numpy as np

from jobs.contracts.errors import BadRequest
from jobs.lake import Lake
from jobs.settings import Settings
from models.histories import best, steps_of
from models.serving import load_served

_EXPECTED = '{"n": 10, "histories": [[{"item_id": "i1", "event_type": "view", "response": null, "event_time": 1767225600}], []]}'


def answers(lines: Iterable[str], lake: Lake, settings: Settings, day: date, policy: str | None) -> Iterator[str]:
    """For each line `{"n": …, "histories": [[step, …], …]}` a line `{"lists": [[item_id, …], …]}`, best item first.

    A request may say `"now": [1767225600, …]`, the moment of each choice in seconds since 1970; else it is right after the last step.
    It may say `"features": [{"click_count_7d": 3.0}, …]` too, of each user what is known of gold.user_features; else nothing is.
    A history's steps are oldest first; each has `item_id`, `event_type`, `response` (or null) and `event_time` (seconds since 1970).
    Items and event types that are not known count as steps with an unknown one. `policy` as in `load_served`, whose errors these are;
    BadRequest for a line that is none of this.
    """
    served = load_served(lake, settings, day, policy)
    for number, line in enumerate(lines, start=1):
        try:
            request = json.loads(line)
            n, histories = int(request["n"]), request["histories"]
            now = np.array([int(moment) for _, moment in zip(histories, request["now"], strict=True)], dtype=np.int64) if "now" in request else None
            steps = steps_of(histories, served.catalogue.index(), tuple(settings.event_types), request.get("features"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadRequest(f"Line {number} of the input can't be read ({error!r}). Expected something like {_EXPECTED}") from error
        users = np.arange(len(histories))
        scores, allowed = served.ranker.score(steps, users, steps.offsets[1:], now), served.candidates(steps, users, settings.evaluate.repeats)
        yield json.dumps({"lists": best(scores, allowed, n, served.catalogue.item_ids)})
