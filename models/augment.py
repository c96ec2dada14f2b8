"""What an encoder reads of histories in training, where it is not all that they hold: cropped, masked and reordered windows.

After Xie et al. 2022, Contrastive learning for sequential recommendation, section 3.2. Nothing else is touched: what a state learns, the target
network, and the terms of the items met go by the steps as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jobs.settings import Train
from models.encoders import View
from models.network import Rows

_SPAN = 5  # most steps that are read in another order


@dataclass(frozen=True)
class Reading:
    """Rows and their view as an encoder reads them, in training."""

    rows: Rows
    view: View
    is_ahead: Tensor  # bool[rows, length]: the slot's state has read a step that comes later, so nothing may be learnt there

    @classmethod
    def whole(cls, rows: Rows, view: View) -> Reading:
        """As they are."""
        return cls(rows, view, torch.zeros_like(view.follows))


def reading(rows: Rows, view: View, train: Train) -> Reading:
    """What is read of rows in training; nothing is drawn for what has the share 0."""
    read = Reading.whole(rows, view)
    if train.reorder:
        read = reordered(read, train.reorder)
    if train.mask:
        read = replace(read, rows=masked(read.rows, train.mask))
    if train.crop:
        read = replace(read, view=cropped(view, train.crop))
    return read


def cropped(view: View, share: float) -> View:
    """A share of the windows are cut in two at any of their steps: the states from there on know nothing of what was before, nor of that step."""
    first, size = _windows(view)
    place = torch.arange(first.shape[1], device=first.device)
    cut = first + 1 + (_of_window(first) * (size - 1)).long()
    follows = view.follows & ~((place == cut) & (_of_window(first) < share))
    part = (~follows).cumsum(1)
    every = view.every & (part[:, :, None] == part[:, None, :])
    return replace(view, follows=follows, every=every, seen=every)


def masked(rows: Rows, share: float) -> Rows:
    """A share of the steps are read as one with an unknown item, of no type, without response."""
    kept = torch.rand(rows.item.shape, device=rows.item.device) >= share
    return replace(rows, item=rows.item * kept, event=rows.event * kept, response=rows.response * kept)


def reordered(read: Reading, share: float) -> Reading:
    """In a share of the windows some steps in a row are read in any order; the times stay where they are.

    One causal pass reads a row once, so within them some states come to know of later steps: these are told, and not learnt.
    """
    first, size = _windows(read.view)
    place = torch.arange(first.shape[1], device=first.device)
    begin = first + 1 + (_of_window(first) * (size - 1)).long()
    is_moved = (place >= begin) & (place < begin + _SPAN) & (_of_window(first) < share)
    order = torch.where(is_moved, begin + torch.rand(first.shape, device=first.device), place).argsort(stable=True)
    rows = replace(read.rows, **{name: getattr(read.rows, name).gather(1, order) for name in ("item", "event", "response")})
    return replace(read, rows=rows, is_ahead=order.cummax(1).values > place)


def _windows(view: View) -> tuple[Tensor, Tensor]:
    """Of each slot the first slot of its window, and how many slots that has: int64[rows, length]; padding is a window too."""
    place = torch.arange(view.follows.shape[1], device=view.follows.device)
    first = torch.where(view.follows, 0, place).cummax(1).values
    return first, torch.zeros_like(first).scatter_add(1, first, torch.ones_like(first)).gather(1, first)


def _of_window(first: Tensor) -> Tensor:
    """A number from 0 to 1 for each window, in its slots: [rows, length]."""
    return torch.rand(first.shape, device=first.device).gather(1, first)
