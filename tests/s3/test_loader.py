"""The loader on a store: the same batches with workers, which are processes of their own start there, as without."""

from __future__ import annotations

from jobs.lake import Lake
from jobs.settings import Settings
from tests.models.test_loader import epoch_of, fresh_rewards, land, loader, log, same


def test_workers_read_a_store(settings: Settings) -> None:
    lake = Lake(settings.lake_path, tuple(settings.event_types))
    rows = log(40, seed=1, buckets=3)
    land(lake, rows)
    alone, others = (epoch_of(loader(lake, workers=workers)) for workers in (0, 2))
    assert sorted(fresh_rewards(alone)) == [row["reward"] for row in rows]
    assert all(same(one, other) for (one, _), (other, _) in zip(alone, others, strict=True))
