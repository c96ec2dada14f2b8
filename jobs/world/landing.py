"""A day of a world in the landing format: events, items, users, and the settings that fit."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jobs.world.episodes import DAY, Log
from jobs.world.logger import TENDENCY_NAMES
from jobs.world.truth import CATEGORIES, REWARDS, SEGMENTS, Floats, Ints, World

LOOKS = ("Amber", "Bright", "Calm", "Dusky", "Early", "Fine", "Grand", "Hidden", "Ivory", "Jolly", "Keen", "Light", "Mellow", "Noble", "Old", "Plain")
STUFFS = ("Ash", "Birch", "Copper", "Denim", "Elm", "Felt", "Glass", "Hemp", "Iron", "Jute", "Linen", "Maple", "Nickel", "Oak", "Pine", "Steel")
MATURITY_DAYS = {"click": 1, "favourite": 1, "purchase": 3}


class Event(NamedTuple):
    """One line of an event file, and when it happened (seconds since the epoch)."""

    time: int
    line: str


def events_of(world: World, log: Log, users: Ints, prices: Floats) -> list[Event]:
    """All that happened in one day's episodes of the given users, in the order of users and steps, answers that come later included."""
    user_ids, item_ids = world.user_ids, world.item_ids
    events = []
    rows, steps = np.nonzero(log.item >= 0)
    columns = [column[rows, steps].tolist() for column in (log.item, log.time, log.propensity, log.click_time, log.favourite_time, log.purchase_time)]
    owners, tendencies = users[rows].tolist(), log.tendency[rows].tolist()
    listed = prices.tolist()
    for owner, tendency, step, item, time, propensity, *answers in zip(owners, tendencies, steps.tolist(), *columns, strict=True):
        session = f"s{log.day:03d}-{user_ids[owner]}"
        request = f"r{log.day:03d}-{user_ids[owner]}-{step + 1:02d}"
        common = f'"user_id": "{user_ids[owner]}", "item_id": "{item_ids[item]}", "session_id": "{session}", "request_id": "{request}"'
        chosen = f'"position": 1, "propensity": {propensity!r}, "policy_id": "{TENDENCY_NAMES[tendency]}"'
        events.append(Event(time, _line(request, "impression", time, f"{common}, {chosen}")))
        for kind, answered in zip(REWARDS, answers, strict=True):
            if answered:
                more = f'{common}, "value": {listed[item]!r}' if kind == "purchase" else common
                events.append(Event(answered, _line(request, kind, answered, more)))
    return events


def _line(request: str, kind: str, time: int, rest: str) -> str:
    return f'{{"event_id": "{request}-{kind}", "event_type": "{kind}", "event_time": "{iso(time)}", {rest}}}'


def iso(time: int) -> str:
    """Seconds since the epoch as ISO 8601 text."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def day_number(world: World, time: int) -> int:
    """Day of the world on which an instant lies."""
    return time // DAY - (world.first.toordinal() - datetime(1970, 1, 1).toordinal())


def draw_titles(world: World) -> list[str]:
    """A title for each item, such as `Calm Birch Kettle`."""
    rng = np.random.default_rng([world.seed, 4])
    looks, stuffs = rng.integers(0, len(LOOKS), world.items).tolist(), rng.integers(0, len(STUFFS), world.items).tolist()
    kinds = [CATEGORIES[category][1].capitalize() for category in world.category.tolist()]
    return [f"{LOOKS[look]} {STUFFS[stuff]} {kind}" for look, stuff, kind in zip(looks, stuffs, kinds, strict=True)]


def item_lines(world: World, items: Ints, titles: list[str], prices: Floats, available: bool) -> list[str]:
    """Rows of the item feed."""
    return [
        json.dumps(
            {
                "item_id": world.item_ids[item],
                "category": list(CATEGORIES[world.category[item]]),
                "title": titles[item],
                "price": float(prices[item]),
                "available": available,
            }
        )
        for item in items.tolist()
    ]


def user_lines(world: World, users: Ints) -> list[str]:
    """Rows of the user feed."""
    return [json.dumps({"user_id": world.user_ids[user], "attributes": {"segment": SEGMENTS[world.segment[user]]}}) for user in users.tolist()]


def write_lines(folder: Path, lines: Iterable[str]) -> None:
    """Write one gzip file of lines into a folder; the file knows neither its name nor the time, so that same lines are same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "part-0000.jsonl.gz").open("wb") as raw, gzip.GzipFile(filename="", mode="wb", compresslevel=3, fileobj=raw, mtime=0) as stream:
        for line in lines:
            stream.write(line.encode() + b"\n")


def settings_text() -> str:
    """`nightjar.toml` for a world: rewards and maturities are those that its users pay by."""
    types = "\n".join(f'[event_types.{kind}]\nreward = "{REWARDS[kind]:g}"\nmaturity_days = {days}\n' for kind, days in MATURITY_DAYS.items())
    return f"""# Settings for a simulated world; the landing folder is the one that this file lies in.

landing = "."
lake = "../lake"

[event_types.impression]
step = true

{types}
[episodes]
gap_hours = 2 # an episode takes half an hour at most; seven hours lie between two

[train]
window_days = 30

[evaluate]
holdout_days = 2
repeats = true # an item may be shown again, but for within an episode

[score]
top_n = 20 # as many as the longest episode has steps
"""
