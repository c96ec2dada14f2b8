"""Bronze and silver from a store to a store, as processes, killed and set upon each other: what stands there is what a local run makes."""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from jobs.contracts.days import DayRange
from jobs.contracts.errors import EmptyLanding, LandingChanged
from jobs.ingest import bronze
from jobs.ingest.landing import landing_files
from jobs.ingest.lines import LineReader
from jobs.settings import Landing, Settings
from jobs.storage import Location, S3Path
from tests.jobs.ingest.test_breaking import DAYS, content, ingest, lake_of, land_day, start
from tests.jobs.ingest.test_bronze import event, land


def land_all(landing: Location) -> None:
    """Days of plain and gzipped lines, one of Parquet and zstd besides, and files that are none of the log."""
    for day in range(len(DAYS)):
        land_day(landing, day, seed=0)
    land(landing, f"events/ds={DAYS[2]}/.part", b"hidden")
    land(landing, f"events/ds={DAYS[2]}/_tmp/x.json", b"hidden")
    land(landing, f"events/ds={DAYS[2]}/foreign.zip", b"x")
    land(landing, f"events/ds={DAYS[2]}/empty.json")
    below = landing / f"events/ds={DAYS[2]}/hour=01"
    below.mkdir(parents=True, exist_ok=True)
    (below / "c.json.zst").write_bytes(zstandard.compress(b"\n".join(event(event_id=f"z{number}") for number in range(50))))
    (below / "cut.json.zst").write_bytes(zstandard.compress(event(event_id="cut"))[:-9])
    parquet = io.BytesIO()
    columns = {name: ["p"] for name in ("user_id", "item_id", "event_id")} | {"event_type": ["click"], "event_time": ["2026-01-01T12:00:00Z"]}
    pq.write_table(pa.table(columns), parquet)
    (below / "d.parquet").write_bytes(parquet.getvalue())
    (below / "broken.parquet").write_bytes(parquet.getvalue()[:-20])


def local(settings: Settings, days: Sequence[int]) -> dict[str, list[str]]:
    """What one run makes of the same landing folder on a local disk."""
    landing = settings.landing_path
    assert isinstance(landing, S3Path)
    with tempfile.TemporaryDirectory() as folder:
        for path in landing.rglob("*"):
            copy = Path(folder, "landing", path.relative_to(landing))
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
            assert copy.stat().st_size == path.stat().st_size
        here = settings.model_copy(update={"landing": Landing(folder=f"{folder}/landing"), "lake": f"{folder}/lake"})
        ingest(here, days)
        return content(here)


def test_every_kind_of_file(settings: Settings) -> None:
    land_all(settings.landing_path)
    ingest(settings, range(len(DAYS)))
    found, expected = content(settings), local(settings, range(len(DAYS)))
    for table in expected:
        assert found[table] == expected[table], table
    assert sum("hour=01" in row for row in found["bronze.files"]) == 4


def test_killed_and_run_again_and_two_at_once(settings: Settings) -> None:
    chance = random.Random(11)
    land_all(settings.landing_path)
    killed = 0
    for attempt in range(4):
        process = start(ingest, settings, [attempt % len(DAYS)])
        process.join(chance.uniform(0.2, 2.5))
        process.kill()
        process.join()
        killed += process.exitcode != 0
    assert killed >= 2
    processes = [start(ingest, settings, days) for days in ((0, 1, 2, 3), (3, 2, 1, 0))]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    found, expected = content(settings), local(settings, range(len(DAYS)))
    for table in expected:
        assert found[table] == expected[table], table


def test_two_at_once_on_the_same_day(settings: Settings) -> None:
    land_all(settings.landing_path)
    processes = [start(ingest, settings, [0]) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert content(settings) == local(settings, [0])


def test_a_landing_folder_with_nothing_in_it(settings: Settings) -> None:
    with pytest.raises(
        EmptyLanding, match=f"Nothing has arrived in {settings.landing.folder} by 2026-01-02. It should hold {settings.landing.folder}/events/ds="
    ):
        landing_files(settings.landing_path, DayRange(DAYS[0], DAYS[1]))
    land(settings.landing_path, f"users/ds={DAYS[0]}/u.json", b'{"user_id": "u"}')
    assert landing_files(settings.landing_path, DayRange(DAYS[1], DAYS[1])) == []
    bronze.run(lake_of(settings), settings, DayRange(DAYS[1], DAYS[1]))
    assert lake_of(settings).done("bronze.files") == {DAYS[1]}


def test_an_object_that_is_replaced_while_it_is_read(settings: Settings) -> None:
    land(settings.landing_path, f"events/ds={DAYS[0]}/a.json", event())
    (file,) = landing_files(settings.landing_path, DayRange(DAYS[0], DAYS[0]))
    blocks = LineReader(file, None).blocks()  # type: ignore[arg-type]
    next(blocks)
    land(settings.landing_path, f"events/ds={DAYS[0]}/a.json", event(), event())
    with pytest.raises(LandingChanged, match=rf"{settings.landing.folder}/events/ds=2026-01-01/a\.json changed while it was read"):
        next(blocks)
