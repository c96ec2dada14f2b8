"""Writes the logs of a small world whose best policy is known.

A user's day is one episode of 8 to 20 steps, lived by about 60% of the users. The world is drawn in `truth`, lived in `episodes`,
logged by `logger`; the truth is kept below `.world`, where ingest does not look.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np

from jobs.contracts.errors import FolderTaken, LandingUnwritable
from jobs.world.episodes import DAY, NOTHING, play
from jobs.world.faults import Faults
from jobs.world.landing import Event, draw_titles, events_of, item_lines, settings_text, user_lines, write_lines
from jobs.world.logger import Logger, Memory, item_score
from jobs.world.pilot import settle
from jobs.world.truth import WORLD_FILE, Floats, World, draw_world

ACTIVE = 0.6  # share of the users who come on a day
REPRICED = 0.01  # share of the items whose price changes on a day
LEDGER_FILE = Path(".world", "faults.json")


def simulate(landing: Path, *, users: int, items: int, first: date, days: int, seed: int, null: bool, confounded: bool, faults: bool) -> None:
    """Write a landing folder, whole or not at all; an earlier world in its place is replaced.

    Raises FolderTaken when the folder holds anything else, LandingUnwritable when it can't be made.
    """
    if landing.exists() and not (landing / WORLD_FILE).exists() and (not landing.is_dir() or any(landing.iterdir())):
        raise FolderTaken(f"{landing} holds something that `nightjar simulate` did not write. Name a new or an empty folder.")
    world = settle(draw_world(seed, users=users, items=items, first=first, days=days, null=null, confounded=confounded))
    building = landing.with_name(f".{landing.name}.new")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
    except OSError as error:
        raise LandingUnwritable(f"{landing} can't be made: {error.strerror}. Name another folder.") from error
    (building / "nightjar.toml").write_text(settings_text())
    plan = Faults.plan(world) if faults else None
    world = plan.changed() if plan else world
    happened, lines, item_scores = _write_days(building, world, plan)
    replace(world, item_scores=item_scores).save(building)
    ledger = plan.ledger(happened, lines) if plan else {"lines": lines, "accepted": happened}
    (building / LEDGER_FILE).write_text(json.dumps(ledger, indent=1) + "\n")
    shutil.rmtree(landing, ignore_errors=True)
    building.rename(landing)


def _write_days(landing: Path, world: World, faults: Faults | None) -> tuple[int, int, Floats]:
    """Live and write all days; return the number of events that happened in time, of lines, and what the logger thought of the items."""
    feeds = _Feeds(world, faults)
    memory = Memory.empty(len(world.segment))
    shown, clicked = np.zeros(world.items), np.zeros(world.items)
    scores = [item_score(shown, clicked)]
    happening: dict[int, list[Event]] = defaultdict(list)
    arriving: dict[int, list[Event]] = defaultdict(list)
    happened = lines = 0
    dawn = world.midnight(0)
    for day in range(world.days):
        rng = np.random.default_rng([world.seed, 6, day])
        prices = feeds.live(day)
        users = np.flatnonzero((world.joins <= day) & (rng.random(len(world.joins)) < ACTIVE))
        logger = Logger(world, memory.of(users), scores[-1], np.random.default_rng([world.seed, 7, day]))
        log, _ = play(world, day, world.tastes[users], logger, rng)
        memory.learn(world, log, users)
        here = log.item != NOTHING
        np.add.at(shown, log.item[here], 1)
        np.add.at(clicked, log.item[here], log.click_time[here] > 0)
        scores.append(item_score(shown, clicked))
        for event in events_of(world, log, users, prices):
            happening[(event.time - dawn) // DAY].append(event)
        today = happening.pop(day, [])
        happened += len(today)
        for arrival, events in (faults.spoil(day, today) if faults else {day: today}).items():
            arriving[faults.arrival(arrival) if faults else arrival] += events
        if faults and day == faults.missing_day:
            continue
        brought = sorted(arriving.pop(day, []))
        lines += len(brought)
        write_lines(landing / "events" / f"ds={world.day(day)}", (event.line for event in brought))
        feeds.write(landing, day)
    return happened, lines, np.stack(scores)


class _Feeds:
    """The item and the user feed: rows of what appears, changes or vanishes, kept until a day on which files are written."""

    def __init__(self, world: World, faults: Faults | None) -> None:
        self.world = world
        self.titles = draw_titles(world)
        self.prices = world.price.copy()
        self.rng = np.random.default_rng([world.seed, 8])
        self.gone = world.leaves.copy()
        if faults and faults.withdrawn_item is not None:
            self.gone[faults.withdrawn_item] = faults.withdrawn_day
        self.items: list[str] = []
        self.users: list[str] = []

    def live(self, day: int) -> Floats:
        """Change prices and take down the rows of a day; return the prices in force."""
        repriced = self.rng.random(self.world.items) < REPRICED
        self.prices = np.where(repriced & (day > 0), np.round(self.prices * self.rng.uniform(0.7, 1.3, self.world.items), 2), self.prices)
        shown = (self.world.appears <= day) & (day < self.gone)
        changed = np.flatnonzero(shown & (repriced | (self.world.appears == day)))
        self.items += item_lines(self.world, changed, self.titles, self.prices, True)
        self.items += item_lines(self.world, np.flatnonzero(self.gone == day), self.titles, self.prices, False)
        self.users += user_lines(self.world, np.flatnonzero(self.world.joins == day))
        return self.prices

    def write(self, landing: Path, day: int) -> None:
        """Write what has gathered."""
        for name, rows in (("items", self.items), ("users", self.users)):
            if rows:
                write_lines(landing / name / f"ds={self.world.day(day)}", rows)
            rows.clear()
