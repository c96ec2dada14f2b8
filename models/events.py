"""The moments at which somebody is judged: a user, what happened to that user before, and what came next."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import PER_STEP, Bools, Ints, Steps, noon_of

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Events:
    """Moments of some steps: user `users[i]` after the steps before `ends[i]`, and what came next."""

    users: Ints  # [n] index into Steps.user_ids
    ends: Ints  # [n] index into the steps, exclusive
    items: Ints  # [n]
    rewards: Doubles  # [n]
    propensities: Doubles  # [n]; nan = not logged
    days: Ints  # [n] days since 1970-01-01
    times: Ints  # [n] seconds since 1970

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, chosen: slice | Bools) -> Events:
        return Events(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True)
class Candidates:
    """What could have been chosen on the days judged: bool[days, items] from `first_day` on; without `repeats` nothing that the user met before."""

    available: Bools
    first_day: int
    repeats: bool

    @property
    def ever(self) -> Bools:
        """bool[items]: available on any of the days."""
        ever: Bools = np.logical_or.reduce(self.available, axis=0)
        return ever

    def mask(self, steps: Steps, events: Events) -> Bools:
        """bool[n, items]: candidates of each moment."""
        mask: Bools = self.available[events.days - self.first_day]
        if not self.repeats:
            moments, before = history(steps, events.users, events.ends)
            mask[moments, steps.item[before]] = False
        return mask

    def eligible(self, steps: Steps, events: Events) -> Bools:
        """bool[n]: what came next is a candidate: false where the user has met it and repeats are not wanted."""
        eligible = np.ones(len(events), dtype=np.bool_)
        if not self.repeats:
            moments, before = history(steps, events.users, events.ends)
            eligible[moments[steps.item[before] == events.items[moments]]] = False
        return eligible


def until(steps: Steps, last_day: int) -> Steps:
    """The steps up to and including `last_day` (days since 1970-01-01); every user stays, some with no step left."""
    return only(steps, steps.day <= last_day)


def since(steps: Steps, first_day: int, before: int) -> Steps:
    """The steps from `first_day` on, with the last `before` steps before them of each user who has any; every user stays."""
    users = steps.users()
    earlier = np.bincount(users[steps.day < first_day], minlength=len(steps.user_ids))
    begins = np.where(earlier < np.diff(steps.offsets), steps.offsets[:-1] + np.maximum(earlier - before, 0), steps.offsets[1:])
    return only(steps, np.arange(len(steps)) >= begins[users])


def only(steps: Steps, kept: Bools) -> Steps:
    """Some of the steps, bool[n]; every user stays, some with no step left."""
    counts = np.bincount(steps.users()[kept], minlength=len(steps.user_ids))
    per_step: dict[str, Any] = {name: getattr(steps, name)[kept] for name in PER_STEP}
    return replace(steps, offsets=np.concatenate([[0], np.cumsum(counts)]), **per_step)


def rolling(steps: Steps, first_day: int) -> Events:
    """Every step on `first_day` or later, each after all of the user's steps before it."""
    chosen = np.flatnonzero(steps.day >= first_day)
    return _events(steps, chosen, chosen, steps.time[chosen])


def nightly(steps: Steps, first_day: int) -> Events:
    """Each user's first rewarded step on `first_day` or later, after the user's steps before `first_day`: the case of a list made by night.

    It was made knowing the day, and not the time of that day, which counts as noon.
    """
    users = steps.users()
    rewarded = np.flatnonzero((steps.day >= first_day) & (steps.reward > 0))
    chosen = rewarded[np.unique(users[rewarded], return_index=True)[1]]
    before = np.bincount(users[steps.day < first_day], minlength=len(steps.user_ids))
    return _events(steps, chosen, steps.offsets[users[chosen]] + before[users[chosen]], noon_of(steps.day[chosen].astype(np.int64)))


def _events(steps: Steps, chosen: Ints, ends: Ints, times: Ints) -> Events:
    return Events(
        users=steps.users()[chosen],
        ends=ends.astype(np.int64),
        items=steps.item[chosen].astype(np.int64),
        rewards=steps.reward[chosen].astype(np.float64),
        propensities=steps.propensity[chosen].astype(np.float64),
        days=steps.day[chosen].astype(np.int64),
        times=times.astype(np.int64),
    )


def history(steps: Steps, users: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """What lies before some moments, as pairs: int64[m] place of the moment in `users`, int64[m] index of the step, oldest first."""
    starts = steps.offsets[users]
    lengths = ends - starts
    moments = np.repeat(np.arange(len(users)), lengths)
    within = np.arange(len(moments)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return moments, starts[moments] + within
