"""What a commit of a table says of itself in the log of the table."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from jobs.contracts.revision import revision


@dataclass(frozen=True)
class Commit:
    """What one commit of a table records: its version, the step, the days it made, and the versions of what was read.

    `replaced` are the partitions that it wrote anew, and `changed` the other days of which it made rows come or go.
    """

    version: int
    step: str
    days: frozenset[date]
    inputs: Mapping[str, int]
    revision: str
    fingerprint: str
    replaced: frozenset[date]
    changed: frozenset[date]


def record(step: str, days: Collection[date], inputs: Mapping[str, int], fingerprint: str, replaced: Collection[date], changed: Collection[date]) -> str:
    """What a commit's entry in the log says: the fields of `Commit`, as JSON."""
    said: dict[str, Any] = {"step": step, "days": texts(days), "inputs": dict(inputs), "revision": revision()}
    if fingerprint:
        said["fingerprint"] = fingerprint
    if {*replaced} != {*days}:
        said["replaced"] = texts(replaced)
    if changed:
        said["changed"] = texts(changed)
    return json.dumps(said, sort_keys=True)


def commit_of(version: int, text: str) -> Commit:
    """The commit of a version whose entry says `text`."""
    record = json.loads(text)
    days, replaced, changed = (
        frozenset(map(date.fromisoformat, record.get(name, otherwise))) for name, otherwise in (("days", []), ("replaced", record["days"]), ("changed", []))
    )
    return Commit(version, record["step"], days, record["inputs"], record["revision"], record.get("fingerprint", ""), replaced, changed)


def texts(days: Collection[date]) -> list[str]:
    """The days as they are written, in order."""
    return [str(day) for day in sorted(days)]
