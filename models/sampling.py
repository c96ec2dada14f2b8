"""Training on a part of the catalogue: which items stand for all of them, and how the vectors of those alone are moved."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.data import Bools, Ints
from models.losses import Drawn

_DAMPED = 0.75  # power of the counts (Mikolov et al. 2013, Distributed representations of words and phrases, section 2.2)
_EVENLY = 0.5  # share of the chance that all items have alike
_EPSILON = 1e-10


class Proposal:
    """Draws items by how often they were chosen, and, as often, all alike."""

    def __init__(self, chosen: Ints, available: Bools) -> None:
        """`chosen` is int64[items]; only items that are `available`, bool[items], are drawn."""
        weight = np.where(available, np.maximum(chosen, 0) ** _DAMPED, 0.0)
        even = available / available.sum()
        chance = _EVENLY * even + (1 - _EVENLY) * weight / weight.sum() if weight.any() else even
        self._chance, self._reach = torch.from_numpy(chance), torch.from_numpy(np.cumsum(chance))

    def draw(self, draws: int) -> Drawn:
        """The items of so many draws with replacement, by torch's random state of the CPU."""
        at = torch.rand(draws, dtype=torch.float64) * self._reach[-1]
        items, times = torch.unique(torch.searchsorted(self._reach, at, right=True).clamp(max=len(self._reach) - 1), return_counts=True)
        return Drawn(items, (times / (draws * self._chance[items])).log().float())


class RowAdagrad(nn.Module):
    """Adagrad with one rate a row (Duchi et al. 2011, the mean square of a row's gradient in place of each): it touches the given rows alone.

    Beside the tables it holds one number a row, where Adam would hold two more tables.
    """

    def __init__(self, *tables: Tensor) -> None:
        super().__init__()
        self._tables = tables
        for place, table in enumerate(tables):
            self.register_buffer(f"squares_{place}", torch.zeros(len(table), device=table.device))

    @torch.no_grad()
    def step(self, rows: Tensor, gradients: tuple[Tensor, ...], rate: float) -> None:
        """Move different `rows`, int64[n], of each table against its gradient [n, width]."""
        for table, squares, gradient in zip(self._tables, self.buffers(), gradients, strict=True):
            squares[rows] += gradient.square().mean(1)
            table[rows] -= rate * gradient / (squares[rows].sqrt() + _EPSILON)[:, None]
