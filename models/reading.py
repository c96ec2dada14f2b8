"""What a list does to whoever reads it: the state in which each place is chosen is that after those above it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.data import DAY_SECONDS, PER_STEP, DailyCounts, Ints, Steps, ranges


@dataclass(frozen=True)
class Reading:
    """How a list is imagined to be read, from the top: each item is shown by the commonest event and gets the commonest answer, one after the other."""

    event: int  # as in Steps
    response: int
    seconds: int  # from one to the next, the median within episodes

    @classmethod
    def of(cls, steps: Steps) -> Reading | None:
        """As the steps of a log are; None where it does not tell what was shown in vain, so that a step is no place of a list."""
        if not DailyCounts.of([steps]).has_refusals or not steps.response.any():
            return None
        within = np.setdiff1d(np.flatnonzero(~steps.first), steps.offsets)
        waits = steps.time[within] - steps.time[within - 1]
        return cls(int(np.bincount(steps.event).argmax()), int(np.bincount(steps.response)[1:].argmax()) + 1, int(np.median(waits)) if len(waits) else 0)

    def after(self, steps: Steps, users: Ints, items: Ints, now: int) -> Steps:
        """The steps of these users alone, each with its `items` int64[users, places] read from the moment `now` on."""
        places = items.shape[1]
        begins, ends = steps.offsets[users], steps.offsets[users + 1]
        read: dict[str, Any] = {
            "item": items,
            "event": self.event,
            "response": self.response,
            "time": now + self.seconds * np.arange(places),
            "propensity": np.nan,
            "day": now // DAY_SECONDS,
        }
        lengths, own = ends - begins, ranges(begins, ends)
        is_read = np.repeat(np.tile([False, True], len(users)), np.column_stack([lengths, np.full(len(users), places)]).ravel())
        columns = {}
        for name in PER_STEP:
            values = getattr(steps, name)
            columns[name] = np.empty(len(is_read), dtype=values.dtype)
            columns[name][~is_read] = values[own]
            columns[name][is_read] = np.broadcast_to(read.get(name, 0), items.shape).ravel()
        offsets = np.concatenate([[0], np.cumsum(lengths + places)])
        user_ids = tuple(steps.user_ids[user] for user in users.tolist())
        return replace(steps, user_ids=user_ids, offsets=offsets, known=steps.known.alone(users), **columns)
