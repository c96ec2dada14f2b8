"""Wide given vectors as few numbers: a policy folder would else hold 1.5 GB of a million vectors of 384."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from models.data import Catalogue, Floats

_ROWS = 1 << 14  # at once in float64


def reduced(catalogue: Catalogue, most: int, known: Mapping[str, Floats] = MappingProxyType({})) -> Catalogue:
    """The catalogue with `most` principal components in place of vectors that are wider; along the `known` axes where these are of the same form."""
    axes = {}
    for name, values in catalogue.vectors.items():
        if values.shape[1] > most:
            is_known = name in known and known[name].shape == (values.shape[1], most)
            axes[name] = known[name] if is_known else principal_axes(values, most)
    return along(catalogue, axes)


def along(catalogue: Catalogue, axes: Mapping[str, Floats]) -> Catalogue:
    """The catalogue with its vectors along the axes of their name, if there are any: one of another width than these is as good as none."""
    vectors = {
        name: values @ axes[name] if name in axes else values
        for name, values in catalogue.vectors.items()
        if name not in axes or values.shape[1] == len(axes[name])
    }
    return replace(catalogue, vectors=vectors, axes=axes)


def principal_axes(values: Floats, most: int) -> Floats:
    """float32[width, most], orthonormal: along which the vectors [items, width] that are given, no zeros, differ most, the first one most of all."""
    count, centre = max(1, np.count_nonzero(values.any(1))), values.sum(0, dtype=np.float64)
    square = np.zeros((values.shape[1],) * 2)
    for begin in range(0, len(values), _ROWS):
        part = values[begin : begin + _ROWS].astype(np.float64)
        square += part.T @ part
    _, axes = np.linalg.eigh(square - np.outer(centre, centre) / count)
    return np.ascontiguousarray(axes[:, : -most - 1 : -1], dtype=np.float32)
