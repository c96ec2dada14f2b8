"""What is known about users and items at the end of a day. A feature is declared here once; its name is derived, never typed twice.

The end of day D knows the events that happened on D or before and had arrived by the end of D, and the items as they had been
delivered by then. A window of n days ends with D. Adding a feature is one more entry in `declared()`, and nothing else: the
columns of the tables, the Spark code, `nightjar stale` and `nightjar features list` follow from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Entity = Literal["user", "item"]
Operation = Literal["count", "sum", "mean", "min", "max", "last", "distinct", "approx_distinct", "rate", "recency", "trend", "top", "share", "current", "age"]

ENTITIES: tuple[Entity, ...] = ("user", "item")
WINDOWS = (1, 7, 30, 90)
# Smoothing: a rate has 20 events of prior at 5%, a trend one event on either side.
RATE_PRIOR = (1, 20)
TOP = 3
# Hashes that are kept of the users of an item, a day and an event type: an approximate number of users is off by 9% (1 / sqrt(SKETCH - 2)).
SKETCH = 128

# What an operation takes in, for which entities. `event`, `value`: the events, their values. `item`, `user`: the other side of them.
# `category`: the root category of their items; `vectors`: the named vectors of their items; `price`, `first_known`: the item itself.
_TAKES: dict[Operation, tuple[tuple[Entity, str], ...]] = {
    "count": (("user", "event"), ("item", "event")),
    "sum": (("user", "value"), ("item", "value")),
    "mean": (("user", "value"), ("item", "value"), ("user", "vectors")),
    "min": (("user", "value"), ("item", "value")),
    "max": (("user", "value"), ("item", "value")),
    "last": (("user", "value"), ("item", "value")),
    "distinct": (("user", "item"),),  # exact: as many as the user has met; an item may have millions of users
    "approx_distinct": (("item", "user"),),
    "rate": (("user", "event"), ("item", "event")),
    "recency": (("user", "event"), ("item", "event")),
    "trend": (("user", "event"), ("item", "event")),
    "top": (("user", "category"),),
    "share": (("item", "category"),),
    "current": (("item", "price"),),
    "age": (("item", "first_known"),),
}
_OF_VALUES: tuple[Operation, ...] = ("min", "max", "last")


@dataclass(frozen=True)
class Feature:
    """One column of the features of an entity: an operation over an input, of the events of one type within the last `days` days.

    `whole` is the event type that a rate divides by, `longer` the window that a trend is held against. `default` is what holds
    where nothing is known. Raises ValueError for an operation that does not take such an input, or lacks what it needs.
    """

    entity: Entity
    operation: Operation
    input: str
    event_type: str = ""
    days: int = 0
    whole: str = ""
    longer: int = 0
    default: float | None = None

    def __post_init__(self) -> None:
        if (self.entity, self.input) not in _TAKES[self.operation]:
            takes = ", ".join(f"{taken} of {entity}" for entity, taken in _TAKES[self.operation])
            raise ValueError(f"{self.operation} takes {takes}; got {self.input} of {self.entity}")
        if self.of_events and (not self.event_type or self.days not in WINDOWS):
            raise ValueError(f"{self.operation} needs an event type and a window of {WINDOWS} days; got {self.event_type!r}, {self.days}")
        if (self.operation == "rate") != bool(self.whole) or (self.operation == "trend") != (self.longer > self.days) or self.longer not in (0, *WINDOWS):
            raise ValueError(
                f"a rate, alone, has a `whole`, and a trend a `longer` window of {WINDOWS} days; {self.operation} got {self.whole!r}, {self.longer}"
            )

    @property
    def of_events(self) -> bool:
        """Whether it is made from events, or from the item alone."""
        return self.operation not in ("current", "age")

    @property
    def meets(self) -> bool:
        """Whether it needs to know which items a user, or which users an item, has met."""
        return self.operation in ("distinct", "approx_distinct", "top") or self.input == "vectors"

    @property
    def name(self) -> str:
        """`click_count_7d`, `purchase_value_sum_30d`, `click_per_impression_rate_7d`, `click_trend_7d_30d`, `price`, …"""
        if not self.of_events:
            return "age_days" if self.operation == "age" else self.input
        what = f"per_{self.whole}" if self.whole else "" if self.input == "event" else self.input
        longer = f"{self.longer}d" if self.longer else ""
        return "_".join(filter(None, (self.event_type, what, self.operation, f"{self.days}d", longer)))

    @property
    def type(self) -> str:
        """Its type in Spark SQL: a number but for the categories of a user, and the vectors, by name."""
        if self.operation == "top":
            return "array<string>"
        return "map<string,array<float>>" if self.input == "vectors" else "double"

    @property
    def is_number(self) -> bool:
        return self.type == "double"

    @property
    def definition(self) -> str:
        """What it says, in words."""
        one, prior = self.event_type, RATE_PRIOR
        other = {"user": "items", "item": "users"}[self.entity]
        words = {
            "count": f"number of {one} events",
            "sum": f"sum of the values of {one} events",
            "mean": f"mean value of {one} events",
            "min": f"smallest value of {one} events",
            "max": f"largest value of {one} events",
            "last": f"value of the latest {one} event that has one",
            "distinct": f"number of different {other} of {one} events",
            "approx_distinct": f"number of different {other} of {one} events, from the {SKETCH} smallest hashes of them: exact below {SKETCH}, else ±9%",
            "rate": f"({one} events + {prior[0]}) / ({self.whole} events + {prior[1]})",
            "recency": f"days since the last {one} event; 0 = on the day itself",
            "trend": f"({one} events + 1) / ({one} events of {self.longer} days * {self.days} / {self.longer} + 1)",
            "top": f"root categories of most {one} events, {TOP} at most, ties by name",
            "share": f"share of the {one} events on items that are in the item's root category",
            "current": self.input,
            "age": "days since the item was first delivered",
        }
        what = f"mean of the items' vectors, by name, each item as often as it has {one} events" if self.input == "vectors" else words[self.operation]
        return what + (f", last {self.days} day{'s' * (self.days > 1)}" if self.of_events else "")


def declared(event_types: Sequence[str]) -> tuple[Feature, ...]:
    """Features of users and items, given the event types of the settings, the first of which is what the others answer."""
    first, answers = event_types[0], event_types[1:]
    telling = answers or event_types  # those that tell a taste, or are worth something
    features: list[Feature] = []
    for entity in ENTITIES:
        features += [Feature(entity, "count", "event", one, days, default=0) for days in WINDOWS for one in event_types]
        features += [Feature(entity, "sum", "value", one, days, default=0) for days in WINDOWS for one in telling]
        features += [Feature(entity, "rate", "event", one, days, whole=first) for days in WINDOWS for one in answers]
        features += [Feature(entity, "mean", "value", one, days) for days in (30, 90) for one in telling]
        features += [Feature(entity, operation, "value", one, 90) for operation in _OF_VALUES for one in telling]
        features += [Feature(entity, "recency", "event", one, 90) for one in event_types]
        features += [Feature(entity, "trend", "event", one, 7, longer=30) for one in event_types]
    for one in telling:
        features += [Feature("user", "distinct", "item", one, days, default=0) for days in (7, 30)]
        features += [Feature("user", "top", "category", one, 30)]
        features += [Feature("item", "share", "category", one, days) for days in (7, 30)]
        features += [Feature("item", "approx_distinct", "user", one, days, default=0) for days in (7, 30)]
    features += [Feature("user", "mean", "vectors", telling[-1], 30)]  # of one type: of three they took half a backfill
    features += [Feature("item", "current", "price"), Feature("item", "age", "first_known")]
    return tuple(features)


def declared_of(entity: str, event_types: Sequence[str]) -> tuple[Feature, ...]:
    """The features of one entity, in the order of their columns."""
    return tuple(feature for feature in declared(event_types) if feature.entity == entity)


def met_types(features: Iterable[Feature]) -> tuple[str, ...]:
    """The event types of which the features need to know who has met what."""
    return tuple(sorted({feature.event_type for feature in features if feature.meets}))
