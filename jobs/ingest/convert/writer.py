"""Writes a landing folder: gzip JSON lines by feed and day, in a folder beside it that takes its place at the end."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
from datetime import date
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jobs.contracts.errors import LandingUnwritable
from jobs.contracts.landing import feed_folder

_MOST_OPEN = 200


class LandingWriter:
    """Takes lines in any order of days; the folder `landing` appears when the `with` block ends without an error."""

    def __init__(self, landing: Path) -> None:
        self._landing = landing.absolute()
        self._open: dict[tuple[str, date], TextIOWrapper] = {}  # the one that waits longest for a line first

    def __enter__(self) -> Self:
        try:
            self._landing.parent.mkdir(parents=True, exist_ok=True)
            self._draft = Path(tempfile.mkdtemp(prefix=f".{self._landing.name}.", dir=self._landing.parent))
        except OSError as error:
            raise LandingUnwritable(f"{self._landing} can't be made: {error.strerror}. Name another landing folder.") from error
        return self

    def write(self, feed: str, day: date, line: dict[str, Any]) -> None:
        """Add a line to what the feed brings on the day."""
        stream = self._open.pop((feed, day), None)
        if stream is None:
            if len(self._open) == _MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            folder = self._draft / feed_folder(feed, day)
            folder.mkdir(parents=True, exist_ok=True)
            stream = _gzip_text(folder / "part-0.json.gz")
        self._open[feed, day] = stream
        stream.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")

    def settings(self, text: str) -> None:
        """Write the settings file beside the feeds."""
        (self._draft / "nightjar.toml").write_text(text)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for stream in self._open.values():
            stream.close()
        if kind is None:
            self._draft.chmod(0o755)
            os.replace(self._draft, self._landing)
        else:
            shutil.rmtree(self._draft)


def _gzip_text(path: Path) -> TextIOWrapper:
    # No name and no time in the header: same lines, same bytes. What is opened again gets another member.
    return TextIOWrapper(gzip.GzipFile(filename="", fileobj=path.open("ab"), mode="ab", compresslevel=6, mtime=0), encoding="utf-8")
