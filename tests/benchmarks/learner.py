"""Transitions learnt per CPU second of one core, against TorchRL's `DiscreteCQLLoss` with an MLP over the last 20 steps: `make bench-learner`.

Both have width 64, double Q-learning with a target net, and learn from the same log. TorchRL's copies a history into each
transition, and has an output for each item, so there is no row for it where that does not fit. Our batches are those of a log of 8
million steps and more; of a small log they are smaller, and take twice the time. Memory is what comes on top of Python with its packages. The
limit is that of arithmetic: the products of matrices of a step, at the speed of large ones, with all else for nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from models.data import Steps
from tests.benchmarks.measured import measure, resident

USERS, DAYS, HISTORY, DIM, BATCH = 4_000, 30, 20, 64, 8192
SIZES = (1_000, 10_000, 100_000, 1_000_000)
LARGEST_EXACT = 100_000

app = typer.Typer()


def made_steps(items: int) -> Steps:
    """Steps of users with long and short histories, some items chosen much more often than others, over a month; one in eight is rewarded."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(0.02, USERS), 300)
    total = int(lengths.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    place = np.arange(total) - np.repeat(offsets[:-1], lengths)
    day = (place * DAYS // np.repeat(lengths, lengths)).astype(np.int32)
    is_rewarded = rng.random(total) < 0.125
    return Steps(
        user_ids=tuple(map(str, range(USERS))),
        offsets=offsets,
        item=(items * rng.random(total) ** 3).astype(np.int32) + 1,
        event=np.ones(total, dtype=np.int8),
        response=is_rewarded.astype(np.int8) * 2,
        reward=is_rewarded.astype(np.float32),
        time=day * 86_400 + place * 30,
        first=place == 0,
        end=np.where(place == np.repeat(lengths, lengths) - 1, 2, 0).astype(np.int8),
        propensity=np.full(total, np.nan, dtype=np.float32),
        candidates=np.zeros(total, dtype=np.int32),
        day=day,
    )


@app.command()
def ours(items: int, seconds: float, exact: Annotated[bool, typer.Option()] = True) -> None:
    """Figures of the learner."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from jobs.settings import Train
    from models.data import Catalogue, DailyCounts
    from models.learner import _Learner, config_of
    from models.loader import HeldBucket
    from models.network import Network
    from models.objective import batch_of
    from models.training_data import TrainingData

    torch.set_num_threads(1)
    before = resident("VmRSS")
    log = made_steps(items)
    catalogue = Catalogue(("",) * (items + 1), ((),) * (items + 1), (None,) * (items + 1), np.arange(items + 1) > 0)
    data = TrainingData(catalogue, HeldBucket(log), DailyCounts.of([log]), 0, np.tile(catalogue.available, (DAYS, 1)))
    train = Train(dim=DIM, exact_items=items if exact else 1, alpha=0.02, batch_steps=BATCH, critics=1).for_log(True)
    network = Network(config_of(train, ("impression", "click"), repeats=True), items, 0)
    learner = _Learner(network, data, train, torch.device("cpu"))
    batches = learner._loader.batches(learner._position)
    first = next(batches)[0]
    with FlopCounterMode(display=False) as counter:
        learner._update(batch_of(first, 0, 1.0, torch.device("cpu")), 1.0)
    operations = counter.get_total_flops() / int(first.fresh.sum())
    learnt, slots, padding, began = 0, 0, 0, time.process_time()
    for packed, _ in batches:
        learner._update(batch_of(packed, 0, 1.0, torch.device("cpu")), 1.0)
        learnt, slots, padding = learnt + int(packed.fresh.sum()), slots + packed.segment.numel(), padding + int((packed.segment == 0).sum())
        if time.process_time() - began > seconds:
            break
    rate = learnt / (time.process_time() - began)
    tell(rate, before, padding=padding / slots, share=rate * operations / most_operations())


def most_operations() -> float:
    """Floating-point operations of a second, in products of large matrices."""
    import torch

    factor, began = torch.randn(1500, 1500), time.process_time()
    for _ in range(10):
        torch.mm(factor, factor)
    return 10 * 2 * 1500**3 / (time.process_time() - began)


@app.command()
def torchrl(items: int, seconds: float) -> None:
    """Figures of the peer."""
    import torch
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from torch import nn
    from torchrl.data import Categorical
    from torchrl.modules import MLP, QValueActor
    from torchrl.objectives import DiscreteCQLLoss, SoftUpdate

    torch.set_num_threads(1)
    before = resident("VmRSS")
    log = made_steps(items)
    net = nn.Sequential(nn.Embedding(items + 1, DIM), nn.Flatten(), MLP(in_features=HISTORY * DIM, out_features=items, num_cells=[DIM, DIM]))
    actor = QValueActor(TensorDictModule(net, ["observation"], ["action_value"]), spec=Categorical(items), action_space="categorical")
    loss = DiscreteCQLLoss(actor, action_space="categorical", delay_value=True)
    loss.make_value_estimator(gamma=0.9)
    update, optimiser = SoftUpdate(loss, eps=0.99), torch.optim.Adam(loss.parameters(), fused=True)
    place = np.arange(len(log)) - np.repeat(log.offsets[:-1], np.diff(log.offsets))
    rng, size = np.random.default_rng(0), max(32, min(2048, 20_000_000 // items))
    learnt, began = 0, 0.0
    while not learnt or time.process_time() - began < seconds:
        rows = rng.integers(0, len(log), size)
        back = np.arange(HISTORY, 0, -1)
        history = np.where(back <= place[rows][:, None], log.item[np.maximum(rows[:, None] - back, 0)], 0)
        ended = torch.from_numpy(log.end[rows] != 0)[:, None]
        after = {
            "observation": torch.from_numpy(np.concatenate([history[:, 1:], log.item[rows][:, None]], axis=1)).long(),
            "reward": torch.from_numpy(log.reward[rows])[:, None],
            "done": ended,
            "terminated": torch.zeros_like(ended),
        }
        batch = TensorDict({"observation": torch.from_numpy(history).long(), "action": torch.from_numpy(log.item[rows] - 1).long(), "next": after}, [size])
        found = loss(batch)
        optimiser.zero_grad()
        (found["loss_qvalue"] + 0.02 * found["loss_cql"]).backward()
        optimiser.step()
        update.step()
        if not began:
            began = time.process_time()
        else:
            learnt += size
    tell(learnt / (time.process_time() - began), before)


def tell(rate: float, before: int, **more: float) -> None:
    print(json.dumps({"rate": rate, "megabytes": (resident("VmHWM") - before) / 1e6, **more}))


def ask(*arguments: object) -> dict[str, float]:
    """What this program says of itself, as a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    answer: dict[str, float] = json.loads(measure([sys.executable, "-m", "tests.benchmarks.learner", *map(str, arguments)], environment).said.splitlines()[-1])
    return answer


@app.command()
def bench(seconds: Annotated[float, typer.Option(help="CPU seconds of learning a row")] = 20.0) -> None:
    """One row a size and way."""
    page = Table("items", "what", "transitions/s", "ratio", "peak MB on top", "padding", "of the limit")
    for items in SIZES:
        peer = ask("torchrl", items, seconds) if items <= LARGEST_EXACT else None
        if peer:
            page.add_row(f"{items:,}", "TorchRL, MLP over 20 steps", f"{peer['rate']:,.0f}", "1", f"{peer['megabytes']:,.0f}", "", "")
        for name, flag in (("exact", "--exact"), ("drawn", "--no-exact")):
            if flag == "--no-exact" or items <= LARGEST_EXACT:
                found = ask("ours", items, seconds, flag)
                ratio = f"{found['rate'] / peer['rate']:.1f}" if peer else "-"
                page.add_row(
                    f"{items:,}", name, f"{found['rate']:,.0f}", ratio, f"{found['megabytes']:,.0f}", f"{found['padding']:.2%}", f"{found['share']:.0%}"
                )
    Console(width=110).print(page)


if __name__ == "__main__":
    app()
