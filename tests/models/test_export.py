"""A log of five users, worked out by hand, read back from each format by the library that it is for.

Event types: impression 1, click 2, purchase 3. Items of gold.item_index: 4 = a, 6 = b, 7 = c, 9 = d; d is met in an immature step alone. So
the actions are a 0, b 1, c 2, and in a state, where 0 is none, a 1, b 2, c 3. A state has two steps of item, event type, response, seconds.

    user  bucket  steps                                                           episodes
    ann   0       a, click, 1.0 · 60 s · b, terminated                            one, terminated
                  1 h · c, truncated_gap                                          one, truncated, whose state knows a and b
    bob   0       b, purchase, 5.5 · 30 s · a, immature · 30 s · d, immature      one, cut by what is left out
    cyd   1       c, truncated_gap · 1 day · a · 10 s · c, truncated_window       two; over two days
    dan   1       d, immature                                                     none
    eve   1       a, end not told, and no next step                               one, truncated_window
"""

from __future__ import annotations

import itertools
import json
import resource
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from jobs.contracts.errors import BadDay, ContractBroken, FolderTaken, FolderUnwritable, LibraryMissing, NotReady, TooLittleData, UnknownFormat
from jobs.contracts.exports import EXPORT_FORMATS
from jobs.lake import Lake
from jobs.settings import Settings
from models import export as module
from models.export import export_transitions, flat
from tests.models.made import make

YESTERDAY, D = date(2026, 1, 5), date(2026, 1, 6)
NUMBERS = {"a": 4, "b": 6, "c": 7, "d": 9}
NONE = [0, 0, 0, 0]
GAMMA = 0.9


class Transition(NamedTuple):
    state: list[int]
    action: int
    reward: float
    next_state: list[int]
    terminated: bool
    truncated: bool


def step(user: str, day: date, clock: str, item: str, end: str | None, response: str | None = None, reward: float = 0.0, **others: Any) -> dict[str, Any]:
    time = datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=UTC)
    row = {"user_id": user, "event_time": time, "item": NUMBERS[item], "event_type": "impression", "response": response, "reward": reward, "end": end}
    return row | {"first": False, "as_of_day": D, "day": day, "bucket": int(user > "bob")} | others


ROWS = [
    step("ann", D, "10:00:00", "a", None, "click", 1.0, first=True, propensity=0.25),
    step("ann", D, "10:01:00", "b", "terminated"),
    step("ann", D, "11:01:00", "c", "truncated_gap", first=True),
    step("bob", D, "10:00:00", "b", None, "purchase", 5.5, first=True),
    step("bob", D, "10:00:30", "a", "immature"),
    step("bob", D, "10:01:00", "d", "immature"),
    step("cyd", YESTERDAY, "10:00:00", "c", "truncated_gap", first=True),
    step("cyd", D, "10:00:00", "a", None, first=True),
    step("cyd", D, "10:00:10", "c", "truncated_window"),
    step("dan", D, "10:00:00", "d", "immature", first=True),
    step("eve", D, "10:00:00", "a", None, first=True),
]
ANN_A, ANN_B, ANN_C = [1, 1, 2, 0], [2, 1, 0, 60], [3, 1, 0, 3600]
BOB_B = [2, 1, 3, 0]
CYD_C, CYD_A, CYD_C2 = [3, 1, 0, 0], [1, 1, 0, 86_400], [3, 1, 0, 10]
EVE_A = [1, 1, 0, 0]
EPISODES = [
    [
        Transition(NONE + NONE, 0, 1.0, NONE + ANN_A, False, False),
        Transition(NONE + ANN_A, 1, 0.0, ANN_A + ANN_B, True, False),
    ],
    [Transition(ANN_A + ANN_B, 2, 0.0, ANN_B + ANN_C, False, True)],
    [Transition(NONE + NONE, 1, 5.5, NONE + BOB_B, False, True)],
    [Transition(NONE + NONE, 2, 0.0, NONE + CYD_C, False, True)],
    [
        Transition(NONE + CYD_C, 0, 0.0, CYD_C + CYD_A, False, False),
        Transition(CYD_C + CYD_A, 2, 0.0, CYD_A + CYD_C2, False, True),
    ],
    [Transition(NONE + NONE, 0, 0.0, NONE + EVE_A, False, True)],
]
TRANSITIONS = [transition for episode in EPISODES for transition in episode]
USERS = ["ann", "ann", "bob", "cyd", "cyd", "eve"]
ENDS = ["terminated", "truncated_gap", "immature", "truncated_gap", "truncated_window", "truncated_window"]


def land(lake: Lake, rows: Sequence[dict[str, Any]], days: Sequence[date] = (YESTERDAY, D)) -> None:
    counts: dict[tuple[str, date], int] = {}
    for row in rows:
        counts[row["user_id"], row["day"]] = row["step"] = counts.get((row["user_id"], row["day"]), 0) + 1
    index = [{"item": number, "item_id": item, "day": YESTERDAY} for item, number in NUMBERS.items()]
    for table, made in (("gold.item_index", index), ("gold.transitions", list(rows))):
        lake.replace(table, pa.Table.from_pylist(made, lake.schema(table)), "transitions", days, {})


@pytest.fixture
def landed(lake: Lake) -> Lake:
    land(lake, ROWS)
    return lake


def exported(lake: Lake, settings: Settings, folder: Path, format: str, first: date | None = None) -> dict[str, Any]:
    return export_transitions(lake, settings, folder, format, None, first, history=2)


def test_parquet(landed: Lake, settings: Settings, tmp_path: Path) -> None:
    exported(landed, settings, tmp_path / "out", "parquet")
    rows = pq.read_table(tmp_path / "out" / "transitions.parquet").to_pylist()
    names = ("observation", "action", "reward", "next_observation", "terminated", "truncated")
    assert [Transition(*(row[name] for name in names)) for row in rows] == TRANSITIONS
    assert [row["episode"] for row in rows] == [0, 0, 1, 2, 3, 4, 4, 5]
    assert [row["step"] for row in rows] == [0, 1, 0, 0, 0, 0, 1, 0]
    assert [row["user_id"] for row in rows] == ["ann", "ann", "ann", "bob", "cyd", "cyd", "cyd", "eve"]
    assert [row["item_id"] for row in rows] == ["a", "b", "c", "b", "c", "a", "c", "a"]
    assert [row["response"] for row in rows] == ["click", None, None, "purchase", None, None, None, None]
    assert [row["end"] for row in rows] == [None, *ENDS[:4], None, *ENDS[4:]]
    assert [row["propensity"] for row in rows] == [0.25, *[None] * 7]
    np.testing.assert_allclose([row["discount"] for row in rows], [GAMMA, 0, *[GAMMA] * 6])
    assert {row["event_type"] for row in rows} == {"impression"}
    assert (rows[1]["event_time"], rows[1]["day"], rows[4]["day"]) == (datetime(2026, 1, 6, 10, 1, tzinfo=UTC), D, YESTERDAY)


def test_jsonl(landed: Lake, settings: Settings, tmp_path: Path) -> None:
    """As RLDS reads: the reward of a step is that of the action taken there, and the last step has the state alone."""
    exported(landed, settings, tmp_path / "out", "jsonl")
    episodes = [json.loads(line) for line in (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()]
    assert [(episode["episode"], episode["user_id"], episode["end"]) for episode in episodes] == list(zip(range(6), USERS, ENDS, strict=True))
    for episode, transitions in zip(episodes, EPISODES, strict=True):
        steps, last = episode["steps"], episode["steps"][-1]
        read = [
            Transition(
                one["observation"], one["action"], one["reward"], other["observation"], other["is_terminal"], other["is_last"] and not last["is_terminal"]
            )
            for one, other in itertools.pairwise(steps)
        ]
        assert read == transitions
        assert [one["is_first"] for one in steps] == [True, *[False] * len(transitions)]
        assert [one["discount"] for one in steps] == [*(0.0 if one.terminated else GAMMA for one in transitions), None]
        assert (last["action"], last["reward"], last["is_last"]) == (None, None, True)
    assert (episodes[0]["steps"][0]["propensity"], episodes[0]["steps"][1]["propensity"]) == (0.25, None)
    assert episodes[0]["steps"][1]["event_time"] == "2026-01-06T10:01:00Z"


def test_d3rlpy(landed: Lake, settings: Settings, tmp_path: Path) -> None:
    """d3rlpy makes s' of a terminal step zeros; every other one, an episode's last included, is what it should be."""
    from d3rlpy.dataset import BasicTransitionPicker

    exported(landed, settings, tmp_path / "out", "d3rlpy")
    read, pick = [], BasicTransitionPicker()
    for episode in replay(tmp_path / "out").episodes:
        picked = [pick(episode, place) for place in range(episode.transition_count)]
        assert [one.interval for one in picked] == [1] * len(picked)
        read += [
            Transition(
                listed(one.observation),
                int(one.action[0]),
                float(one.reward[0]),
                listed(one.next_observation),
                bool(one.terminal),
                one is picked[-1] and not one.terminal,
            )
            for one in picked
        ]
    assert read == [one._replace(next_state=NONE + NONE) if one.terminated else one for one in TRANSITIONS]


def test_minari(landed: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    exported(landed, settings, tmp_path / "nightjar" / "a.shop", "minari")
    exported(landed, settings, tmp_path / "nightjar" / "shop-v2", "minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert minari.MinariDataset(tmp_path / "nightjar" / "a.shop" / "data").spec.dataset_id == "nightjar/a-shop-v0"
    dataset = minari.load_dataset("nightjar/shop-v2")
    assert (dataset.total_episodes, dataset.total_steps) == (len(EPISODES), len(TRANSITIONS))
    assert (dataset.action_space.n, dataset.observation_space.shape) == (3, (8,))
    for episode, transitions in zip(dataset.iterate_episodes(), EPISODES, strict=True):
        columns = (episode.observations[:-1], episode.actions, episode.rewards, episode.observations[1:], episode.terminations, episode.truncations)
        assert [Transition(*row) for row in zip(*map(listed, columns), strict=True)] == transitions
        assert dataset.observation_space.contains(episode.observations[0])


def listed(values: Any) -> Any:
    return values.tolist()


def replay(folder: Path) -> Any:
    import d3rlpy
    from d3rlpy.dataset import InfiniteBuffer, ReplayBuffer

    assert d3rlpy.dataset.io.DATASET_VERSION == "2.1", "to_d3rlpy writes what that version dumps"
    with (folder / "dataset.h5").open("rb") as file:
        return ReplayBuffer.load(file, InfiniteBuffer())


def test_d3rlpy_learns_from_it(lake: Lake, settings: Settings, tmp_path: Path) -> None:
    """Two items are shown at random, of which one is always clicked and one never: a few steps of DiscreteCQL tell them apart."""
    import d3rlpy
    from d3rlpy.algos import DiscreteCQLConfig
    from d3rlpy.logging import NoopAdapterFactory
    from d3rlpy.preprocessing import MinMaxObservationScaler

    rng = np.random.default_rng(0)
    rows = [
        step(f"u{user:02}", D, f"10:{minute:02}:00", *(("a", "terminated", "click", 1.0) if rng.integers(0, 2) else ("b", "terminated")), first=True, bucket=0)
        for user in range(20)
        for minute in range(8)
    ]
    land(lake, rows)
    exported(lake, settings, tmp_path / "out", "d3rlpy")
    dataset = replay(tmp_path / "out")
    assert (dataset.transition_count, dataset.dataset_info.action_size) == (160, 2)
    d3rlpy.seed(0)
    learner = DiscreteCQLConfig(batch_size=64, learning_rate=1e-2, gamma=0.9, alpha=0.1, observation_scaler=MinMaxObservationScaler()).create(device=False)
    history = learner.fit(dataset, n_steps=60, n_steps_per_epoch=30, show_progress=False, logger_adapter=NoopAdapterFactory())
    assert all(np.isfinite(losses["loss"]) for _, losses in history)
    states = np.stack([episode.observations[0] for episode in dataset.episodes])
    assert (learner.predict(states) == 0).all()


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_the_manifest_tells_what_it_is(landed: Lake, settings: Settings, tmp_path: Path, format: str) -> None:
    manifest = exported(landed, settings, tmp_path / "out", format)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    counts = {"episodes": 6, "transitions": 8, "terminated": 1, "truncated_gap": 2, "truncated_window": 2, "cut_by_immature": 1, "immature_left_out": 3}
    assert {name: manifest[name] for name in counts} == counts
    assert (manifest["format"], manifest["lake"], manifest["table"]) == (format, str(landed.root), "gold.transitions")
    assert (manifest["version"], manifest["last_day"], manifest["actions"]) == (landed.version("gold.transitions"), str(D), 3)
    assert [shard["rows"] for shard in manifest["shards"]] == [6, 5]
    assert {name: kind["place"] for name, kind in manifest["event_types"].items()} == {"impression": 1, "click": 2, "purchase": 3}
    assert pq.read_table(tmp_path / "out" / "items.parquet").to_pylist() == [
        {"action": 0, "item_id": "a", "item": 4},
        {"action": 1, "item_id": "b", "item": 6},
        {"action": 2, "item_id": "c", "item": 7},
    ]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "lake") == ["out"]


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_the_same_twice_is_the_same(landed: Lake, settings: Settings, tmp_path: Path, format: str) -> None:
    """Into an empty folder as into a new one, byte for byte."""
    (tmp_path / "two" / "out").mkdir(parents=True)
    for name in ("one", "two"):
        exported(landed, settings, tmp_path / name / "out", format)
    files = [{path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("one", "two")]
    assert files[0] == files[1]


def test_days_are_those_asked_for_as_they_were_known(landed: Lake, settings: Settings, tmp_path: Path) -> None:
    """Of the last day alone nothing earlier is in a state; of an earlier day the version is the one that knew no more."""
    first = exported(landed, settings, tmp_path / "last", "parquet", first=D)
    assert (first["first_day"], first["episodes"]) == (str(D), 5)
    rows = pq.read_table(tmp_path / "last" / "transitions.parquet").to_pylist()
    assert [row["observation"] for row in rows if row["user_id"] == "cyd"] == [NONE + NONE, NONE + EVE_A]

    version = landed.version("gold.transitions")
    later = date(2026, 1, 7)
    rows_later = [row | {"as_of_day": later} for row in ROWS] + [step("eve", later, "10:00:00", "b", "truncated_gap", first=True, as_of_day=later)]
    land(landed, rows_later, (YESTERDAY, D, later))
    then = export_transitions(landed, settings, tmp_path / "then", "jsonl", D, None, history=2)
    assert (then["version"], then["transitions"]) == (version, 8)
    assert exported(landed, settings, tmp_path / "now", "jsonl")["last_day"] == str(later)


@pytest.mark.parametrize("seed", range(10))
def test_random_logs_against_plain_python(lake: Lake, settings: Settings, tmp_path: Path, seed: int) -> None:
    """Ends and firsts at random, such as contradict each other too; immature steps amid the others; parts of a bucket."""
    rng = np.random.default_rng(seed)
    ends = (None, None, None, "terminated", "truncated_gap", "truncated_window", "immature")
    rows = [
        step(
            *(f"u{user}", day, f"10:{minute:02}:{rng.integers(0, 60):02}", rng.choice([*NUMBERS]), ends[rng.integers(0, len(ends))]),
            response=(None, "click", "purchase")[rng.integers(0, 3)],
            reward=float(rng.integers(0, 9)),
            first=bool(rng.integers(0, 4) == 0),
            bucket=user % 3,
        )
        for user in range(9)
        for day in (YESTERDAY, D)
        for minute in range(int(rng.integers(0, 12)))
    ]
    land(lake, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PART_STEPS", 7)
        export_transitions(lake, settings, tmp_path / "out", "parquet", D, None, history=3)
    index = {row["item_id"]: row["action"] for row in pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()}
    items = {number: index[item] for item, number in NUMBERS.items() if item in index}
    codes = {None: 0, "impression": 1, "click": 2, "purchase": 3}
    expected = []
    for user in sorted({row["user_id"] for row in rows}, key=lambda user: (int(user[1:]) % 3, user)):
        own = [row for row in rows if row["user_id"] == user]
        state, before = [NONE] * 3, None
        for row, following in zip(own, [*own[1:], None], strict=True):
            if row["end"] == "immature":
                continue
            seconds = int((row["event_time"] - before).total_seconds()) if before else 0
            after = [*state[1:], [items[row["item"]] + 1, codes[row["event_type"]], codes[row["response"]], seconds]]
            stops = row["end"] is not None or following is None or following["first"] or following["end"] == "immature"
            terminated = row["end"] == "terminated"
            now, then = (list(itertools.chain(*each)) for each in (state, after))
            expected.append((user, Transition(now, items[row["item"]], row["reward"], then, terminated, stops and not terminated)))
            state, before = after, row["event_time"]
    names = ("observation", "action", "reward", "next_observation", "terminated", "truncated")
    found = pq.read_table(tmp_path / "out" / "transitions.parquet").to_pylist()
    assert [(row["user_id"], Transition(*(row[name] for name in names))) for row in found] == expected


def test_parts_of_a_bucket_are_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users of 1 to 9 steps, in parts of some four steps each and at once: the same rows, episodes counted on."""
    steps = make({f"u{length}": [(length, float(place)) for place in range(length)] for length in range(1, 10)})
    (whole,) = flat(steps, 3, first=5)
    monkeypatch.setattr(module, "_PART_STEPS", 4)
    parts = list(flat(steps, 3, first=5))
    assert len(parts) > 5
    assert [part.first for part in parts] == (5 + np.cumsum([0, *map(len, parts)])[:-1]).tolist()
    for name in ("ends", "state", "next_state", "action", "reward", "time", "propensity"):
        joined: NDArray[Any] = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))
    assert sum((part.user_ids for part in parts), ()) == whole.user_ids
    assert list(flat(make({}), 3)) == []


def test_what_cannot_be_exported_leaves_nothing(lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "out"
    with pytest.raises(NotReady, match=r"holds no day yet"):
        exported(lake, settings, out, "parquet")
    land(lake, ROWS)
    with pytest.raises(UnknownFormat, match=r"no export format 'csv'. Expected parquet, jsonl, d3rlpy, minari\."):
        exported(lake, settings, out, "csv")
    with pytest.raises(NotReady, match="2026-01-09"):
        export_transitions(lake, settings, out, "parquet", date(2026, 1, 9), None, history=2)
    with pytest.raises(BadDay):
        exported(lake, settings, out, "parquet", first=date(2026, 1, 9))
    with pytest.raises(FolderTaken, match="holds something already"):
        exported(lake, settings, tmp_path, "parquet")
    with pytest.raises(FolderUnwritable, match="can't be made"):
        exported(lake, settings, tmp_path / "lake" / "gold" / "transitions" / "_delta_log" / "00000000000000000000.json" / "out", "parquet")
    with pytest.raises(FolderUnwritable, match="no folder of this machine"):
        exported(lake, settings, Path("s3://bucket/out"), "parquet")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(LibraryMissing, match=r"minari and h5py is needed and not installed\..* `pip install minari h5py`"):
        exported(lake, settings, out, "minari")
    land(lake, [row for row in ROWS if row["user_id"] == "dan"])
    with pytest.raises(TooLittleData, match=r"all 1 steps are immature"):
        exported(lake, settings, out, "parquet")
    land(lake, [])
    with pytest.raises(TooLittleData, match=r"there is no step"):
        exported(lake, settings, out, "parquet")
    land(lake, [ROWS[0]])
    lake.replace("gold.item_index", lake.schema("gold.item_index").empty_table(), "transitions", [YESTERDAY], {})
    with pytest.raises(ContractBroken, match="number 4"):
        exported(lake, settings, out, "parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["lake"]


@pytest.mark.parametrize("room", [0, 500, 300_000])
@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_a_full_disk_is_a_message_and_no_trace(lake: Lake, settings: Settings, tmp_path: Path, format: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may have so many bytes, room for some parts in HDF5, which would end the process when it is refused a write."""
    import minari  # noqa: F401 (its files are compiled and written before)

    rows = [
        step(f"u{user:03}", D, "10:00:00", "a", "truncated_gap", first=True, bucket=user % 2, propensity=user / 3_000)
        for user in range(200 if room < 1000 else 3_000)
    ]
    monkeypatch.setattr(module, "_PART_STEPS", 10)
    land(lake, rows)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(FolderUnwritable, match=r"^The export to .*/new/out stopped, and nothing of it is left: .*File too large"):
            exported(lake, settings, tmp_path / "new" / "out", format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["lake"]
