"""The sets of items that the logging system chose from, where it told them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.lake import Lake


@dataclass(frozen=True)
class CandidateSets:
    """Sets of items, counted from 1 on; 0 stands for all that are available."""

    keys: NDArray[np.int64]  # [sets] in gold.candidate_sets, ascending
    offsets: NDArray[np.int64]  # [sets + 1]: set k owns items[offsets[k - 1]..offsets[k]] (exclusive)
    items: NDArray[np.int32]  # indices into the catalogue, 0 where it does not hold the item

    @classmethod
    def none(cls) -> CandidateSets:
        return cls(np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int32))

    @classmethod
    def load(cls, lake: Lake, item_ids: tuple[str, ...], first_day: date, last_day: date) -> CandidateSets:
        """Those of the days first_day..last_day; `item_ids` as in `Catalogue`."""
        if not lake.exists("gold.candidate_sets"):
            return cls.none()
        within = (pc.field("day") >= first_day) & (pc.field("day") <= last_day)
        table = lake.read("gold.candidate_sets", ["candidate_set", "items"], within)
        keys, rows = np.unique(table["candidate_set"].to_numpy(), return_index=True)
        lists = table["items"].combine_chunks().take(pa.array(rows))
        lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        found = pc.index_in(lists.flatten(), value_set=pa.array(item_ids[1:], pa.string()))
        items = pc.fill_null(pc.add(found, 1), 0).to_numpy(zero_copy_only=False).astype(np.int32)
        return cls(keys, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items)

    def __len__(self) -> int:
        return len(self.keys)

    def places(self, keys: pa.ChunkedArray) -> NDArray[np.int32]:
        """The number of the set of each key; 0 where it is null or not here."""
        found: NDArray[np.int32] = pc.fill_null(pc.add(pc.index_in(keys, value_set=pa.array(self.keys, pa.int64())), 1), 0).to_numpy().astype(np.int32)
        return found

    def listed(self, sets: NDArray[np.int64]) -> NDArray[np.int64]:
        """The items of some sets, a row each, the longest one without a gap: int64[len(sets), longest]; 0 = no more. Of set 0 none are."""
        bounds = np.concatenate([[0], self.offsets])  # set 0 owns nothing
        begins, ends = bounds[sets], bounds[sets + 1]
        place = begins[:, None] + np.arange(int((ends - begins).max(initial=0)))
        rows = np.where(place < ends[:, None], place, len(self.items))
        return np.append(self.items, 0)[rows].astype(np.int64)
