"""How well the learner ranks real logs, beside what it has to beat: `make bench-quality`.

Time is global. The last days of a log are the test window, those before them the validation window. A baseline is tuned on the validation window,
learning from the days before it: 12 settings each, by NDCG@10. The settings of the nets are below, and were found there by hand, in
10 to 32 tries a set. Then everybody learns anew, from all days before the test window.

Judged is every rewarded step of the window ("all"), after all of the user's steps before it; and of each user the first one ("first"), after the
user's steps before the window. "New" are those of all whose item the user has not met before. Candidates are the items that somebody met on an
earlier day; without repeats what the user has met is none. All candidates are ranked, and ties count against the ranker. Not judged, but in the
histories, are steps with other items, and those of users of whom nothing was known before the window. Popularity is that of the eve of each day,
for everybody.

Coverage (of the candidates) and mean popularity (share of the training steps) are of the lists of "all". Figures are means over the seeds, standard
errors are clustered by user. Q(logged) / return is a ratio of sums over the steps judged, where Q is weighed by the share 1 - gamma^n of a return that
the n steps left in the window can show: no end of an episode but a termination ends a return, and there is none of these here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from jobs.settings import Train
from models.data import Bools, Catalogue, DailyCounts, Floats, Ints, Ranker, Steps, day_number
from models.events import Candidates, Doubles, Events, nightly, rolling, until
from models.learner import fit
from models.loader import HeldBucket
from models.metrics import coverage, mean_popularity, ndcg_at, rank, recall_at, top
from models.policy import Policy
from models.popularity import DecayedCounts
from models.training_data import TrainingData
from tests.benchmarks.logs import DATA, Log, movietweetings, taobao
from tests.benchmarks.peers import Linear, ease, popularity

K = 10


@dataclass(frozen=True)
class Set:
    """A real log, the first days of its validation and test windows, and the settings of its nets."""

    read: Callable[[], Log]
    validation: date
    test: date
    net: Train


SETS = {
    "MovieTweetings": Set(
        lambda: movietweetings(DATA / "movietweetings"),
        date(2013, 7, 29),
        date(2013, 8, 15),
        Train(dropout=0.5, step_id_dropout=0.0, epochs=12, batch_steps=1024),
    ),
    "Taobao category": Set(
        lambda: taobao(DATA / "taobao_userbehavior", False), date(2017, 12, 2), date(2017, 12, 3), Train(dropout=0.2, epochs=4, batch_steps=512)
    ),
    # 6,833 steps: all that is larger, or learns longer, learns them by heart.
    "Taobao item": Set(
        lambda: taobao(DATA / "taobao_userbehavior", True),
        date(2017, 12, 2),
        date(2017, 12, 3),
        Train(dim=16, layers=1, context=16, dropout=0.5, epochs=8, batch_steps=256),
    ),
}
# What a net has of its own, on top of the settings of its set; `policy` has nothing.
NETS: dict[str, dict[str, Any]] = {
    "cloning": {"alpha": 1000.0},
    "policy": {},
    "policy, one critic": {"critics": 1},
    "policy, alpha 5": {"alpha": 5.0},
    "policy, transformer": {"encoder": "transformer", "layers": 2},
}


class Window:
    """The days from `first` to `last`, judged by what was known before them."""

    def __init__(self, log: Log, first: int, last: int, told: Steps | None = None) -> None:
        """`told`: what rankers learn from, and popularity is of; None = all steps."""
        self.log, self.first, self.days = log, first, last - first + 1
        self.steps, self.before = until(log.steps, last), until(log.steps, first - 1)
        self.told = self.steps if told is None else until(told, last)
        self.train = until(self.told, first - 1)
        self.items, self.known = len(log.catalogue), int(self.before.item.max()) + 1  # the items known, and one for none, come first
        self.met = np.full(self.items, last)  # the first day of each item
        np.minimum.at(self.met, self.steps.item, self.steps.day)
        self.candidates = Candidates((self.met < np.arange(first, last + 1)[:, None]) & (np.arange(self.items) > 0), first, log.repeats)
        every = rolling(self.steps, first)
        self.every, self.nightly = self._judged(every), self._judged(nightly(self.steps, first))
        self.left_out = len(every) - len(self.every)
        self.is_new = replace(self.candidates, repeats=False).eligible(self.steps, self.every)

    def _judged(self, events: Events) -> Events:
        is_candidate = self.candidates.available[events.days - self.first, events.items]
        return events[is_candidate & (np.diff(self.before.offsets)[events.users] > 0) & (events.rewards > 0)]

    def popularity(self, half_life: float) -> Floats:
        """As `peers.popularity`, on the eve of each day."""
        return popularity(self.told, self.items, self.first, self.days, half_life)

    def by_day(self, rankers: Sequence[Ranker], events: Events) -> Iterator[tuple[Ranker, Bools]]:
        """The ranker of each day, and which events are of that day."""
        for day, ranker in enumerate(rankers, start=self.first):
            if (today := events.days == day).any():
                yield ranker, today

    def ranks(self, rankers: Sequence[Ranker], events: Events) -> Ints:
        """int64[n]."""
        ranks = np.zeros(len(events), dtype=np.int64)
        for ranker, today in self.by_day(rankers, events):
            ranks[today] = rank(ranker, self.steps, events[today], self.candidates).rank
        return ranks

    def lists(self, rankers: Sequence[Ranker]) -> Ints:
        """The lists of all events, day by day."""
        return np.concatenate([top(ranker, self.steps, self.every[today], self.candidates, K) for ranker, today in self.by_day(rankers, self.every)])


@dataclass(frozen=True)
class Tuned:
    """Settings of the baselines."""

    days: float = 1.0  # half-life of popularity
    own_steps: float = 2.0  # half-life of the user's own items
    steps: float = 2.0  # half-life of the history that EASE goes by
    row_steps: float = 10.0  # half-life of those that it learns from
    ridge: float = 100.0
    share: float = 1.0  # of EASE, beside the own items
    weight: float = 0.0  # of log(1 + popularity), likewise


def recency_popularity(window: Window, tuned: Tuned) -> list[Ranker]:
    """A ranker for each day, as from every `Maker`."""
    return [Linear("recency popularity", counts) for counts in window.popularity(tuned.days)]


def repeat(window: Window, tuned: Tuned) -> list[Ranker]:
    """The user's own items, and then by popularity."""
    counts = window.popularity(tuned.days)
    return [Linear("repeat", prior, tuned.own_steps) for prior in 1e-6 * counts / counts.max()]


def recency_ease(window: Window, tuned: Tuned) -> list[Ranker]:
    """EASE, which says nothing of the user's own items: these are put beside it."""
    weights = tuned.share * ease(window.train, window.items, tuned.ridge, tuned.row_steps)
    return [Linear("EASE", prior, tuned.own_steps, weights, tuned.steps) for prior in tuned.weight * np.log1p(window.popularity(tuned.days))]


Maker = Callable[[Window, Tuned], list[Ranker]]
Grid = dict[str, tuple[float, ...]]
EASE: Grid = {"steps": (1, 2, 4, 8), "row_steps": (3, 6, 12, 40), "ridge": (10, 30, 100, 300)}
EASE_OF_REPEATS: Grid = {"share": (0.02, 0.1, 0.5), "steps": (1, 2, 4), "row_steps": (10, 40, np.inf), "ridge": (30, 100, 300)}
# A baseline begins with what was found for those before it.
PEERS: dict[str, tuple[Maker, Callable[[bool], Grid]]] = {
    "recency popularity": (recency_popularity, lambda _: {"days": (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 16, 32)}),
    "repeat": (repeat, lambda _: {"own_steps": (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 40, 80)}),
    "EASE": (recency_ease, lambda repeats: EASE_OF_REPEATS if repeats else EASE),
    "EASE + popularity": (recency_ease, lambda _: {"weight": (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3), "days": (0.5, 1, 2, 4)}),
}


def tune(make: Maker, window: Window, start: Tuned, grid: Grid) -> Tuned:
    """One setting after the other takes its best value, the others held."""

    def ndcg(tuned: Tuned) -> float:
        return float(ndcg_at(window.ranks(make(window, tuned), window.every), K).mean())

    for name, values in grid.items():
        start = max((replace(start, **{name: value}) for value in values), key=ndcg)
    return start


@dataclass(frozen=True)
class Row:
    """What was found of a ranker."""

    every: Ints  # [seeds, n] ranks
    first: Ints  # [seeds, m]
    coverage: float
    popularity: float
    q: Doubles | None = None  # [n] of what was chosen, in units of the reward


def judged(window: Window, rankers: Sequence[Ranker]) -> Row:
    lists = window.lists(rankers)
    counts = np.bincount(window.train.item, minlength=window.items)
    spread, follows = coverage(lists, window.candidates.ever), mean_popularity(lists, counts)
    return Row(window.ranks(rankers, window.every)[None], window.ranks(rankers, window.nightly)[None], spread, follows)


def judged_net(window: Window, train: Train) -> Row:
    policies, scale = policies_of(window, train)
    q = np.zeros(len(window.every))
    for day in range(window.days):
        today = window.every.days == window.first + day
        events = window.every[today]
        q[today] = scale * policies[day].q(window.steps, events.users, events.ends, events.times)[np.arange(len(events)), events.items]
    return replace(judged(window, policies), q=q)


def policies_of(window: Window, train: Train) -> tuple[list[Policy], float]:
    """A policy for each day, all of one network that learns from the days before the window; and the scale of its rewards."""
    everything, counts = window.log.catalogue, DailyCounts.of([window.train])
    known, begin = slice(window.known), int(counts.day[0])
    catalogue = Catalogue(everything.item_ids[known], everything.categories[known], everything.titles[known], everything.available[known])
    eligible = window.met[known] <= np.arange(begin, window.first)[:, None]
    data = TrainingData(catalogue, HeldBucket(window.train), counts, begin, eligible)
    fitted = fit(data, window.log.event_types, train, window.log.repeats, torch.device("cpu"))
    if fitted is None:
        raise typer.Exit(1)
    alone, scale = fitted[0].alone(0), fitted[1]
    eves = DecayedCounts.of(DailyCounts.of([window.told]), window.items, window.first, window.days).features()
    return [Policy("net", alone, catalogue.item_ids, catalogue.categories, everything, window.log.event_types, eve) for eve in eves], scale


def over_seeds(rows: Sequence[Row]) -> Row:
    every, first = (np.concatenate(column) for column in zip(*((row.every, row.first) for row in rows), strict=True))
    spread, follows = (float(np.mean(column)) for column in zip(*((row.coverage, row.popularity) for row in rows), strict=True))
    return Row(every, first, spread, follows, np.mean([row.q for row in rows if row.q is not None], axis=0))


def clustered(values: Doubles, users: Ints) -> tuple[float, float]:
    """The mean, and its standard error where users are drawn, each with all rows."""
    _, user = np.unique(users, return_inverse=True)
    sums = np.bincount(user, values - values.mean())
    return float(values.mean()), float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(values))


def figures(window: Window, row: Row) -> dict[str, tuple[Doubles, Ints]]:
    """Means over the seeds of each metric at each event, and the users of the events."""
    found = {}
    parts = {"all": (row.every, window.every.users), "first": (row.first, window.nightly.users)}
    if window.log.repeats:
        parts["new"] = (row.every[:, window.is_new], window.every.users[window.is_new])
    for name, (ranks, users) in parts.items():
        for metric, at in (("HR", recall_at), ("NDCG", ndcg_at)):
            found[f"{metric} {name}"] = np.mean([at(of_seed, K) for of_seed in ranks], axis=0), users
    return found


def against_returns(window: Window, q: Doubles, gamma: float) -> tuple[float, float]:
    """Q / return, and their correlation, where a step counts by the share of its return that the window shows."""
    steps = window.steps
    returns, shown = np.zeros(len(steps) + 1), np.zeros(len(steps) + 1)
    goes_on = np.where(np.isin(np.arange(1, len(steps) + 1), steps.offsets), 0.0, gamma)
    for place in range(len(steps) - 1, -1, -1):
        returns[place] = steps.reward[place] + goes_on[place] * returns[place + 1]
        shown[place] = 1 - gamma + goes_on[place] * shown[place + 1]
    returns, shown = returns[window.every.ends], shown[window.every.ends]
    covariance = np.cov(q, returns / shown, aweights=shown)
    return float((q * shown).sum() / returns.sum()), float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


def show(console: Console, window: Window, rows: Mapping[str, Row], gamma: float) -> None:
    values = {name: figures(window, row) for name, row in rows.items()}
    metrics = [*next(iter(values.values()))]
    page = Table("", *metrics, "coverage", "popularity", "Q / return", "correlation", box=box.MARKDOWN)
    for name, row in rows.items():
        cells = ["{:.3f} ± {:.3f}".format(*clustered(*values[name][metric])) for metric in metrics]
        q = [f"{number:.2f}" for number in against_returns(window, row.q, gamma)] if row.q is not None else ["", ""]
        page.add_row(name, *cells, f"{row.coverage:.3f}", f"{row.popularity:.4f}", *q)
    console.print(page)
    if "policy" not in rows:
        return
    page = Table("policy minus", *metrics, box=box.MARKDOWN)
    for name in (name for name in rows if name != "policy"):
        pairs = ((values["policy"][metric][0] - values[name][metric][0], values[name][metric][1]) for metric in metrics)
        page.add_row(name, *("{:+.4f} ± {:.4f}".format(*clustered(*pair)) for pair in pairs))
    console.print(page)


def main(
    sets: Annotated[list[str] | None, typer.Option("--set", help="all sets unless given")] = None,
    rows: Annotated[list[str] | None, typer.Option("--row", help="all rows unless given")] = None,
    seeds: Annotated[int, typer.Option(help="trainings of each net")] = 3,
    validation: Annotated[bool, typer.Option("--validation", help="judge on the validation window")] = False,
    change: Annotated[str, typer.Option(help="settings of the nets, as JSON")] = "{}",
) -> None:
    """For each set the settings found, the figures of each row, and by how much `policy` is better."""
    console = Console(width=240, highlight=False)
    for name, one in SETS.items():
        if sets and name not in sets:
            continue
        log = one.read()
        first = day_number(one.test)
        tuning = Window(log, day_number(one.validation), first - 1)
        window = tuning if validation else Window(log, first, int(log.steps.day.max()))
        console.print(
            f"\n{name}: {len(window.train):,} steps before, {len(window.every):,} judged and {window.left_out:,} not, {window.known - 1:,} candidates\n"
        )
        found: dict[str, Row] = {}
        tuned = Tuned()
        for row, (make, grid_for) in PEERS.items():
            if (not rows or row in rows) and (log.repeats or row != "repeat"):
                tuned = tune(make, tuning, tuned, grid := grid_for(log.repeats))
                console.print(f"{row}: {', '.join(f'{setting} {getattr(tuned, setting):g}' for setting in grid)}")
                found[row] = judged(window, make(window, tuned))
        for row, own in NETS.items():
            if not rows or row in rows:
                train = one.net.model_copy(update=own | json.loads(change))
                found[row] = over_seeds([judged_net(window, train.model_copy(update={"seed": seed})) for seed in range(seeds)])
        show(console, window, found, one.net.gamma)


if __name__ == "__main__":
    typer.run(main)
