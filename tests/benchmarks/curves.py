"""What helps where little is logged: the learner on 1%, 10% and 100% of the users of a log, with each aid on and off: `make bench-curves`.

Users are thinned, and with them all that is learnt from them, popularity too; the catalogue is not, nor who is judged: "all" of `tests.benchmarks.quality`,
whose windows these are. The net is that of the settings by default. A draw of users is part of a seed, the fewer among the more. Standard errors are by
user judged, and tell nothing of who was drawn to learn from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from jobs.settings import Train
from models.data import Ints, Steps, day_number
from models.events import only
from models.learner import MANY
from models.metrics import ndcg_at, recall_at
from tests.benchmarks.quality import SETS, K, Tuned, Window, clustered, policies_of, recency_popularity, tune

_HALF_LIVES = (0.5, 1, 2, 4, 8, 16, 64)
_START = "item vectors begin the other way"  # at random in place of factors, or the other way round
# An aid that is on is switched off, and one that is off is switched on.
AIDS: dict[str, dict[str, Any]] = {
    "by default": {},
    "one critic": {"critics": 1},
    "batches of 512": {"batch_steps": 512},
    _START: {},
    "no content fallback": {"id_dropout": 0.0, "step_id_dropout": 0.0},
    "crop": {"crop": 0.5},
    "mask": {"mask": 0.2},
    "reorder": {"reorder": 0.5},
    "supervised": {"supervised": 1.0},
    "drawn items": {"exact_items": 1},
}


def some_users(steps: Steps, share: float, seed: int) -> Steps:
    """The steps of a share of the users."""
    place = np.random.default_rng(seed).permutation(len(steps.user_ids))
    return only(steps, (place < share * len(place))[steps.users()])


def popularity_of(window: Window, tuning: Window) -> Ints:
    """Ranks by popularity, of the half-life that is best on the validation window."""
    return window.ranks(recency_popularity(window, tune(recency_popularity, tuning, Tuned(), {"days": _HALF_LIVES})), window.every)


def net_of(window: Window, train: Train, aid: str) -> Ints:
    """Ranks by a net."""
    other = sys.maxsize if len(window.train) >= MANY else 0
    with patch("models.learner.MANY", other if aid == _START else MANY):
        return window.ranks(policies_of(window, train)[0], window.every)


def is_another(aid: str, window: Window, train: Train) -> bool:
    """Whether a row is not, for this log, the net by default under another name."""
    if aid == "batches of 512":
        return Train().for_size(len(window.train), window.known).batch_steps != train.batch_steps
    return aid != "no content fallback" or any(window.log.catalogue.categories)


def show(console: Console, window: Window, ranks: Mapping[str, Sequence[Ints]]) -> None:
    """HR and NDCG of each row, and by how much that is better than by default."""
    page = Table("", *(f"{metric}@{K}{less}" for metric in ("HR", "NDCG") for less in ("", " less that")), box=box.MARKDOWN)
    found = {name: [np.mean([at(of_seed, K) for of_seed in seeds], axis=0) for at in (recall_at, ndcg_at)] for name, seeds in ranks.items()}
    for name, values in found.items():
        cells = []
        for value, plain in zip(values, found.get("by default", values), strict=True):
            cells += ["{:.4f} ± {:.4f}".format(*clustered(value, window.every.users)), "{:+.4f} ± {:.4f}".format(*clustered(value - plain, window.every.users))]
        page.add_row(name, *cells)
    console.print(page)


def main(
    sets: Annotated[list[str] | None, typer.Option("--set", help="MovieTweetings and Taobao category unless given")] = None,
    rows: Annotated[list[str] | None, typer.Option("--row", help="all rows unless given")] = None,
    shares: Annotated[list[float] | None, typer.Option("--share", help="of the users: 0.01, 0.1 and 1 unless given")] = None,
    seeds: Annotated[int, typer.Option(help="draws of users, and trainings of each net")] = 2,
    validation: Annotated[bool, typer.Option("--validation", help="judge on the validation window")] = False,
    change: Annotated[str, typer.Option(help="settings of all nets, as JSON")] = "{}",
) -> None:
    """For each set and share a table of rows."""
    console = Console(width=160, highlight=False)
    for name in sets or ("MovieTweetings", "Taobao category"):
        one = SETS[name]
        log, first = one.read(), day_number(one.test)
        for share in shares or (0.01, 0.1, 1.0):
            ranks: dict[str, list[Ints]] = {}
            for seed in range(seeds):
                told = some_users(log.steps, share, seed)
                tuning = Window(log, day_number(one.validation), first - 1, told)
                window = tuning if validation else Window(log, first, int(log.steps.day.max()), told)
                if not rows or "popularity" in rows:
                    ranks.setdefault("popularity", []).append(popularity_of(window, tuning))
                for aid, own in AIDS.items():
                    train = Train(**{"seed": seed, **own, **json.loads(change)})
                    if (not rows or aid in rows) and is_another(aid, window, train):
                        ranks.setdefault(aid, []).append(net_of(window, train, aid))
            console.print(f"\n{name}, {share:.0%} of the users: {len(window.train):,} steps before\n")
            show(console, window, ranks)


if __name__ == "__main__":
    typer.run(main)
