"""What makes the state after each step out of the steps: causal encoders of one form, `encoder(tokens, view)`; a third is in `models.recurrent`.

`tokens` [rows, length, dim] are the slots of rows, and what comes back is [rows, slots, dim]: the states of the slots that the view is of.
None looks beyond the window of a slot, or at what comes after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class View:
    """What the slots of rows, or one slot of each, see of their windows: the same for every network that looks at the rows."""

    at: Tensor | None  # int64[rows, 1]; None = all slots
    is_slot: Tensor  # bool[rows, length]: no padding
    follows: Tensor  # bool[rows, length]: the slot is no first one of a window
    wait: Tensor  # int64[rows, length] bucket of the time until the moment that the slot's state is of
    every: Tensor  # bool[rows, length, length]: what each slot sees: itself, and what is before it in its window
    seen: Tensor  # bool[rows, slots, length]: what those slots see that the view is of
    met: Tensor  # bool[rows, slots, length]: of the meetings with an item the last one
    met_item: Tensor  # int64[rows, slots, length]: its item; 0 elsewhere
    meetings: Tensor  # int64[rows, length] how many there were with the item of the slot, this one included
    steps_ago: Tensor  # int64[rows, slots, length]; 1 = just now
    time_ago: Tensor  # int64[rows, slots, length] bucket, as of that moment

    @cached_property
    def in_turn(self) -> tuple[Tensor, Tensor]:
        """The slots of all windows, flat, the first ones of each, then the second ones, longer windows first; and how many there are of each."""
        slots = self.is_slot.flatten().nonzero().squeeze(1)
        window = (~self.follows).flatten()[slots].cumsum(0) - 1
        lengths = torch.bincount(window)
        place = torch.arange(len(slots), device=slots.device) - (lengths.cumsum(0) - lengths)[window]
        rank = torch.empty_like(lengths)
        rank[torch.argsort(lengths, descending=True, stable=True)] = torch.arange(len(lengths), device=slots.device)
        return slots[torch.argsort(place * len(lengths) + rank[window])], torch.bincount(place).cpu()

    def of_slots(self, states: Tensor) -> Tensor:
        """Those of the states of all slots [rows, length, dim] that the view is of."""
        return states if self.at is None else states.gather(1, self.at[:, :, None].expand(-1, -1, states.shape[2]))


class Transformer(nn.Module):
    """Causal self-attention with rotary positions, pre-norm."""

    def __init__(self, dim: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, view: View) -> Tensor:
        turn = rotations(tokens.shape[1], self.head_dim, tokens.device)
        for block in self.blocks[:-1]:
            tokens = block(tokens, turn, view.every)
        normed: Tensor = self.norm(self.blocks[-1](tokens, turn, view.seen, view.at))
        return normed


class Mean(nn.Module):
    """The mean of all steps so far: in whatever order they came."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, view: View) -> Tensor:
        seen = view.seen.to(tokens.dtype)
        mean = seen @ tokens / seen.sum(2, keepdim=True).clamp(min=1)
        normed: Tensor = self.norm(mean + self.network(mean))
        return normed


class Block(nn.Module):
    """One pre-norm Transformer layer, causal, with rotary positions."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.attention_input = nn.Linear(dim, 3 * dim)
        self.attention_output = nn.Linear(dim, dim)
        self.network_norm = nn.LayerNorm(dim)
        self.network = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, turn: Tensor, seen: Tensor, at: Tensor | None = None) -> Tensor:
        """[rows, length, dim] → the same, or [rows, 1, dim] in the slots `at` int64[rows, 1] alone; `seen` is bool[rows, slots, length]."""
        batch, length, dim = hidden.shape
        parts = self.attention_input(self.attention_norm(hidden)).view(batch, length, 3, self.heads, dim // self.heads)
        turned = rotated(parts[:, :, :2], turn)
        query, key, value = (part.transpose(1, 2) for part in (turned[:, :, 0], turned[:, :, 1], parts[:, :, 2]))
        if at is not None:
            here = torch.arange(batch, device=hidden.device)[:, None]
            query, hidden = query.transpose(1, 2)[here, at].transpose(1, 2), hidden[here, at]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None])
        hidden = hidden + self.dropout(self.attention_output(attended.transpose(1, 2).reshape(*hidden.shape)))
        changed: Tensor = hidden + self.dropout(self.network(self.network_norm(hidden)))
        return changed


def rotations(length: int, dim: int, device: torch.device) -> Tensor:
    """Turns of each position, as complex numbers: [length, 1, 1, dim / 2] (Su et al. 2021, RoFormer, equation 34)."""
    angles = torch.arange(length, device=device)[:, None] * 1000.0 ** (-torch.arange(dim // 2, device=device) / (dim // 2))
    return torch.polar(torch.ones_like(angles), angles)[:, None, None, :]


def rotated(vectors: Tensor, turn: Tensor) -> Tensor:
    """Turn the pairs of numbers of each vector [windows, length, parts, heads, dim] by the angles of its position."""
    pairs = torch.view_as_complex(vectors.reshape(*vectors.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2)
