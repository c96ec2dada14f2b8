"""Public data sets as landing folders: the events of each UTC day as if they had arrived on it, and a settings file that fits."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from jobs.contracts.errors import LandingUnwritable, UnknownFormat
from jobs.ingest.convert import movielens, movietweetings, retailrocket, taobao, yoochoose
from jobs.ingest.convert.writer import LandingWriter

_FORMATS: dict[str, tuple[Callable[[Path, LandingWriter], None], str]] = {
    "movielens": (movielens.write, movielens.SETTINGS),
    "movietweetings": (movietweetings.write, movietweetings.SETTINGS),
    "retailrocket": (retailrocket.write, retailrocket.SETTINGS),
    "taobao": (taobao.write, taobao.SETTINGS),
    "yoochoose": (yoochoose.write, yoochoose.SETTINGS),
}


def convert(format: str, source: Path, landing: Path) -> None:
    """Write the data set in `source` to a new landing folder, with its nightjar.toml; same source, same bytes.

    Raises UnknownFormat; BadSource when the files are missing or hold something else; LandingUnwritable when `landing` holds
    something. The folder appears whole or not at all.
    """
    if format not in _FORMATS:
        near = difflib.get_close_matches(format, _FORMATS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownFormat(f"There is no format {format!r}.{hint} Formats: {', '.join(_FORMATS)}.")
    if landing.exists() and (not landing.is_dir() or any(landing.iterdir())):
        raise LandingUnwritable(f"{landing} holds something already, and what is converted goes into a new folder. Name another one, or remove it.")
    write, settings = _FORMATS[format]
    with LandingWriter(landing) as writer:
        write(source, writer)
        writer.settings(settings)
