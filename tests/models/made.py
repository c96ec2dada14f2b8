"""Steps written as short as a test needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.data import Steps

IMPRESSION, CLICK = 1, 2  # event types of the steps made here
DAY = 20_000  # days since 1970-01-01


def make(histories: Mapping[str, Sequence[tuple[int, float]]], days: Mapping[str, Sequence[int]] | None = None, propensity: float = np.nan) -> Steps:
    """Impressions of (item, reward), by user; a rewarded one was answered by a click. `days` count from DAY; all 0 where not given."""
    rows = [row for history in histories.values() for row in history]
    lengths = [len(history) for history in histories.values()]
    reward = np.array([reward for _, reward in rows], dtype=np.float32)
    day = np.array([each for user in histories for each in (days[user] if days else [0] * len(histories[user]))], dtype=np.int32)
    return Steps(
        user_ids=tuple(histories),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item=np.array([item for item, _ in rows], dtype=np.int32),
        event=np.full(len(rows), IMPRESSION, dtype=np.int8),
        response=np.where(reward > 0, CLICK, 0).astype(np.int8),
        reward=reward,
        time=(DAY + day.astype(np.int64)) * 86_400 + np.arange(len(rows)),
        first=np.zeros(len(rows), dtype=np.bool_),
        end=np.zeros(len(rows), dtype=np.int8),
        propensity=np.full(len(rows), propensity, dtype=np.float32),
        candidates=np.zeros(len(rows), dtype=np.int32),
        day=DAY + day,
    )
