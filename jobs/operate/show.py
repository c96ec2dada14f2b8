"""The lists that are served, for a person to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from jobs.contracts.errors import NotReady
from jobs.lake import Lake

STRANGER = "*"  # the user whose list is for everybody without one


@dataclass(frozen=True)
class Served:
    """The list that a user is served: rows of serving.recommendations by rank, each with the `title` of its item."""

    user_id: str
    is_own: bool
    rows: tuple[dict[str, Any], ...]


def served_lists(lake: Lake, users: Sequence[str]) -> list[Served]:
    """The list of each user, that of `*` where a user has none. Raises NotReady when nothing was published."""
    wanted = pc.field("user_id").isin([*users, STRANGER])
    rows = lake.read("serving.recommendations", filter=wanted).sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist()
    if not rows:
        raise NotReady(f"serving.recommendations in {lake.root} is empty: nothing was published yet. `nightjar night --day D` does.")
    titles = item_titles(lake, sorted({row["item_id"] for row in rows}), rows[0]["day"])
    lists: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        lists.setdefault(row["user_id"], []).append({**row, "title": titles.get(row["item_id"])})
    return [Served(user, user in lists, tuple(lists.get(user, lists.get(STRANGER, [])))) for user in users]


def item_titles(lake: Lake, items: Sequence[str], day: date) -> dict[str, str]:
    """Titles of items as of a day, of those that have one."""
    valid = (pc.field("valid_from") <= day) & (pc.field("valid_to").is_null() | (pc.field("valid_to") > day))
    rows = lake.read("silver.items", ["item_id", "title"], pc.field("item_id").isin(items) & valid)
    return {row["item_id"]: row["title"] for row in rows.to_pylist() if row["title"]}


def print_lists(lake: Lake, users: Sequence[str], top: int | None = None) -> None:
    """Print the list of each user, or its `top` rows."""
    console = Console(width=110)
    for served in served_lists(lake, users):
        whose = "" if served.is_own else ", who has no list: what everybody without one is shown"
        first = served.rows[0]
        page = Table(title=f"{served.user_id}{whose} · made on {first['day']} by {first['policy_version']}", title_justify="left")
        for heading in ("rank", "item", "title", "reason", "score", "propensity"):
            page.add_column(heading, justify="right" if heading in {"rank", "score", "propensity"} else "left")
        for row in served.rows[:top]:
            numbers = (f"{row['score']:.3f}", f"{row['propensity']:.4f}")
            page.add_row(str(row["rank"]), row["item_id"], row["title"] or "", row["reason"], *numbers)
        console.print(page)
