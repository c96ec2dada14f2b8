"""What is counted about users and items. A feature is declared here once; its name is derived, never typed twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WINDOWS = (1, 7, 30)


@dataclass(frozen=True)
class Count:
    """Number of events of one type within the last `days` days."""

    event_type: str
    days: int

    @property
    def name(self) -> str:
        return f"{self.event_type}_count_{self.days}d"


@dataclass(frozen=True)
class Sum:
    """Sum of the values of the events of one type within the last `days` days."""

    event_type: str
    days: int

    @property
    def name(self) -> str:
        return f"{self.event_type}_value_sum_{self.days}d"


@dataclass(frozen=True)
class Rate:
    """(Events of type `part` + 1) / (events of type `whole` + 20) within the last `days` days: 20 events of prior at 5%."""

    part: str
    whole: str
    days: int

    @property
    def name(self) -> str:
        return f"{self.part}_per_{self.whole}_rate_{self.days}d"


Feature = Count | Sum | Rate


def declared(event_types: Sequence[str]) -> tuple[Feature, ...]:
    """Features of a user, and of an item, given the event types of the settings, the first of which is what the others answer."""
    features: list[Feature] = []
    for days in WINDOWS:
        features += [Count(event_type, days) for event_type in event_types]
        features += [Sum(event_type, days) for event_type in event_types]
        features += [Rate(event_type, event_types[0], days) for event_type in event_types[1:]]
    return tuple(features)
