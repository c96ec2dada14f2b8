"""Small catalogues, steps and networks for the tests of the learner."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from jobs.settings import Train
from models.data import END_CODES, Catalogue, DailyCounts, Steps
from models.loader import HeldBucket
from models.network import Network, NetworkConfig, network_over
from models.objective import Batch, Loss, Part, batch_loss
from models.popularity import POPULARITY_FEATURES
from models.training_data import TrainingData

EVENT_TYPES = ("impression", "click", "purchase")
HOUR = 3600
SMALL = Train(
    dim=16,
    layers=1,
    heads=2,
    context=8,
    dropout=0.0,
    id_dropout=0.0,
    step_id_dropout=0.0,
    epochs=2,
    batch_steps=64,
    backup="best",
    alpha=0.02,
    supervised=0.02,
    critics=1,
)


def catalogue(items: int, categories: Sequence[tuple[str, ...]] = ()) -> Catalogue:
    """Items i1 … in one category each, all available."""
    paths = tuple(categories) or tuple((f"c{number % 3}",) for number in range(items))
    return Catalogue(("", *(f"i{number + 1}" for number in range(items))), ((), *paths), (None,) * (items + 1), np.arange(items + 1) > 0)


def with_content(items: Catalogue, seed: int = 0, **widths: int) -> Catalogue:
    """The same items with prices and vectors of such widths, of which each third item has none."""
    rng, count = np.random.default_rng(seed), len(items)
    price, is_given = rng.exponential(20, count), np.arange(count) % 3 > 0
    drawn = {name: rng.normal(size=(count, width)) for name, width in widths.items()}
    vectors = {name: values / np.linalg.norm(values, axis=1, keepdims=True) * is_given[:, None] for name, values in drawn.items()}
    return dataclasses.replace(
        items,
        numbers={"price": np.where(is_given, price, np.nan).astype(np.float32)},
        vectors={name: values.astype(np.float32) for name, values in vectors.items()},
    )


def steps(histories: Sequence[Sequence[dict[str, Any]]]) -> Steps:
    """One user a history; a step is `item` and, if need be, event, response, reward, time, end, day. An hour lies between two."""
    rows = [{"time": HOUR * place, **row} for history in histories for place, row in enumerate(history)]

    def column(name: str, default: float, type: Any) -> Any:
        return np.array([row.get(name, default) for row in rows], dtype=type)

    end = np.array([END_CODES.get(row.get("end", ""), 0) for row in rows], dtype=np.int8)
    lengths = [len(history) for history in histories]
    first = np.zeros(len(rows), dtype=np.bool_)
    time = column("time", 0, np.int64)
    return Steps(
        user_ids=tuple(f"u{number:03d}" for number in range(len(histories))),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        item=column("item", 0, np.int32),
        event=column("event", 1, np.int8),
        response=column("response", 0, np.int8),
        reward=column("reward", 0, np.float32),
        time=time,
        first=first,
        end=end,
        propensity=np.full(len(rows), np.nan, dtype=np.float32),
        candidates=column("candidates", 0, np.int32),
        day=(time // 86_400).astype(np.int32),
    )


def training_data(items: Catalogue, log: Steps) -> TrainingData:
    """All items of the catalogue eligible on every day; rewards count as they are."""
    return TrainingData(items, HeldBucket(log), DailyCounts.of([log]), 0, np.tile(items.available, (int(log.day.max()) + 1, 1)))


def network(items: Catalogue, repeats: bool = True, seed: int = 0, **changes: Any) -> Network:
    """An untrained network in which every term counts: no weight is 0."""
    shape: dict[str, Any] = {
        "dim": 16,
        "layers": 2,
        "heads": 2,
        "context": 8,
        "encoder": "gru",
        "dropout": 0.0,
        "id_dropout": 0.0,
    } | changes
    torch.manual_seed(seed)
    made = network_over(items, NetworkConfig(**{"event_types": EVENT_TYPES, "repeats": repeats, **shape}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def loss_and_gradients(online: Network, target: Network, part: Part, batch: Batch, train: Train) -> tuple[Loss, dict[str, torch.Tensor | None]]:
    """The loss of a batch, and its gradients by parameter of the online net."""
    loss = batch_loss(online.eval(), target, part, batch, train.each(True))
    loss.total.backward()  # type: ignore[no-untyped-call]
    return loss, {name: parameter.grad for name, parameter in online.named_parameters()}


def assert_same(one: tuple[Loss, dict[str, torch.Tensor | None]], other: tuple[Loss, dict[str, torch.Tensor | None]]) -> None:
    """Two answers of `loss_and_gradients` are the same, to what float32 can hold."""
    (loss, gradients), (found, others) = one, other
    torch.testing.assert_close(found.total, loss.total, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.parts, loss.parts, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-5, rtol=1e-4)


def random_steps(users: int, length: int, items: int, seed: int) -> Steps:
    """Steps at random, every user with the same number."""
    rng = np.random.default_rng(seed)
    return steps(
        [
            [
                {"item": int(rng.integers(1, items + 1)), "response": int(rng.integers(0, 3)), "reward": float(rng.integers(0, 2)), "time": HOUR * 5 * place}
                for place in range(length)
            ]
            for _ in range(users)
        ]
    )


NO_POPULARITY = np.zeros((1, POPULARITY_FEATURES), dtype=np.float32)
