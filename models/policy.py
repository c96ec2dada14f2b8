"""A learned policy: its folder, and the scores that it gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load, save_file
from torch import nn

from jobs.contracts.errors import NotReady
from jobs.storage import Location
from models.components import along
from models.data import Catalogue, Floats, Ints, Steps
from models.gate import MANIFEST
from models.histories import best, offered, steps_of
from models.losses import Head, all_scores, head_of, lower_bound
from models.network import ItemTable, ItemVectors, Network, NetworkConfig, Rows, category_paths, item_table, network_over, rows_of, view_of
from models.popularity import POPULARITY_FEATURES

_BATCH = 256
_NUMBER, _VECTOR = "number ", "vector "  # what the columns of items.parquet begin with that hold what else is given
FORM = 6  # of a policy folder; another one is not read


def device_of_choice() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Learnt:
    """What a policy folder holds: a network, and the items that it learnt from."""

    network: Network
    catalogue: Catalogue  # all of it available, with vectors as they were learnt from
    popularity: list[list[float]]  # [items, POPULARITY_FEATURES] on the evening of the last day that it learnt from

    @classmethod
    def load(cls, folder: Location) -> Self:
        """Read a folder. Raises NotReady when something in it is missing, or it has another form than this version writes."""
        files = {name: folder / name for name in ("policy.safetensors", "axes.safetensors", "config.json", "items.parquet")}
        missing = [name for name, path in files.items() if not path.is_file()]
        if missing:
            raise NotReady(f"The policy folder {folder} has no {', '.join(missing)}. Train the day of that policy again.")
        config = json.loads(files["config.json"].read_text())
        if config.get("form") != FORM:
            raise NotReady(f"The policy folder {folder} has form {config.get('form')}, and this version of Nightjar reads form {FORM}. Train its day again.")
        items = pq.read_table(pa.BufferReader(files["items.parquet"].read_bytes()))
        catalogue = replace(_catalogue_of(items), axes=load_arrays(files["axes.safetensors"].read_bytes()))
        names = {kind: tuple(config["network"].get(kind, ())) for kind in ("event_types", "user_features")}
        shape = NetworkConfig(**config["network"] | names)
        network = network_over(catalogue, shape)
        network.load_state_dict(load(files["policy.safetensors"].read_bytes()))
        return cls(network, catalogue, items["popularity"].to_pylist())

    def grown(self, network: Network, catalogue: Catalogue) -> None:
        """Put what was learnt into a network of the same shape over a newer catalogue, so that each head scores there as the one here does.

        An item that is new begins as an unknown one, a category that is new as none, and so does what was never given before.
        """
        known_ids, known_categories = self.catalogue.item_ids, self.catalogue.categories
        table = item_table(known_ids, known_categories, catalogue, torch.device("cpu"))
        for name, part in network.given.items():
            if name not in self.network.given:
                nn.init.zeros_(part.get_parameter("weight"))
        here = network.state_dict()
        learnt = {name: tensor for name, tensor in self.network.state_dict().items() if name in here}
        policies, critics = network.config.policies, network.config.critics
        for place in range(policies * critics):
            own = f"heads.{place % critics}."
            learnt |= {name.replace(own, f"heads.{place}."): tensor for name, tensor in self.network.state_dict().items() if name.startswith(own)}
        bias = learnt["item_bias.weight"].repeat(1, policies)
        learnt["item_bias.weight"] = torch.nn.functional.pad(bias, (0, network.config.behaviour))
        for name in ("item_vector.weight", "item_bias.weight"):
            learnt[name] = learnt[name][table.ids]
        known = {path: place for place, path in enumerate(category_paths(known_categories), start=1)}
        codes = [0, *(known.get(path, 0) for path in category_paths(catalogue.categories))]
        learnt["category_vector.weight"] = learnt["category_vector.weight"][codes]
        network.load_state_dict(here | learnt)


class Policy:
    """A trained network over a catalogue, which may be newer than the one that it learnt from; a `Ranker`.

    An item that the network never met is scored by its content and its popularity.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        item_ids: tuple[str, ...],
        categories: tuple[tuple[str, ...], ...],
        catalogue: Catalogue,
        event_types: tuple[str, ...],
        popularity: Floats,
    ) -> None:
        self.name = name
        self._network = network.eval()
        self._catalogue, self._event_types = catalogue, event_types
        self._device = next(network.parameters()).device
        self._popularity = torch.from_numpy(popularity)[None].to(self._device)
        self._table = item_table(item_ids, categories, catalogue, self._device)
        learnt = {name: code for code, name in enumerate(network.config.event_types, start=1)}
        self._kinds = torch.tensor([0, *(learnt.get(event_type, 0) for event_type in event_types)], device=self._device)
        with torch.no_grad():
            self._items = network.items(self._table)

    @classmethod
    def load(cls, folder: Location, catalogue: Catalogue | None = None, event_types: tuple[str, ...] | None = None, popularity: Floats | None = None) -> Self:
        """Read a policy folder, as `Learnt.load`.

        `catalogue`: what is ranked, with vectors as they are given; None = the items that the policy learnt from, all of them available.
        `event_types`: those that the steps to be scored are coded by; one that the policy never met counts as none. None = its own.
        `popularity`: float32[len(catalogue), features] as of the night to be served (`models.popularity.DecayedCounts`);
        None = as of the last day that the policy was trained on.
        """
        learnt = Learnt.load(folder)
        item_ids, categories = learnt.catalogue.item_ids, learnt.catalogue.categories
        catalogue = learnt.catalogue if catalogue is None else along(catalogue, learnt.catalogue.axes)
        if popularity is None:
            known = dict(zip(item_ids, learnt.popularity, strict=True))
            unknown = [0.0] * POPULARITY_FEATURES
            popularity = np.array([known.get(item_id, unknown) for item_id in catalogue.item_ids], dtype=np.float32)
        network = learnt.network.to(device_of_choice())
        return cls(folder.name, network, item_ids, categories, catalogue, event_types or network.config.event_types, popularity)

    @property
    def user_features(self) -> tuple[str, ...]:
        """Columns of gold.user_features that its states have, where `Steps.known` tells them."""
        return self._network.config.user_features

    def recommend(
        self,
        histories: Sequence[Sequence[Mapping[str, Any]]],
        n: int,
        now: Sequence[int] | None = None,
        features: Sequence[Mapping[str, float | None]] | None = None,
    ) -> list[list[str]]:
        """The best n items that are available for each history, as `models.histories.steps_of` takes them; an empty one is that of somebody new.

        `now` is the moment of each choice, in seconds since 1970; None = right after the last step of each. `features` of each user, by name, are
        those of `user_features` that are known; None = none are.
        """
        steps = steps_of(histories, self._catalogue.index(), self._event_types, features)
        users = np.arange(len(histories))
        allowed = offered(self._catalogue.available, steps, users, self._network.config.repeats)
        return best(self.score(steps, users, steps.offsets[1:], None if now is None else np.array(now)), allowed, n, self._catalogue.item_ids)

    def score(self, steps: Steps, users: Ints, ends: Ints, now: Ints | None = None) -> Floats:
        """As `Ranker` says; index 0, which is no item, scores -inf."""
        return self._scores(steps, users, ends, now)[0]

    def q(self, steps: Steps, users: Ints, ends: Ints, now: Ints | None = None) -> Floats:
        """Q = V + z of every item, as `score`, in units of the scaled reward; V is the mean over the critics."""
        scores, value = self._scores(steps, users, ends, now)
        return scores + value[:, None]

    @torch.no_grad()
    def _scores(self, steps: Steps, users: Ints, ends: Ints, now: Ints | None) -> tuple[Floats, Floats]:
        scores, value = np.empty((len(users), len(self._items.bias)), dtype=np.float32), np.empty(len(users), dtype=np.float32)
        for first in range(0, len(users), _BATCH):
            rows = slice(first, first + _BATCH)
            begins = np.maximum(steps.offsets[users[rows]], ends[rows] - self._network.config.context)
            moments = None if now is None else now[rows]
            known = torch.from_numpy(steps.known.of(users[rows], steps.eves(users[rows], ends[rows], moments), self.user_features)).to(self._device)
            heads, values = self._last_states(rows_of(steps, begins, ends[rows], self._device, moments), known[:, None])
            scores[rows] = lower_bound(torch.stack([all_scores(head) for head in heads]), self._network.config.lower).cpu().numpy()
            value[rows] = values.mean(0).cpu().numpy()
        scores[:, 0] = -np.inf
        return scores, value

    def similarity(self) -> Floats:
        """Unit vectors whose products are the cosines of g(a): float32[items, dim]."""
        vectors: Floats = torch.nn.functional.normalize(self._items.whole, dim=1).cpu().numpy()
        return vectors

    def parts(self) -> tuple[Network, ItemTable, ItemVectors, torch.Tensor]:
        """What makes the scores: the network, and of each item what it knows, its vectors, and its popularity, [items, features]."""
        return self._network, self._table, self._items, self._popularity[0]

    def _last_states(self, rows: Rows, known: torch.Tensor) -> tuple[list[Head], torch.Tensor]:
        """The head of each critic in the state after the last step of each window, and its V there: [critics, windows].

        `known` [windows, 1, user_features] is as of then.
        """
        rows = replace(rows, event=self._kinds[rows.event], response=self._kinds[rows.response])
        last = rows.segment.sum(1, keepdim=True) - 1
        critics = self._network.states(rows, view_of(rows, self._network.config.context, last), self._items, known)
        day, places = torch.zeros_like(last[:, 0]), torch.arange(len(last), device=self._device)
        heads = [head_of(rows, states, self._table, self._popularity, day, places) for states in critics]
        return heads, torch.stack([states.value[:, 0, 0] for states in critics])


def save_policy(folder: Path, network: Network, catalogue: Catalogue, popularity: Floats, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Write a policy folder; `config` is kept beside the shape of the network. `catalogue` as the network knows it, `popularity` as in `Policy.load`."""
    folder.mkdir(parents=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}, folder / "policy.safetensors")
    save_arrays(dict(catalogue.axes), folder / "axes.safetensors")
    (folder / "config.json").write_text(json.dumps({"form": FORM, "network": asdict(network.config), **config}, indent=2, sort_keys=True))
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))
    items = {"item_id": list(catalogue.item_ids), "category": [list(path) for path in catalogue.categories], "popularity": popularity.tolist()}
    schema = pa.schema({"item_id": pa.string(), "category": pa.list_(pa.string()), "popularity": pa.list_(pa.float32())})
    table = pa.table(items, schema)
    for name, values in catalogue.numbers.items():
        table = table.append_column(_NUMBER + name, pa.array(values))
    for name, values in catalogue.vectors.items():
        table = table.append_column(_VECTOR + name, pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1]))
    pq.write_table(table, folder / "items.parquet")


def _catalogue_of(items: pa.Table) -> Catalogue:
    item_ids, categories = tuple(items["item_id"].to_pylist()), tuple(tuple(path) for path in items["category"].to_pylist())
    names = items.column_names
    # Copies, as torch can't take what it may not write.
    numbers = {name: items[name].to_numpy().copy() for name in names if name.startswith(_NUMBER)}
    vectors = {name: items[name].combine_chunks().flatten().to_numpy().reshape(len(items), -1).copy() for name in names if name.startswith(_VECTOR)}
    return Catalogue(
        item_ids,
        categories,
        (None,) * len(items),
        np.arange(len(items)) > 0,
        {name.removeprefix(_NUMBER): values for name, values in numbers.items()},
        {name.removeprefix(_VECTOR): values for name, values in vectors.items()},
    )
