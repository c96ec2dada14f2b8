"""Statistics of the features of a day, by which a learner normalises them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.contracts.features import Feature


def statistics(snapshot: pa.Table, features: Iterable[Feature], day: date) -> list[dict[str, Any]]:
    """Rows of `gold.feature_statistics` over the snapshot of a day: one for each feature that is a number; only finite values count.

    Their sums are rounded once, at the end (`math.fsum`): no order of the rows changes a bit.
    """
    return [_statistics(snapshot[feature.name], feature) | {"day": day} for feature in features if feature.is_number]


def _statistics(column: pa.ChunkedArray, feature: Feature) -> dict[str, Any]:
    values = column.filter(pc.is_finite(column)).to_pylist()
    row: dict[str, Any] = {"entity": feature.entity, "feature": feature.name, "rows": len(values)}
    if not values:
        return row | dict.fromkeys(("mean", "deviation", "minimum", "maximum"))
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return row | {"mean": mean, "deviation": deviation, "minimum": min(values), "maximum": max(values)}
