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

from models.data import Catalogue, Ints, Steps
from models.popularity import POPULARITY_FEATURES

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
    leaf: Tensor  # int64[items] the last of them, counted in some order of their own; 0 = none
    leaves: int  # how many of these there are


@dataclass(frozen=True)
class Rows:
    """Windows of consecutive steps of a user each, end to end in rows of one length. All int64[rows, length].

    A window begins with a slot of its own, in which item, event and response are 0: the state in slot q is the one after its step,
    and before the step in slot q + 1.
    """

    segment: Tensor  # window that a slot belongs to, from 1: a slot sees those up to itself of its own window; 0 = padding
    item: Tensor  # 0 = unknown
    event: Tensor  # 0 = none
    response: Tensor  # 0 = none
    time: Tensor  # seconds; in the first slot of a window that of the step before, where the user has one, else that of the first step


@dataclass(frozen=True)
class View:
    """What the slots of rows, or one slot of each, see of their windows: the same for every network that looks at the rows."""

    at: Tensor | None  # int64[rows, 1]; None = all slots
    follows: Tensor  # bool[rows, length]: the slot is no first one of a window
    gap: Tensor  # int64[rows, length] bucket of the time since the slot before
    every: Tensor  # bool[rows, length, length]: what each slot sees: itself, and what is before it in its window
    seen: Tensor  # bool[rows, slots, length]: what those slots see that the view is of
    met: Tensor  # bool[rows, slots, length]: of the meetings with an item the last one
    meetings: Tensor  # int64[rows, length] how many there were with the item of the slot, this one included
    steps_ago: Tensor  # int64[rows, slots, length]; 1 = just now
    time_ago: Tensor  # int64[rows, slots, length] bucket


@dataclass(frozen=True)
class States:
    """States in slots of rows: in all of them, or in one of each row."""

    query: Tensor  # [rows, slots, dim]
    value: Tensor  # [rows, slots]
    popularity: Tensor  # [rows, slots, POPULARITY_FEATURES] weights
    met_item: Tensor  # int64[rows, slots, length]: item whose last meeting was there; 0 = none
    meeting: Tensor  # [rows, slots, length]: its meeting term
    kin: Tensor  # [rows, slots, length]: what each step so far adds to the items of its category; 0 elsewhere


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
    tensors = [torch.from_numpy(values).to(device) for values in (ids, codes, leaf)]
    return ItemTable(tensors[0], tensors[1], tensors[2], len(paths))


def rows_of(steps: Steps, begins: Ints, ends: Ints, device: torch.device) -> Rows:
    """The steps begins[i]..ends[i] (exclusive), each range within one user, a window a row; those of a range without a step are unknown to it."""
    length = ends - begins
    slots = np.arange(int(length.max(initial=0)) + 1)
    is_step = (slots > 0) & (slots <= length[:, None])
    step = np.where(is_step, begins[:, None] + slots - 1, 0)
    is_first = np.ones(len(steps) + 1, dtype=np.bool_)
    is_first[:-1] = np.isin(np.arange(len(steps)), steps.offsets)
    before = np.where(is_first[begins], np.minimum(begins, max(0, len(steps) - 1)), begins - 1)

    def column(values: np.ndarray) -> np.ndarray:
        return np.where(is_step, values[step], 0) if len(values) else np.zeros(step.shape)

    time = column(steps.time)
    time[:, 0] = steps.time[before] if len(steps) else 0
    columns = ((slots <= length[:, None]), column(steps.item), column(steps.event), column(steps.response), time)
    return Rows(*(torch.from_numpy(values.astype(np.int64)).to(device) for values in columns))


def view_of(rows: Rows, context: int, at: Tensor | None = None) -> View:
    """What is seen from each slot, or from `at` int64[rows, 1] alone; steps further back than `context` count as that far."""
    place = torch.arange(rows.item.shape[1], device=rows.item.device)
    slots = place.expand_as(rows.segment) if at is None else at
    follows = torch.zeros_like(rows.segment, dtype=torch.bool)
    follows[:, 1:] = rows.segment[:, 1:] == rows.segment[:, :-1]
    together = rows.segment[:, :, None] == rows.segment[:, None, :]
    before = place <= place[:, None]
    same = (rows.item[:, :, None] == rows.item[:, None, :]) & together & (rows.item > 0)[:, None, :]
    again = torch.where(same & ~before.T, place[:, None], len(place)).amin(1)  # [rows, length] the next meeting
    every = together & before
    seen = every if at is None else every.gather(1, at[:, :, None].expand(-1, -1, len(place)))
    now = rows.time if at is None else rows.time.gather(1, at)
    return View(
        at,
        follows,
        log_bucket(rows.time - rows.time.roll(1, 1)),
        every,
        seen,
        seen & (again[:, None, :] > slots[:, :, None]) & (rows.item > 0)[:, None, :],
        (same & before).sum(2),
        (slots[:, :, None] - place + 1).clamp(0, context),
        log_bucket(now[:, :, None] - rows.time[:, None, :]),
    )


def log_bucket(seconds: Tensor) -> Tensor:
    """floor(log2(1 + seconds)), at least 0 and at most the last bucket."""
    return torch.bucketize(seconds, 2 ** torch.arange(1, _TIME_BUCKETS, device=seconds.device) - 1, right=True)


class Network(nn.Module):
    """Encoder and head. `items` and `categories` are the sizes of the vocabulary without padding."""

    def __init__(self, config: NetworkConfig, items: int, categories: int) -> None:
        super().__init__()
        self.config = config
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

    def items(self, table: ItemTable, own: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """g and b of every item of the table, the first of which is none: [items, dim], [items]. In training some go without their own vector.

        `own` are their own vectors and biases, as `own` gives them, where the caller holds these apart.
        """
        vectors, bias = own or self.own(table)
        if self.training and self.config.id_dropout > 0:
            kept = torch.rand(bias.shape, device=bias.device) >= self.config.id_dropout
            vectors, bias = torch.where(kept[:, None], vectors, vectors[0]), torch.where(kept, bias, bias[0])
        return vectors + self.category_vector(table.categories).sum(1), bias

    def own(self, table: ItemTable) -> tuple[Tensor, Tensor]:
        """What the network has for each item of the table alone: [items, dim], [items]."""
        return self.item_vector(table.ids), self.item_bias(table.ids).squeeze(1)

    def states(self, rows: Rows, view: View, vectors: Tensor) -> States:
        """The states of the slots that `view` is of; given g of every item [items, dim]."""
        tokens = self.item_input(functional.embedding(rows.item, vectors)) + self.event(rows.event) + self.response(rows.response) + self.gap(view.gap)
        hidden = self.dropout(torch.where(view.follows[:, :, None], tokens, self.start))
        turn = rotations(hidden.shape[1], self.config.dim // self.config.heads, hidden.device)
        for block in self.blocks[:-1]:
            hidden = block(hidden, turn, view.every)
        hidden = self.norm(self.blocks[-1](hidden, turn, view.seen, view.at))
        met_item = rows.item[:, None, :] * view.met
        meeting, kin = self._meetings(rows, view, hidden), self._kin(rows, view, hidden)
        return States(self.query(hidden), self.value(hidden).squeeze(2), self.popularity(hidden), met_item, meeting, kin)

    def _meetings(self, rows: Rows, view: View, hidden: Tensor) -> Tensor:
        query = self.meeting_query(hidden) / math.sqrt(_MEETING_DIM)
        keys = self.meeting_count(view.meetings.clamp(max=_COUNT_BUCKETS - 1)) + self.meeting_event(rows.event) + self.meeting_response(rows.response)
        by_step = query @ keys.transpose(1, 2)
        by_distance = (query @ self.meeting_steps.T).gather(2, view.steps_ago) + (query @ self.meeting_time.T).gather(2, view.time_ago)
        meeting: Tensor = (by_step + by_distance).masked_fill(~view.met, 0.0)
        return meeting

    def _kin(self, rows: Rows, view: View, hidden: Tensor) -> Tensor:
        query = self.kin_query(hidden) / math.sqrt(_MEETING_DIM)
        by_step = query @ (self.kin_event(rows.event) + self.kin_response(rows.response)).transpose(1, 2)
        by_distance = (query @ self.kin_steps.T).gather(2, view.steps_ago)
        kin: Tensor = (by_step + by_distance).masked_fill(~view.seen, 0.0)
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
