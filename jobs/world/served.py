"""Policies from outside the world: one that answers in a process of its own, and lists that were published the night before."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from jobs.contracts.errors import ProcessFailed
from jobs.world.episodes import LONGEST, NOTHING, Hidden, Log
from jobs.world.truth import REWARDS, Floats, Ints, World

REMEMBERED = 64  # steps of a history that are sent
ASKED = 2 * LONGEST  # an episode's items are passed over, and a few that left the shop overnight


class Recommender:
    """`python -m models recommend`, asked line by line: histories in, lists of item ids out.

    Raises ProcessFailed when it ends, or answers with something else than one list a history; its own message is on stderr.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def ask(self, histories: Sequence[Sequence[Mapping[str, Any]]], now: Sequence[int], n: int) -> list[list[str]]:
        """The best n items for each history, at the moments `now` (seconds since 1970)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"n": n, "now": now, "histories": histories}) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ProcessFailed(f"`{' '.join(self.command)}` ended with status {self.process.wait()} instead of answering; its own message stands above.")
        lists: list[list[str]] = json.loads(answer)["lists"]
        if len(lists) != len(histories):
            raise ProcessFailed(f"`{' '.join(self.command)}` was asked for {len(histories)} lists and gave {len(lists)}.")
        return lists


def recommender(day: str, policy: str | None) -> Recommender:
    """The policy of that version, or `popularity`, or the one served for the day."""
    return Recommender([sys.executable, "-m", "models", "recommend", "--day", day, *(["--policy", policy] if policy else [])])


@dataclass(frozen=True)
class Asked:
    """A policy that sees each answer before it chooses again; `past` are the users' earlier days."""

    world: World
    past: Sequence[Log]
    recommender: Recommender

    def choose(self, log: Log, hidden: Hidden, users: Ints, step: int) -> tuple[Ints, Floats]:  # noqa: ARG002
        """Show the best item that is still free."""
        now = log.time[users, step].tolist()
        lists = self.recommender.ask(histories(self.world, self.past, log, users, step), now, min(ASKED, self.world.items))
        return first_free(indexed(self.world, lists), log, users, step), np.full(len(users), np.nan)


@dataclass(frozen=True)
class Published:
    """Lists fixed beforehand, users x places, consumed in order; what is not in the shop any more is passed over."""

    lists: Ints

    def choose(self, log: Log, hidden: Hidden, users: Ints, step: int) -> tuple[Ints, Floats]:  # noqa: ARG002
        """Show the next item of the list."""
        return first_free(self.lists[users], log, users, step), np.full(len(users), np.nan)


def indexed(world: World, lists: Sequence[Sequence[str]]) -> Ints:
    """Items of the world by number, lists x places; NOTHING where a list has ended, or names what the world never had."""
    known = {item_id: number for number, item_id in enumerate(world.item_ids)}
    numbers = np.full((len(lists), max((len(items) for items in lists), default=0) + 1), NOTHING, dtype=np.int64)
    for row, items in enumerate(lists):
        numbers[row, : len(items)] = [known.get(item_id, NOTHING) for item_id in items]
    return numbers


def first_free(lists: Ints, log: Log, users: Ints, step: int) -> Ints:
    """First item of each list (users x places) that is in the shop and was not shown in this episode; NOTHING where there is none."""
    fit = (lists != NOTHING) & log.available[lists]
    fit &= ~(lists[:, :, None] == log.item[users, None, :step]).any(axis=2)
    return np.where(fit.any(axis=1), lists[np.arange(len(lists)), fit.argmax(axis=1)], NOTHING)


def histories(world: World, past: Sequence[Log], log: Log, users: Ints, step: int) -> list[list[dict[str, Any]]]:
    """What a log would show of each user before `step`, the last REMEMBERED steps, oldest first.

    `response` is the weightiest answer that came before the user's next step.
    """

    def joined(name: str) -> Ints:
        return np.concatenate([*(getattr(day, name)[users] for day in past), getattr(log, name)[users, :step]], axis=1)

    item, time = joined("item"), joined("time")
    answers = {kind: joined(f"{kind}_time") for kind in sorted(REWARDS, key=lambda kind: REWARDS[kind])}
    found = []
    for row, now in enumerate(log.time[users, step].tolist()):
        steps = np.flatnonzero(item[row] != NOTHING)
        until = np.append(time[row, steps[1:]], now)
        response = np.full(len(steps), None, dtype=object)
        for kind, answered in answers.items():
            when = answered[row, steps]
            response[(when > 0) & (when < until)] = kind
        kept = slice(-REMEMBERED, None)
        columns = zip(item[row, steps][kept].tolist(), time[row, steps][kept].tolist(), response[kept].tolist(), strict=True)
        found.append([{"item_id": world.item_ids[shown], "event_type": "impression", "response": answer, "event_time": at} for shown, at, answer in columns])
    return found
