"""Formats that transitions are exported in, and what each takes."""

from __future__ import annotations

from jobs.contracts.errors import UnknownFormat

EXPORT_FORMATS = {
    "parquet": "transitions.parquet, a row a transition",
    "jsonl": "episodes.jsonl, a line an episode, its steps as RLDS has them",
    "d3rlpy": "dataset.h5, which d3rlpy's ReplayBuffer.load reads",
    "minari": "data/, which minari.MinariDataset reads",
}
HISTORY = 8  # last steps of a user that a state holds, where nothing else is asked for


def check_format(name: str) -> None:
    """Raise UnknownFormat for a name that is no format of an export."""
    if name not in EXPORT_FORMATS:
        raise UnknownFormat(f"There is no export format {name!r}. Expected {', '.join(EXPORT_FORMATS)}.")
