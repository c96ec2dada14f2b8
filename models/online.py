"""Exports what is served to teams that answer requests themselves: torch alone runs it, and nothing of Nightjar.

`policy.pt2` is a program of torch.export: the last steps of users in, their states out, as `PolicyProgram.forward` has them. `items.parquet`
has the items by their place, the first of which is none: item_id, category, available, vector. With these

    z(s, a) = query(s)·vector(a) + what `meeting` adds to the items `met_item` + what `kin` adds to the items of `category`

is the z of `models.network`: beside f(s) and g(a), query and vector hold 1 and b(a), w(s) and popularity(a). So an index for the largest
inner product finds what is best but for the last two terms, which are for few items.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from jobs.contracts.errors import BadSettings, FolderUnwritable
from jobs.contracts.revision import revision
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.storage import new_folder
from models.data import Catalogue
from models.gate import MANIFEST
from models.network import ItemTable, ItemVectors, Network, Rows, view_of
from models.policy import Policy
from models.recurrent import OneWindow, Recurrent
from models.serving import load_served

OF_EACH_STEP = ("item", "event_type", "response", "event_time")  # what the program takes of a step


def export_policy(lake: Lake, settings: Settings, folder: Path, day: date, version: str | None) -> dict[str, Any]:
    """Write what `load_served` gives, whose errors these are, into a new folder, whole or not at all; return its manifest.

    Raises FolderTaken, FolderUnwritable, and BadSettings as `Online.of_policy`.
    """
    with new_folder(folder) as draft:
        served = load_served(lake, settings, day, version)
        if isinstance(served.ranker, Policy):
            online = Online.of_policy(served.ranker)
        else:
            users = np.zeros(1, dtype=np.int64)
            scores = served.ranker.score(served.steps, users, users)[0]
            online = Online.of_scores(torch.tensor(scores), tuple(settings.event_types), settings.evaluate.repeats)
        about = {"policy_version": served.version, "day": str(day), "lake": str(lake.root), "revision": revision()}
        try:
            return online.save(draft, served.catalogue, about)
        except OSError as error:
            raise FolderUnwritable(f"The export to {folder} stopped, and nothing of it is left: {error}.") from error


@dataclass(frozen=True)
class Online:
    """A program, and what stands for each item beside it."""

    program: nn.Module
    vectors: Tensor  # [items, width]
    category: Tensor  # int64[items]; 0 = none
    steps: int  # last steps of a user that the program takes
    event_types: tuple[str, ...]
    repeats: bool
    user_features: tuple[str, ...] = ()  # that the program takes of a user

    @classmethod
    def of_policy(cls, policy: Policy) -> Online:
        """As the policy scores, for its catalogue and its popularity. Raises BadSettings where critics differ in it, of which no inner product tells."""
        network, table, items, popularity = policy.parts()
        config = network.config
        if config.lower and config.critics > 1:
            raise BadSettings(
                f"{policy.name} ranks by a lower bound over {config.critics} critics (train.lower = {config.lower:g}), which no inner product gives. "
                "Export one that was trained with train.lower = 0, or name another with --policy."
            )
        vectors = torch.cat([items.whole, items.bias.mean(1, keepdim=True), popularity], dim=1)
        program = PolicyProgram(network, table, items).eval()
        return cls(program, vectors, table.leaf, config.context + 1, config.event_types, config.repeats, config.user_features)

    @classmethod
    def of_scores(cls, scores: Tensor, event_types: tuple[str, ...], repeats: bool) -> Online:
        """The same scores, [items], for everybody."""
        return cls(SameForAll(), scores[:, None], torch.zeros(len(scores), dtype=torch.int64), 1, event_types, repeats)

    def save(self, folder: Path, catalogue: Catalogue, about: Mapping[str, Any]) -> dict[str, Any]:
        """Write program, items and manifest into a folder that is there; return the manifest, of which `about` is a part."""
        users = torch.export.Dim("users")
        shapes = {"steps": (2, self.steps, len(OF_EACH_STEP)), "count": (2,), "now": (2,)}  # of 2 users: of 1 it would take the number for a constant
        empty = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()}
        if self.user_features:
            empty["features"] = torch.zeros(2, len(self.user_features))
        program = torch.export.export(self.program, tuple(empty.values()), dynamic_shapes={name: {0: users} for name in empty})
        torch.export.save(program, folder / "policy.pt2")
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(self.vectors.cpu().numpy().ravel()), self.vectors.shape[1])
        columns = {"item_id": pa.array(catalogue.item_ids), "category": self.category.cpu().numpy(), "available": catalogue.available, "vector": vectors}
        pq.write_table(pa.table(columns), folder / "items.parquet")
        manifest = {**about, "steps": self.steps, "of_each_step": OF_EACH_STEP, "event_types": self.event_types, "repeats": self.repeats}
        manifest |= {"user_features": self.user_features, "torch": torch.__version__}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        return manifest


class PolicyProgram(nn.Module):
    """From the last steps of users to their states, which score the items of a table."""

    def __init__(self, network: Network, table: ItemTable, items: ItemVectors) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu()
        del self.network.item_vector, self.network.item_bias, self.network.category_vector, self.network.given  # the items have what came of them
        self.network.encoders = nn.ModuleList(OneWindow(encoder) if isinstance(encoder, Recurrent) else encoder for encoder in self.network.encoders)
        self.whole, self.leaf = nn.Buffer(items.whole.cpu()), nn.Buffer(table.leaf.cpu())

    def forward(self, steps: Tensor, count: Tensor, now: Tensor, features: Tensor | None = None) -> dict[str, Tensor]:
        """States of users at the moments `now`, int64[users], in seconds since 1970.

        `steps` int64[users, context + 1, OF_EACH_STEP]: the last steps of each, oldest first, then whatever; items by place, event types
        and responses by their place from 1, 0 = none or unknown. `count` int64[users]: how many they are. Of the first of context + 1 only
        the time is looked at. `features` float32[users, user_features], where the policy has some: nan = not known. Returns query
        [users, width]; met_item int64[users, slots] and meeting [users, slots], category int64[users, slots] and kin [users, slots], where 0
        adds to nothing.
        """
        rows, last = self._rows(steps, count, now)
        biases = self.whole[:, :1].expand(-1, len(self.network.heads))
        items = ItemVectors(self.whole, self.whole, biases, self.leaf > 0, torch.zeros_like(self.leaf))  # of which the states read the first alone
        view = view_of(rows, self.network.config.context, last)
        critics = self.network.states(rows, view, items, None if features is None else features[:, None])

        def mean(name: str) -> Tensor:
            return torch.stack([getattr(states, name) for states in critics]).mean(0)

        query, popularity = torch.cat([states.query for states in critics], dim=2) / len(critics), mean("popularity")
        category = self.leaf[rows.item]
        return {
            "query": torch.cat([query, torch.ones_like(query[:, :, :1]), popularity], dim=2).squeeze(1),
            "met_item": critics[0].met_item.squeeze(1),
            "meeting": mean("meeting").squeeze(1),
            "category": category,
            "kin": torch.where(category > 0, mean("kin").squeeze(1), 0.0),
        }

    def _rows(self, steps: Tensor, count: Tensor, now: Tensor) -> tuple[Rows, Tensor]:
        """As `rows_of`, a window a row, and the slot of its last step: int64[users, 1]."""
        context = self.network.config.context
        slot = torch.arange(context + 1, device=steps.device)
        is_longer = (count > context).long()[:, None]
        last = count[:, None] - is_longer
        step = (slot - 1 + is_longer).clamp(min=0)
        is_step = (slot > 0) & (slot <= last)
        seen = steps.gather(1, step[:, :, None].expand(-1, -1, len(OF_EACH_STEP)))
        item, event, response, time = torch.where(is_step[:, :, None], seen, 0).unbind(2)
        begin = torch.where(count > 0, steps[:, 0, 3], now)
        time = torch.where(slot > 0, time, begin[:, None])
        following = torch.where(slot == last, torch.maximum(now[:, None], time), time.roll(-1, 1))
        wait = torch.where(slot <= last, following - time, 0)
        return Rows((slot <= last).long(), item, event, response, time, wait), last


class SameForAll(nn.Module):
    """In the form of `PolicyProgram`, where every user is the same."""

    def forward(self, steps: Tensor, count: Tensor, now: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """As that of `PolicyProgram`; nothing is added to any item."""
        none, nothing = torch.zeros_like(count)[:, None], count.new_zeros(count.shape[0], 1, dtype=torch.float32)
        return {"query": nothing + 1, "met_item": none, "meeting": nothing, "category": none.clone(), "kin": nothing.clone()}
