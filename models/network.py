"""The network: a causal pass over a user's steps gives a state before each step; one head scores every item in that state.

    z(s, a) = f(s)·g(a) + b(a) + w(s)·popularity(a) + meeting(s, a) + kin(s, a)        Q(s, a) = V(s) + z(s, a)

g(a) is the item's own vector plus those of its category path, so an item without a history is scored by its content.
The meeting term is for the items that the window of the user holds, and for no other: when, how often and how each was last met.
The kin term is for the items of the categories that it holds: a sum over all steps of the category, by how long ago and how they ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data import Catalogue, Floats, Ints, Steps

HALF_LIVES = (1.0, 4.0, 16.0)  # days
POPULARITY_FEATURES = 2 * len(HALF_LIVES)
_TIME_BUCKETS = 32  # floor(log2(1 + seconds))
_COUNT_BUCKETS = 8
_MEETING_DIM = 16


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a network, saved beside its weights."""

    event_types: tuple[str, ...]
    dim: int
    layers: int
    heads: int
    context: int  # last steps of a user that the state sees
    dropout: float
    id_dropout: float  # share of the items that train without their own vector, so that content alone learns to score
    repeats: bool  # whether an item of the window may be chosen again


@dataclass(frozen=True)
class ItemTable:
    """What the network knows of the items that it ranks: index into its vocabulary, and categories."""

    ids: Tensor  # int64[items]; 0 = not in the vocabulary
    categories: Tensor  # int64[items, depth] the path's categories; 0 = none
    leaf: Tensor  # int64[items] the last of them; 0 = none


@dataclass(frozen=True)
class Windows:
    """Consecutive steps of some users, one window a row, padded at the end. All [windows, length]."""

    item: Tensor  # int64; 0 = unknown or padding
    event: Tensor  # int64; 0 = none
    response: Tensor  # int64; 0 = none
    time: Tensor  # int64 seconds
    gap: Tensor  # int64 bucket of the time since the user's step before
    length: Tensor  # int64[windows]


@dataclass(frozen=True)
class States:
    """States of windows: state q is the one before step q, so a window has one more than steps. All of them, or the last one alone."""

    query: Tensor  # [windows, states, dim]
    value: Tensor  # [windows, states]
    popularity: Tensor  # [windows, states, POPULARITY_FEATURES] weights
    met_item: Tensor  # int64[windows, states, length]: item whose last meeting was there; 0 = none
    meeting: Tensor  # [windows, states, length]: its meeting term
    kin: Tensor  # [windows, states, length]: what each step before adds to the items of its category; 0 for the steps after


def category_paths(categories: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Every category of the paths, parents too, sorted."""
    return sorted({path[:depth] for path in categories for depth in range(1, len(path) + 1)})


def item_table(item_ids: Sequence[str], categories: Sequence[tuple[str, ...]], catalogue: Catalogue, device: torch.device) -> ItemTable:
    """The items of a catalogue in the words of a vocabulary (`item_ids` with `categories`), which may be an older one."""
    known = {item_id: position for position, item_id in enumerate(item_ids) if position > 0}
    paths = {path: position for position, path in enumerate(category_paths(categories), start=1)}
    depth = max((len(path) for path in catalogue.categories), default=0) or 1
    codes = np.zeros((len(catalogue), depth), dtype=np.int64)
    for row, path in zip(codes, catalogue.categories, strict=True):
        row[: len(path)] = [paths.get(path[:level], 0) for level in range(1, len(path) + 1)]
    ids = np.array([known.get(item_id, 0) for item_id in catalogue.item_ids], dtype=np.int64)
    leaf = np.array([paths.get(path, 0) for path in catalogue.categories], dtype=np.int64)
    return ItemTable(*(torch.from_numpy(values).to(device) for values in (ids, codes, leaf)))


def popularity_by_day(steps: Steps, items: int, first_day: int, days: int) -> Floats:
    """log(1 + decayed count) of steps and of rewarded steps as of the end of the day before: float32[days, items, features].

    Row 0 is for `first_day` (days since 1970), which knows the steps before it and no other.
    """
    features = np.zeros((days, items, POPULARITY_FEATURES), dtype=np.float32)
    if len(steps) == 0:
        return features
    counts = np.zeros((items, 2))
    decayed = np.zeros((items, 2, len(HALF_LIVES)))
    keep = 0.5 ** (1 / np.array(HALF_LIVES))
    order = np.argsort(steps.day, kind="stable")
    start, last = min(int(steps.day.min()), first_day), first_day + days - 1
    cuts = np.searchsorted(steps.day[order], np.arange(start, last + 2))
    for day in range(start, last + 1):
        if day >= first_day:
            features[day - first_day] = np.log1p(decayed).reshape(items, -1)
        rows = order[cuts[day - start] : cuts[day - start + 1]]
        counts[:, 0] = np.bincount(steps.item[rows], minlength=items)
        counts[:, 1] = np.bincount(steps.item[rows], weights=steps.reward[rows] > 0, minlength=items)
        decayed = decayed * keep + counts[:, :, None]
    return features


def windows_of(steps: Steps, begins: Ints, ends: Ints, device: torch.device) -> Windows:
    """The rows begins[i]..ends[i] (exclusive) of `steps`, each range within one user."""
    length = ends - begins
    rows = begins[:, None] + np.arange(max(1, int(length.max(initial=0))))
    inside = rows < ends[:, None]
    rows = np.where(inside, rows, 0)
    before = np.zeros(len(steps), dtype=np.int64)
    before[1:] = np.maximum(0, np.diff(steps.time))
    before[steps.offsets[:-1][np.diff(steps.offsets) > 0]] = 0  # a user's first step follows none

    def column(values: np.ndarray) -> Tensor:
        taken = np.where(inside, values[rows], 0) if len(values) else np.zeros(rows.shape)
        return torch.from_numpy(taken.astype(np.int64)).to(device)

    return Windows(
        column(steps.item), column(steps.event), column(steps.response), column(steps.time), log_bucket(column(before)), torch.from_numpy(length).to(device)
    )


def log_bucket(seconds: Tensor) -> Tensor:
    """floor(log2(1 + seconds)), at most the last bucket."""
    return torch.log2(1.0 + seconds.double()).long().clamp(0, _TIME_BUCKETS - 1)


class Network(nn.Module):
    """Encoder and head. `items` and `categories` are the sizes of the vocabulary without padding."""

    def __init__(self, config: NetworkConfig, items: int, categories: int) -> None:
        super().__init__()
        self.config, self.categories = config, categories
        dim, kinds = config.dim, len(config.event_types) + 1
        self.item_vector = nn.Embedding(items + 1, dim)
        self.item_bias = nn.Embedding(items + 1, 1)
        self.category_vector = nn.Embedding(categories + 1, dim, padding_idx=0)
        self.event = nn.Embedding(kinds, dim)
        self.response = nn.Embedding(kinds, dim)
        self.gap = nn.Embedding(_TIME_BUCKETS, dim)
        self.item_input = nn.Linear(dim, dim, bias=False)
        self.start = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ModuleList(Block(dim, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        self.query = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, 1)
        self.popularity = nn.Linear(dim, POPULARITY_FEATURES)
        self.meeting_query = nn.Linear(dim, _MEETING_DIM)
        self.meeting_steps = nn.Parameter(torch.zeros(config.context + 1, _MEETING_DIM))
        self.meeting_time = nn.Parameter(torch.zeros(_TIME_BUCKETS, _MEETING_DIM))
        self.meeting_count = nn.Embedding(_COUNT_BUCKETS, _MEETING_DIM)
        self.meeting_event = nn.Embedding(kinds, _MEETING_DIM)
        self.meeting_response = nn.Embedding(kinds, _MEETING_DIM)
        self.kin_query = nn.Linear(dim, _MEETING_DIM)
        self.kin_steps = nn.Parameter(torch.zeros(config.context + 1, _MEETING_DIM))
        self.kin_event = nn.Embedding(kinds, _MEETING_DIM)
        self.kin_response = nn.Embedding(kinds, _MEETING_DIM)
        self._initialise()

    def _initialise(self) -> None:
        for table in (self.item_vector, self.category_vector):
            nn.init.normal_(table.weight, std=self.config.dim**-0.5)
        for table in (self.event, self.response, self.gap):
            nn.init.normal_(table.weight, std=0.02)
        for table in (self.item_bias, self.meeting_count, self.meeting_event, self.meeting_response, self.kin_event, self.kin_response):
            nn.init.zeros_(table.weight)
        for layer in (self.popularity, self.value):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for query in (self.meeting_query, self.kin_query):
            nn.init.ones_(query.bias)  # the tables that it meets start at 0
        with torch.no_grad():
            self.item_vector.weight[0].zero_()
            self.category_vector.weight[0].zero_()

    def items(self, table: ItemTable) -> tuple[Tensor, Tensor]:
        """g and b of every item of the table: [items, dim], [items]. In training some items go without their own vector."""
        ids = table.ids
        if self.training and self.config.id_dropout > 0:
            ids = ids * (torch.rand(ids.shape, device=ids.device) >= self.config.id_dropout)
        return self.item_vector(ids) + self.category_vector(table.categories).sum(1), self.item_bias(ids).squeeze(1)

    def states(self, windows: Windows, vectors: Tensor, *, last_only: bool = False) -> States:
        """The state before each step, and after the last one, or that one alone; given g of every item [items, dim]."""
        tokens = self.item_input(functional.embedding(windows.item, vectors)) + self.event(windows.event)
        tokens = tokens + self.response(windows.response) + self.gap(windows.gap)
        hidden = torch.cat([self.start.expand(len(tokens), 1, -1), tokens], dim=1)
        hidden = self.dropout(hidden)
        turn = rotations(hidden.shape[1], self.config.dim // self.config.heads, hidden.device)
        for block in self.blocks[:-1]:
            hidden = block(hidden, turn)
        state = windows.length[:, None] if last_only else torch.arange(hidden.shape[1], device=hidden.device)[None, :]
        hidden = self.norm(self.blocks[-1](hidden, turn, state if last_only else None))
        met_item, meeting = self._meetings(windows, hidden, state[:, :, None])
        kin = self._kin(windows, hidden, state[:, :, None])
        return States(self.query(hidden), self.value(hidden).squeeze(2), self.popularity(hidden), met_item, meeting, kin)

    def _meetings(self, windows: Windows, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        length, device = windows.item.shape[1], hidden.device
        place = torch.arange(length, device=device)
        same = (windows.item[:, :, None] == windows.item[:, None, :]) & (windows.item > 0)[:, None, :]
        count = (same & (place[None, :] <= place[:, None])).sum(2)
        again = torch.where(same & (place[None, :] > place[:, None]), place, length + 1).amin(2)  # [windows, length]
        last = (place < state) & (again[:, None, :] >= state) & (windows.item > 0)[:, None, :]

        query = self.meeting_query(hidden) / math.sqrt(_MEETING_DIM)
        keys = self.meeting_count(count.clamp(max=_COUNT_BUCKETS - 1)) + self.meeting_event(windows.event) + self.meeting_response(windows.response)
        by_step = query @ keys.transpose(1, 2)
        steps_ago = (state - place).clamp(0, self.config.context).expand_as(last)
        now = windows.time.gather(1, (state - 1).clamp(min=0).flatten(1).expand(len(last), -1))[:, :, None]
        time_ago = log_bucket((now - windows.time[:, None, :]).clamp(min=0))
        by_distance = (query @ self.meeting_steps.T).gather(2, steps_ago) + (query @ self.meeting_time.T).gather(2, time_ago)
        value = (by_step + by_distance).masked_fill(~last, 0.0)
        return windows.item[:, None, :] * last, value

    def _kin(self, windows: Windows, hidden: Tensor, state: Tensor) -> Tensor:
        steps_ago = state - torch.arange(windows.item.shape[1], device=hidden.device)
        query = self.kin_query(hidden) / math.sqrt(_MEETING_DIM)
        by_step = query @ (self.kin_event(windows.event) + self.kin_response(windows.response)).transpose(1, 2)
        by_distance = (query @ self.kin_steps.T).gather(2, steps_ago.clamp(0, self.config.context).expand_as(by_step))
        kin: Tensor = (by_step + by_distance).masked_fill(steps_ago <= 0, 0.0)
        return kin


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

    def forward(self, hidden: Tensor, turn: Tensor, state: Tensor | None = None) -> Tensor:
        """[windows, length, dim] → the same, or [windows, 1, dim] for the places `state` int64[windows, 1] alone."""
        batch, length, dim = hidden.shape
        parts = self.attention_input(self.attention_norm(hidden)).view(batch, length, 3, self.heads, dim // self.heads)
        turned = rotated(parts[:, :, :2], turn)
        query, key, value = (part.transpose(1, 2) for part in (turned[:, :, 0], turned[:, :, 1], parts[:, :, 2]))
        if state is None:
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            here = torch.arange(batch, device=hidden.device)[:, None]
            seen = torch.arange(length, device=hidden.device) <= state[:, :, None]
            attended = functional.scaled_dot_product_attention(query.transpose(1, 2)[here, state].transpose(1, 2), key, value, attn_mask=seen[:, None])
            hidden = hidden[here, state]
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
