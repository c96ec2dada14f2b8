"""The network: a causal pass over a user's steps gives a state before each step, at its moment; a head scores every item in that state.

    z(s, a) = f(s)·g(a) + b(a) + w(s)·popularity(a) + meeting(s, a) + kin(s, a)        Q(s, a) = V(s) + z(s, a)

g(a) is the item's own vector plus those of its content: its category path, and what else is given of it, numbers and vectors (`models.content`).
So an item without a history is scored by its content.
The state is what the encoder makes of the steps, and what is known of the user on the eve of its day, where that is asked for (`models.user_features`).
The meeting term is for the items that the window of the user holds, and for no other: when, how often and how each was last met.
The kin term is for the items of the categories that it holds: a sum over all steps of the category, by how long ago and how they ended.
Policies that learn together have one pass and one g between them, and a head and a b each. Several critics are as many networks, side by side, each
with a pass, a g, and a head of every policy, which ranks by their mean, or a lower bound over them. A head of its own says what the log chooses,
where that is asked for, in the states of the first.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from models.content import given_of, part_over
from models.data import Catalogue, Ints, Steps
from models.encoders import Mean, Transformer, View
from models.popularity import POPULARITY_FEATURES
from models.recurrent import Recurrent, side_by_side
from models.user_features import FeaturePart

_TIME_BUCKETS = 32  # floor(log2(1 + seconds))
_COUNT_BUCKETS = 8
_MEETING_DIM = 16
NEARER = (0.0, 0.5, 0.8)  # discounts of more values of a state, which its makers learn from: the nearer, the less noise


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a network, saved beside its weights."""

    event_types: tuple[str, ...]
    dim: int
    layers: int
    heads: int
    context: int  # last steps of a user that the state sees
    encoder: str  # a key of ENCODERS
    dropout: float
    id_dropout: float  # share of the items with content that train without their own vector, so that content alone learns to score
    repeats: bool  # whether an item of the window may be chosen again
    policies: int = 1
    critics: int = 1  # of a policy
    lower: float = 0.0  # standard deviations of the critics below their mean that a policy ranks by
    behaviour: bool = False  # whether one more head says what the log chooses
    user_features: tuple[str, ...] = ()  # that a state has

    @property
    def width(self) -> int:
        """Of what all critics have of an item, or of a step, end to end."""
        return self.dim * self.critics


ENCODERS: dict[str, Callable[[NetworkConfig], nn.Module]] = {
    "gru": lambda config: Recurrent(config.dim, config.layers),
    "transformer": lambda config: Transformer(config.dim, config.layers, config.heads, config.dropout),
    "mean": lambda config: Mean(config.dim),
}


@dataclass(frozen=True)
class ItemTable:
    """What is known of the items that a network ranks: index into its vocabulary, categories, and what else is given."""

    ids: Tensor  # int64[items]; 0 = not in the vocabulary
    categories: Tensor  # int64[items, depth] the path's categories; 0 = none
    leaf: Tensor  # int64[items] the last of them, counted in some order of their own; 0 = none
    leaves: int  # how many of these there are
    unread: Tensor  # float32[items] chance that a step with it is read, in training, by its content alone, if it has any
    given: Mapping[str, Tensor]  # float32[items] or [items, width], as of `given_of`; the network may not know all of it

    def of(self, items: Tensor) -> ItemTable:
        """Some of the items, of which the first is none, and of the leaves only theirs."""
        leaves, leaf = torch.unique(self.leaf[items], return_inverse=True)
        given = {name: values[items] for name, values in self.given.items()}
        return ItemTable(self.ids[items], self.categories[items], leaf, len(leaves) - 1, self.unread[items], given)


@dataclass(frozen=True)
class Rows:
    """Windows of consecutive steps of a user each, end to end in rows of one length. All int64[rows, length].

    A window begins with a slot of its own, in which item, event and response are 0: the state in slot q is the one after its step,
    and before the step in slot q + 1, at the moment of that one: what has passed since is part of the state.
    """

    segment: Tensor  # window that a slot belongs to, from 1: a slot sees those up to itself of its own window; 0 = padding
    item: Tensor  # 0 = unknown
    event: Tensor  # 0 = none
    response: Tensor  # 0 = none
    time: Tensor  # seconds; in the first slot of a window that of the step before, where the user has one, else that of the first step
    wait: Tensor  # seconds from there to the moment that the slot's state is of


@dataclass(frozen=True)
class ItemVectors:
    """What stands for each item of a table, the first of which is none."""

    whole: Tensor  # [items, width] g of every critic
    content: Tensor  # [items, width] the part of it that does not come from the item's own vector
    bias: Tensor  # [items, heads] b
    has_content: Tensor  # bool[items]
    unread: Tensor  # float32[items] as in the table


@dataclass(frozen=True)
class States:
    """What a head says of states in slots of rows: in all of them, or in one of each row."""

    query: Tensor  # [rows, slots, dim] f
    keys: Tensor  # [items, dim] g
    bias: Tensor  # [items] b
    value: Tensor  # [rows, slots, 1]
    nearer: Tensor  # [rows, slots, NEARER]: its value to shorter horizons
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
    given = {name: torch.from_numpy(values).to(device) for name, values in given_of(catalogue).items()}
    return ItemTable(tensors[0], tensors[1], tensors[2], len(paths), torch.zeros(len(catalogue), device=device), given)


def rows_of(steps: Steps, begins: Ints, ends: Ints, device: torch.device, now: Ints | None = None) -> Rows:
    """The steps begins[i]..ends[i] (exclusive), each range within one user, a window a row; those of a range without a step are unknown to it.

    The state after the last of them is that of the moment now[i], in seconds, if any step comes before it; None = right after it.
    """
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
    wait, window = np.zeros_like(time), np.arange(len(length))
    wait[:, :-1] = np.where(is_step[:, 1:], time[:, 1:] - time[:, :-1], 0)
    if now is not None:
        is_known = (length > 0) | ~is_first[begins]
        wait[window, length] = np.where(is_known, np.maximum(0, now - time[window, length]), 0)
    columns = ((slots <= length[:, None]), column(steps.item), column(steps.event), column(steps.response), time, wait)
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
    place32 = place.int()  # of half the size: the arrays of slots by slots are what takes time here
    again = torch.where(same & ~before.T, place32[:, None], len(place)).amin(1)  # [rows, length] the next meeting
    every = together & before
    seen = every if at is None else every.gather(1, at[:, :, None].expand(-1, -1, len(place)))
    moment = rows.time + rows.wait
    now = moment if at is None else moment.gather(1, at)
    met = seen & (again[:, None, :] > slots[:, :, None]) & (rows.item > 0)[:, None, :]
    return View(
        at,
        rows.segment > 0,
        follows,
        log_bucket(rows.wait),
        every,
        seen,
        met,
        torch.where(met, rows.item[:, None, :], 0),
        (same & before).sum(2),
        (slots[:, :, None] - place + 1).clamp(0, context),
        log_bucket(now[:, :, None] - rows.time[:, None, :]),
    )


def log_bucket(seconds: Tensor) -> Tensor:
    """floor(log2(1 + seconds)), at least 0 and at most the last bucket."""
    exponent = torch.frexp((1 + seconds.clamp(min=0)).double()).exponent  # of whole numbers exact, and four times as fast as a search among the bounds
    return (exponent - 1).clamp(max=_TIME_BUCKETS - 1).long()


def network_over(catalogue: Catalogue, config: NetworkConfig) -> Network:
    """A new network whose vocabulary is a catalogue."""
    given = {name: part_over(values, config.width) for name, values in given_of(catalogue).items()}
    return Network(config, len(catalogue) - 1, len(category_paths(catalogue.categories)), given)


class Network(nn.Module):
    """Item tower, encoder and heads. `items` and `categories` are the sizes of the vocabulary without padding, `given` what reads the rest of the content."""

    def __init__(self, config: NetworkConfig, items: int, categories: int, given: Mapping[str, nn.Module] = MappingProxyType({})) -> None:
        super().__init__()
        self.config = config
        dim, width, kinds = config.dim, config.width, len(config.event_types) + 1
        self.item_vector = nn.Embedding(items + 1, width)
        heads = config.policies * config.critics + config.behaviour
        self.item_bias = nn.Embedding(items + 1, heads)
        self.category_vector = nn.Embedding(categories + 1, width, padding_idx=0)
        self.given = nn.ModuleDict(given)
        self.event = nn.Embedding(kinds, width)
        self.response = nn.Embedding(kinds, width)
        self.wait = nn.Embedding(_TIME_BUCKETS, width)
        self.item_inputs = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(config.critics))
        self.start = nn.Parameter(torch.zeros(width))
        self.encoders = nn.ModuleList(ENCODERS[config.encoder](config) for _ in range(config.critics))
        self.dropout = nn.Dropout(config.dropout)
        self.heads = nn.ModuleList(PolicyHead(config) for _ in range(heads))
        for table in (self.item_vector, self.category_vector):
            nn.init.normal_(table.weight, std=dim**-0.5)
        for table in (self.event, self.response, self.wait):
            nn.init.normal_(table.weight, std=0.1)
        nn.init.zeros_(self.item_bias.weight)
        with torch.no_grad():
            self.item_vector.weight[0].zero_()
            self.category_vector.weight[0].zero_()
        features = len(config.user_features)
        self.known = nn.ModuleList(FeaturePart(features, dim) for _ in range(config.critics if features else 0))

    def items(self, table: ItemTable, own: tuple[Tensor, Tensor] | None = None) -> ItemVectors:
        """What stands for every item of the table. In training some of those that have content go without their own vector.

        `own` are their own vectors and biases, as `own` gives them, where the caller holds these apart.
        """
        vectors, bias = own or self.own(table)
        content, has_content = self._content(table)
        if self.training and self.config.id_dropout > 0:
            kept = ((torch.rand(len(bias), device=bias.device) >= self.config.id_dropout) | ~has_content)[:, None]
            vectors, bias = torch.where(kept, vectors, vectors[0]), torch.where(kept, bias, bias[0])
        return ItemVectors(vectors + content, content, bias, has_content, table.unread)

    def own(self, table: ItemTable) -> tuple[Tensor, Tensor]:
        """What the network has for each item of the table alone: [items, width], [items, heads]."""
        return self.item_vector(table.ids), self.item_bias(table.ids)

    def _content(self, table: ItemTable) -> tuple[Tensor, Tensor]:
        """[items, width], and bool[items]: whether there is any."""
        content, has_content = self.category_vector(table.categories).sum(1), table.leaf > 0
        for name, part in self.given.items():
            if name in table.given:
                vector, is_given = part(table.given[name])
                content, has_content = content + vector, has_content | is_given
        return content, has_content

    def states(self, rows: Rows, view: View, items: ItemVectors, known: Tensor | None = None, read: tuple[Rows, View] | None = None) -> list[States]:
        """The states of the slots that `view` is of, as each head sees them: the critics of each policy, and then, where there is one, that of the log.

        `known` [rows, slots, user_features] is what is known of the user in each of them; nan, or None, where nothing is. `read` is what the encoder
        reads in place of rows and view.
        """
        read_rows, read_view = read or (rows, view)
        critics = self.config.critics
        read_items = self._read(read_rows.item, items).chunk(critics, 2)
        tokens = torch.cat([layer(part) for layer, part in zip(self.item_inputs, read_items, strict=True)], 2)
        tokens = tokens + self.event(read_rows.event) + self.response(read_rows.response)
        tokens = torch.where(read_view.follows[:, :, None], tokens, self.start) + self.wait(read_view.wait)
        parts = self.dropout(tokens).chunk(critics, 2)
        hidden = self._encoded(parts, read_view)
        if self.known:
            if known is None:
                known = tokens.new_full((*hidden[0].shape[:2], len(self.config.user_features)), torch.nan)
            hidden = [part(state, known) for part, state in zip(self.known, hidden, strict=True)]
        keys = items.whole.chunk(critics, 1)
        heads = enumerate(zip(self.heads, items.bias.T, strict=True))
        return [head(rows, view, hidden[number % critics], keys[number % critics], bias) for number, (head, bias) in heads]

    def alone(self, policy: int) -> Network:
        """A network with that policy alone."""
        own = slice(policy * self.config.critics, (policy + 1) * self.config.critics)
        only = copy.deepcopy(self)
        only.config = replace(self.config, policies=1, behaviour=False)
        only.heads = only.heads[own]
        only.item_bias = nn.Embedding(len(self.item_bias.weight), self.config.critics, _weight=self.item_bias.weight[:, own].detach().clone())
        return only

    def _encoded(self, parts: Sequence[Tensor], view: View) -> list[Tensor]:
        recurrent = [encoder for encoder in self.encoders if isinstance(encoder, Recurrent)]
        return side_by_side(recurrent, parts, view) if recurrent else [encoder(part, view) for encoder, part in zip(self.encoders, parts, strict=True)]

    def _read(self, item: Tensor, items: ItemVectors) -> Tensor:
        whole = embedding(item, items.whole)
        if not self.training:
            return whole
        kept = (torch.rand(item.shape, device=item.device) >= items.unread[item]) | ~items.has_content[item]
        return torch.where(kept[:, :, None], whole, embedding(item, items.content))


class PolicyHead(nn.Module):
    """Scores the items in states, as one policy sees them, and values these."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim, kinds = config.dim, len(config.event_types) + 1
        self.query = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, 1)
        self.nearer = nn.Linear(dim, len(NEARER))
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
        for table in (self.meeting_count, self.meeting_event, self.meeting_response, self.kin_event, self.kin_response):
            nn.init.zeros_(table.weight)
        for layer in (self.popularity, self.value, self.nearer):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for query in (self.meeting_query, self.kin_query):
            nn.init.ones_(query.bias)  # the tables that it meets start at 0

    def forward(self, rows: Rows, view: View, hidden: Tensor, keys: Tensor, bias: Tensor) -> States:
        """`hidden` is [rows, slots, dim], of the slots that `view` is of; `keys` [items, dim], `bias` [items]."""
        meeting, kin = self._meetings(rows, view, hidden), self._kin(rows, view, hidden)
        return States(self.query(hidden), keys, bias, self.value(hidden), self.nearer(hidden), self.popularity(hidden), view.met_item, meeting, kin)

    def _meetings(self, rows: Rows, view: View, hidden: Tensor) -> Tensor:
        query = self.meeting_query(hidden) / math.sqrt(_MEETING_DIM)
        keys = self.meeting_count(view.meetings.clamp(max=_COUNT_BUCKETS - 1)) + self.meeting_event(rows.event) + self.meeting_response(rows.response)
        by_step = query @ keys.transpose(1, 2)
        by_distance = (query @ self.meeting_steps.T).gather(2, view.steps_ago) + (query @ self.meeting_time.T).gather(2, view.time_ago)
        meeting: Tensor = (by_step + by_distance) * view.met
        return meeting

    def _kin(self, rows: Rows, view: View, hidden: Tensor) -> Tensor:
        query = self.kin_query(hidden) / math.sqrt(_MEETING_DIM)
        by_step = query @ (self.kin_event(rows.event) + self.kin_response(rows.response)).transpose(1, 2)
        by_distance = (query @ self.kin_steps.T).gather(2, view.steps_ago)
        kin: Tensor = (by_step + by_distance) * view.seen
        return kin
