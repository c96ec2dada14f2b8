"""The given vectors of items, out of a column of maps, as one array a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True)
class _Named:
    """The vectors of one name in one chunk of the column."""

    name: str
    item: NDArray[np.int64]  # [vectors] place of the item that each belongs to
    width: NDArray[np.int32]  # [vectors]
    at: NDArray[np.int64]  # [vectors] its place in `chunk`
    chunk: pa.ListArray  # all vectors of the chunk, of other names too


def vectors_by_name(embeddings: pa.ChunkedArray, places: NDArray[np.int64], items: int) -> dict[str, NDArray[np.float32]]:
    """float32[items, width] by name, each row at length 1, or zeros where there is none; rows of the column are those of the items at `places`.

    Of a name those vectors count that have its most common width, of two the smaller one; one of another width is as good as none.
    """
    found, widths = [*_named(embeddings, places)], dict[str, Counter[int]]()
    for named in found:
        widths.setdefault(named.name, Counter()).update(named.width[named.width > 0].tolist())
    vectors = {name: np.zeros((items, _most_common(counts)), dtype=np.float32) for name, counts in sorted(widths.items()) if counts}
    for named in found:
        if named.name in vectors:
            _fill(vectors[named.name], named)
    return vectors


def _most_common(counts: Counter[int]) -> int:
    return min(counts, key=lambda width: (-counts[width], width))


def _named(embeddings: pa.ChunkedArray, places: NDArray[np.int64]) -> Iterator[_Named]:
    begin = 0
    for chunk in embeddings.chunks:
        offsets = chunk.offsets.to_numpy()
        item = np.repeat(places[begin : begin + len(chunk)], np.diff(offsets))
        names, vectors = (values.slice(offsets[0], offsets[-1] - offsets[0]) for values in (chunk.keys, chunk.items))
        width = pc.fill_null(pc.list_value_length(vectors), 0).to_numpy()
        for name in pc.unique(names).to_pylist():
            at = np.flatnonzero(pc.equal(names, name).to_numpy(zero_copy_only=False))
            yield _Named(name, item[at], width[at], at, vectors)
        begin += len(chunk)


def _fill(vectors: NDArray[np.float32], named: _Named) -> None:
    fits = named.width == vectors.shape[1]
    values: NDArray[Any] = named.chunk.take(pa.array(named.at[fits])).flatten().to_numpy().reshape(-1, vectors.shape[1])
    length = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))[:, None]
    vectors[named.item[fits]] = np.divide(values, length, out=np.zeros_like(values), where=np.isfinite(length) & (length > 0))
