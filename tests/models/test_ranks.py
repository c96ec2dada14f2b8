"""Two processes that train together, over gloo, against one that has the batches of both."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.lake import Lake
from jobs.runs import runs
from jobs.settings import Settings, Train
from models import learner as training
from models.data import DailyCounts, Steps
from models.events import until
from models.learner import fit
from models.loader import LateBuckets, Loader, Packed, Packing, Position
from models.losses import Drawn
from models.objective import Batch
from models.ranks import ALONE, Ranks, joined
from models.sampling import Proposal
from models.train import run_together
from models.training_data import TrainingData
from tests.models.learner_cases import EVENT_TYPES, SMALL, catalogue, random_steps, training_data
from tests.models.learner_lake import DAYS, D, land

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent.parent
CASES = {
    "exact": SMALL.model_copy(update={"gap": 1.0}),
    "drawn": SMALL.model_copy(update={"exact_items": 11}),
    "patience": SMALL.model_copy(update={"patience": 3, "epochs": 3, "backup": "logged", "encoder": "transformer"}),
}
WITH_DROPOUT = SMALL.model_copy(update={"dropout": 0.2, "id_dropout": 0.2, "epochs": 3, "exact_items": 11, "negatives": 5})


@dataclass(frozen=True)
class Held:
    """Buckets that are in memory."""

    buckets: tuple[Steps, ...]

    @property
    def sizes(self) -> list[int]:
        return [len(steps) for steps in self.buckets]

    def read(self, place: int) -> tuple[int, Steps]:
        return place, self.buckets[place]


SETTINGS = Settings(train=SMALL.model_copy(update={"window_days": DAYS}))


def the_data() -> TrainingData:
    """Three buckets, of 7, 2 and 3 users, the last day of which is for validation: one of two ranks has fewer batches than the other."""
    items, parts = catalogue(12), [random_steps(users, 20, 12, seed=users) for users in (7, 2, 3)]
    last = int(parts[0].day.max())
    learnt, counts = [until(part, last - 1) for part in parts], DailyCounts.of(parts)
    whole = training_data(items, parts[0])
    return dataclasses.replace(whole, buckets=Held((*learnt,)), counts=counts, validation=LateBuckets(Held((*parts,)), last, SMALL.context))


def the_same_each_time(_: Proposal, draws: int) -> Drawn:
    """Else ranks draw others than a process that is alone."""
    return Drawn(torch.arange(1, 9), torch.linspace(-1, 1, 8))


def interrupt(patch: pytest.MonkeyPatch, at: int) -> None:
    """SIGTERM comes to this process while it is at one of its updates."""
    update, numbers = training._Learner._update, itertools.count(1)

    def interrupted(learner: training._Learner, batch: Batch, rate: float) -> dict[str, float]:
        if next(numbers) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(learner, batch, rate)

    patch.setattr(training._Learner, "_update", interrupted)


class Together:
    """The batches of both ranks as one."""

    def __init__(self, buckets: Held, packing: Packing, seed: int, *_: int, workers: int = 0) -> None:
        self._loaders = [Loader(buckets, dataclasses.replace(packing, rows=packing.rows // 2), seed, rank, 2) for rank in range(2)]

    def batches(self, position: Position) -> Iterator[tuple[Packed, Position]]:
        of_ranks = [[packed for packed, _ in loader.batches(position)] for loader in self._loaders]
        assert len({*map(len, of_ranks)}) == 2
        pairs = [[packed for packed in pair if packed is not None] for pair in itertools.zip_longest(*of_ranks)]
        for number, pair in enumerate(pairs, start=1):
            columns = (torch.cat([getattr(packed, field.name) for packed in pair]) for field in dataclasses.fields(Packed))
            yield Packed(*columns), Position(position.epoch, number) if number < len(pairs) else Position(position.epoch + 1)


def weights(train: Train, repeats: bool = True, draft: Path | None = None, ranks: Ranks = ALONE) -> dict[str, torch.Tensor]:
    """Of a training that has come to its end; none of another one."""
    fitted = fit(the_data(), EVENT_TYPES, train, repeats, CPU, draft, ranks=ranks)
    return fitted[0].state_dict() if fitted else {}


def lake_of(folder: Path) -> Lake:
    return Lake(folder / "lake", tuple(SETTINGS.event_types))


def as_a_rank(rank: int, ports: tuple[int, int], folder: Path) -> None:
    """What each process does: a training that is interrupted in one of them, twice; every case; and a night's training from a lake."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(ports[0]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    torch.set_num_threads(1)
    with joined() as ranks, pytest.MonkeyPatch.context() as patch:
        whole = weights(WITH_DROPOUT, ranks=ranks)
        for updates in (4, 9):
            with pytest.MonkeyPatch.context() as interrupted:
                interrupt(interrupted, updates if rank == 1 else 99)
                assert weights(WITH_DROPOUT, draft=folder / "draft", ranks=ranks) == {}
            torch.manual_seed(updates)
        save_file(whole, folder / f"whole.{rank}")
        save_file(weights(WITH_DROPOUT, draft=folder / "draft", ranks=ranks), folder / f"resumed.{rank}")
        patch.setattr(Proposal, "draw", the_same_each_time)
        for name, train in CASES.items():
            save_file(weights(train, name != "drawn", ranks=ranks), folder / f"{name}.{rank}")
    os.environ["MASTER_PORT"] = str(ports[1])  # a second meeting at one port would wait for ever
    run_together(lake_of(folder), SETTINGS, D)


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes came to."""
    made, ports = tmp_path_factory.mktemp("ranks"), free_ports()
    lake = lake_of(made)
    land(lake, users=6, items=7)
    rows = [row | {"bucket": int(row["user_id"] > "u3")} for row in lake.read("gold.transitions").to_pylist()]
    lake.replace("gold.transitions", pa.Table.from_pylist(rows, lake.schema("gold.transitions")), "transitions", sorted({row["day"] for row in rows}), {})
    processes = [multiprocessing.get_context("spawn").Process(target=as_a_rank, args=(rank, ports, made), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    return made


@pytest.mark.parametrize("name", CASES)
def test_two_are_as_one_with_the_batches_of_both(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(training, "Loader", Together)
    monkeypatch.setattr(Proposal, "draw", the_same_each_time)
    alone, first, second = weights(CASES[name], name != "drawn"), load_file(folder / f"{name}.0"), load_file(folder / f"{name}.1")
    assert all(torch.equal(first[key], tensor) for key, tensor in second.items())
    torch.testing.assert_close(first, alone, atol=1e-5, rtol=0)


def test_interrupted_in_one_is_uninterrupted(folder: Path) -> None:
    """Bit for bit, each with its own place and random state; nothing is left but the weights."""
    for rank in range(2):
        whole, resumed = (load_file(folder / f"{name}.{rank}") for name in ("whole", "resumed"))
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    assert not (folder / "draft").exists()


def test_the_first_alone_writes(folder: Path) -> None:
    lake = lake_of(folder)
    (row,) = lake.read("gold.policies").to_pylist()
    assert [path.name for path in (folder / "lake" / "policies").iterdir()] == [row["policy_version"]]
    assert (json.loads(row["manifest"])["ranks"], row["steps"]) == (2, 6 * (DAYS - 1))
    assert lake.done("gold.policies") == {D}
    assert runs(lake) == []


def test_no_other_step_is_shared(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "models", "run", "train", "evaluate", "--day", str(D)]
    answer = subprocess.run(command, env=os.environ | {"WORLD_SIZE": "2", "NIGHTJAR_LAKE": str(tmp_path / "lake")}, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 1
    assert answer.stderr == "nightjar: Only the step train is shared by several processes; got train evaluate. Run the others without torchrun.\n"
    assert list(tmp_path.iterdir()) == []
