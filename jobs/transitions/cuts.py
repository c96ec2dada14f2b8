"""Which days a run rebuilds, and how much each of them may know.

A partition of day E is a function of the rows that happened within `reach` days of E and had arrived by its `as_of_day`.
So a run has to rebuild E when something within its reach arrived or matured, and never has to look further.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from jobs.contracts.days import portions
from jobs.settings import Settings


def reach_days(settings: Settings) -> int:
    """Days before and after a step within which something can change its row: a neighbour within the gap, or an answer."""
    return max(math.ceil(settings.episodes.gap_hours / 24), maturity_days(settings))


def maturity_days(settings: Settings) -> int:
    """Days after which no reward of a step grows any more."""
    return max(event_type.maturity_days for event_type in settings.event_types.values())


def touched(days: Iterable[date], reach: int, arrivals: Iterable[tuple[date, date]]) -> dict[date, date]:
    """For each day that a run of `days` has to rebuild, the newest of `days` that changes something in it.

    `arrivals` are the pairs (event day, arrival day) of the rows that arrived on `days`. A run of day D changes the days
    [D - reach, D], where rewards mature and pauses become certain, and those within reach of a row that arrived on D.
    """
    newest: dict[date, date] = {}
    matured = ((day - timedelta(days=back), day) for day in days for back in range(reach + 1))
    arrived = ((near, arrival_day) for event_day, arrival_day in arrivals for near in around(event_day, reach))
    for day, by in (*matured, *arrived):
        newest[day] = max(newest.get(day, by), by)
    return newest


def as_of_days(newest: Mapping[date, date], days: Iterable[date]) -> dict[date, date]:
    """`as_of_day` of each of `days`: the newest night, of all that were run so far, that changed something in it.

    It comes from the nights and not from the rows, which another run may just be writing: so no order of runs lowers it.
    Days that lie after it have no rows yet and are left out.
    """
    return {day: newest[day] for day in days if day in newest and day <= newest[day]}


@dataclass(frozen=True)
class Look:
    """A look at the rows of event day `day` that had arrived by `cut`; `as_of_day` is set where this look is what makes the day's partition."""

    day: date
    cut: date
    as_of_day: date | None


def looks(as_of: Mapping[date, date], reach: int, last: date) -> list[Look]:
    """Every look that a run up to `last` has to take so that each day sees its surroundings as of its own `as_of_day`.

    What arrived by `last` is known to every day within its reach, as it has just touched it. So all days share one look,
    except those that an earlier run of a later day has told more.
    """
    cuts = {day: max(by, last) for day, by in as_of.items()}
    wanted = {(near, cut) for day, cut in cuts.items() for near in around(day, reach)}
    return [Look(day, cut, as_of[day] if cuts.get(day) == cut else None) for day, cut in sorted(wanted)]


@dataclass(frozen=True)
class Sight:
    """Looks that share a cut, for one task to take: the days, and the `as_of_day` of each as in `Look`."""

    cut: date
    days: list[date]
    as_of_days: list[date | None]


def sights(looks: Iterable[Look], sizes: Mapping[date, int], most: int) -> list[Sight]:
    """The looks, put together where their days have `most` rows or fewer."""
    as_of = {(look.cut, look.day): look.as_of_day for look in looks}
    return [
        Sight(cut, days, [as_of[cut, day] for day in days])
        for cut in sorted({cut for cut, _ in as_of})
        for days in portions(sorted(day for other, day in as_of if other == cut), sizes, most)
    ]


def around(day: date, reach: int) -> Iterable[date]:
    """The days within reach of a day, itself among them."""
    return (day + timedelta(days=offset) for offset in range(-reach, reach + 1))
