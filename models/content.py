"""What is given of items, such as a price or the vector of a text, as parts of the item's vector in the network: a number, or a given vector.

Each part takes the values of some items, and gives [items, dim], which is 0 where there is none, and bool[items], where there is one. It is made
over the values of a catalogue, and keeps what it needs of them to read others by the same measure.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from models.data import Catalogue, Floats

_LEVELS = 8
_LEAST_SPREAD = 0.1  # where all vectors are nearly the same, what differs is noise


def given_of(catalogue: Catalogue) -> dict[str, Floats]:
    """What is given of the items, by kind, width and name: a vector of another width is another one. No name has a dot, which torch keeps for itself."""
    numbers = {f"number {name}": values for name, values in catalogue.numbers.items()}
    vectors = {f"vector {values.shape[1]} {name}": values for name, values in catalogue.vectors.items()}
    return {name.replace("%", "%25").replace(".", "%2E"): values for name, values in sorted((numbers | vectors).items())}


def part_over(values: Floats, dim: int) -> Levels | Projection:
    """The part for a number [items] or a vector [items, width], as in `Catalogue`."""
    return Levels(values, dim) if values.ndim == 1 else Projection(values, dim)


class Levels(nn.Module):
    """A number as a point between two of the levels of a catalogue, which are quantiles; each level has a vector.

    So the unit does not matter, nor does how far the largest lies off, and what is sought may lie in the middle (after Gorishniy et al.
    2022, On embeddings for numerical features in tabular deep learning, section 3.2).
    """

    levels: Tensor

    def __init__(self, values: Floats, dim: int) -> None:
        super().__init__()
        levels = np.quantile(values[np.isfinite(values)], (np.arange(_LEVELS) + 0.5) / _LEVELS)
        self.register_buffer("levels", torch.from_numpy(levels).float())
        self.weight = nn.Parameter(torch.randn(_LEVELS, dim) * dim**-0.5)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of [items]; nan = none."""
        known = values.isfinite()
        values = torch.where(known, values, 0.0)
        below = (torch.searchsorted(self.levels, values, right=True) - 1).clamp(0, _LEVELS - 2)
        low, high = self.levels[below], self.levels[below + 1]
        share = ((values - low) / (high - low).clamp(min=torch.finfo(low.dtype).tiny)).clamp(0, 1)
        between = torch.lerp(embedding(below, self.weight), embedding(below + 1, self.weight), share[:, None])
        return between * known[:, None], known


class Projection(nn.Module):
    """A given vector, less the mean of a catalogue and in units of how far the others lie off it, times a matrix.

    Vectors of one model often point nearly the same way; what tells items apart is the rest.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, values: Floats, dim: int) -> None:
        super().__init__()
        count = max(1, np.count_nonzero(values.any(1)))
        centre, square = values.sum(0, dtype=np.float64) / count, np.einsum("ij,ij->", values, values, dtype=np.float64) / count
        self.register_buffer("centre", torch.from_numpy(centre).float())
        self.register_buffer("spread", torch.tensor(max(square - centre @ centre, _LEAST_SPREAD**2 * square) ** 0.5).float())
        self.weight = nn.Parameter(torch.randn(dim, len(centre)) * dim**-0.5)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of [items, width]; zeros = none. No other array of that size is made."""
        known = values.norm(dim=1) > 0
        return (linear(values, self.weight) - known[:, None] * linear(self.centre, self.weight)) / self.spread, known
