"""The declared features, for a person to read."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from jobs.contracts.features import ENTITIES, declared_of


def print_features(event_types: Sequence[str]) -> None:
    """Print every feature with what it is made from, as a table for each entity."""
    console = Console(width=180, highlight=False)
    for entity in ENTITIES:
        features = declared_of(entity, event_types)
        page = Table(box=None, title=f"{len(features)} features of {'an' if entity == 'item' else 'a'} {entity}, at the end of a day", title_justify="left")
        for heading in ("feature", "operation", "input", "events", "window", "default", "definition"):
            page.add_column(heading, no_wrap=heading == "feature")
        for one in features:
            window = f"{one.days}d" if one.days else ""
            default = "null" if one.default is None else f"{one.default:g}"
            page.add_row(one.name, one.operation, one.input, one.event_type, window, default, one.definition)
        console.print(page)
