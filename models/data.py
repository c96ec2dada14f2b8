"""What the models learn from and rank: the items known at the end of a day, and the users' steps as flat arrays.

Both are read from the lake without a JVM. Whoever ranks items is a `Ranker`: the learned policy and each baseline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import date
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.contracts.errors import FutureData
from jobs.contracts.tables import ENDS
from jobs.files import DataFile
from jobs.lake import Lake
from models.candidates import CandidateSets
from models.vectors import vectors_by_name

END_CODES = {end: code for code, end in enumerate(ENDS, start=1)}
EPOCH = date(1970, 1, 1)
DAY_SECONDS = 86_400
_FIRST_OF_DAYS = -(1 << 31)
_INTERACTIONS_ALONE = 0.9  # share of the steps that are rewarded
_COLUMNS = ("user_id", "event_time", "step", "item", "event_type", "response", "reward", "first", "end", "propensity")

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
_Days = TypeVar("_Days", int, Ints)


@dataclass(frozen=True)
class Catalogue:
    """Every item known at the end of a day; index 0 is padding and every item that is not known."""

    item_ids: tuple[str, ...]  # item_ids[0] == ""
    categories: tuple[tuple[str, ...], ...]  # paths from the root category down; () where none is known
    titles: tuple[str | None, ...]
    available: Bools  # [items]; available[0] is False
    numbers: Mapping[str, Floats] = field(default_factory=dict)  # [items], such as the price; nan = not known
    vectors: Mapping[str, Floats] = field(default_factory=dict)  # [items, width], given ones by name, at length 1; zeros = none is given
    axes: Mapping[str, Floats] = field(default_factory=dict)  # [width as given, width], along which vectors of a name are told, where they are reduced

    def __len__(self) -> int:
        return len(self.item_ids)

    def index(self) -> dict[str, int]:
        """Index of each item id, from 1."""
        return {item_id: position for position, item_id in enumerate(self.item_ids) if position > 0}


@dataclass(frozen=True)
class Evenings:
    """What was known of users at the end of some days: columns of gold.user_features, a row a user and day."""

    names: tuple[str, ...]
    keys: Ints  # [rows] ascending: user * 2^32 + day, a user by the place in Steps.user_ids, days since 1970-01-01
    values: Floats  # [rows + 1, names] as they are there; nan = null. The first row is that of whom nothing is known
    last_day: int  # what was known at its end holds afterwards, as nothing newer is told

    @classmethod
    def none(cls) -> Evenings:
        """Of no columns."""
        return cls((), np.zeros(0, dtype=np.int64), np.zeros((1, 0), dtype=np.float32), 0)

    @classmethod
    def given(cls, features: Sequence[Mapping[str, float | None]]) -> Evenings:
        """One mapping a user, which holds for whatever moment. Raises TypeError or ValueError for what is no number."""
        names = tuple(sorted({name for own in features for name in own}))
        rows = [[np.nan if (value := own.get(name)) is None else float(value) for name in names] for own in ({}, *features)]
        values = np.array(rows, dtype=np.float32).reshape(len(rows), len(names))
        return cls(names, _evening(np.arange(len(features)), _FIRST_OF_DAYS), values, _FIRST_OF_DAYS)

    def rows(self, users: Ints, days: Ints | NDArray[np.int32] | int) -> NDArray[np.int32]:
        """The row of each user on the evening of a day; 0 = nothing is known: int32[n]."""
        if not len(self.keys):
            return np.zeros(len(users), dtype=np.int32)
        sought = _evening(users, np.minimum(days, self.last_day))
        place = np.minimum(np.searchsorted(self.keys, sought), len(self.keys) - 1)
        return np.where(self.keys[place] == sought, place + 1, 0).astype(np.int32)

    def of(self, users: Ints, days: Ints, names: Sequence[str]) -> Floats:
        """What was known of each user on the evening of a day: float32[n, names]; nan = it was not, or the name is none of these."""
        rows, found = self.rows(users, days), np.full((len(users), len(names)), np.nan, dtype=np.float32)
        for column, name in enumerate(names):
            if name in self.names:
                found[:, column] = self.values[rows, self.names.index(name)]
        return found

    def alone(self, users: Ints) -> Evenings:
        """Those of some users, who are counted in that order."""
        begins, ends = (np.searchsorted(self.keys, _evening(users + more, _FIRST_OF_DAYS)) for more in (0, 1))
        rows = ranges(begins, ends)
        keys = self.keys[rows] + _evening(np.repeat(np.arange(len(users)) - users, ends - begins), 0)
        return replace(self, keys=keys, values=self.values[np.append(0, rows + 1)])


@dataclass(frozen=True)
class Steps:
    """Steps sorted by user, day and place in the day: user k owns the rows offsets[k]..offsets[k + 1] (exclusive)."""

    user_ids: tuple[str, ...]
    offsets: Ints  # [users + 1]
    item: NDArray[np.int32]  # [n] index into the catalogue; 0 = not in it
    event: NDArray[np.int8]  # [n] 1-based index into the event types; 0 = none of them
    response: NDArray[np.int8]  # [n] likewise; 0 = no answer
    reward: Floats  # [n]
    time: Ints  # [n] seconds since 1970
    first: Bools  # [n] the first step of an episode
    end: NDArray[np.int8]  # [n] END_CODES; 0 = the episode goes on
    propensity: Floats  # [n]; nan = not logged
    candidates: NDArray[np.int32]  # [n] number of a candidate set; 0 = all that were available
    day: NDArray[np.int32]  # [n] days since 1970-01-01
    known: Evenings = field(default_factory=Evenings.none)  # of the users, as far as states are to have it

    def __len__(self) -> int:
        return len(self.item)

    def users(self) -> Ints:
        """Index of the user of each step: int64[n]."""
        return np.repeat(np.arange(len(self.user_ids), dtype=np.int64), np.diff(self.offsets))

    def eves(self, users: Ints, ends: Ints, now: Ints | None) -> Ints:
        """The day before that of each state, taken as in `Ranker.score`: int64[n]. The state of whom no step and no moment is told is as late as can be."""
        moment, has_step = np.full(len(users), np.iinfo(np.int64).max) if now is None else now.copy(), ends > self.offsets[users]
        last = self.time[ends[has_step] - 1]
        moment[has_step] = last if now is None else np.maximum(last, now[has_step])
        eves: Ints = moment // DAY_SECONDS - 1
        return eves


PER_STEP = tuple(column.name for column in fields(Steps) if column.name not in ("user_ids", "offsets", "known"))


@dataclass(frozen=True)
class DailyCounts:
    """How often each item was chosen on each day, and how often that was rewarded; days and items of which there is something. All [n]."""

    day: Ints  # days since 1970-01-01, ascending
    item: Ints  # index into the catalogue
    steps: Ints
    rewarded: Ints  # of them, those with a positive reward
    reward: NDArray[np.float64]  # what these are worth together

    @property
    def mean_reward(self) -> float:
        """Of the steps with a positive one; 1 where there is none."""
        return float(self.reward.sum() / self.rewarded.sum()) if self.rewarded.any() else 1.0

    @property
    def has_refusals(self) -> bool:
        """Whether the log tells what was shown in vain: of one of interactions alone nearly every step is rewarded."""
        return self.level < _INTERACTIONS_ALONE

    @property
    def level(self) -> float:
        """Share of the steps with a positive reward: the mean reward of a step, in units of `mean_reward`."""
        return float(self.rewarded.sum() / max(1, self.steps.sum()))

    def until(self, last_day: int) -> DailyCounts:
        """Those of the days up to and including `last_day`."""
        return DailyCounts(*(getattr(self, field.name)[self.day <= last_day] for field in fields(self)))

    @classmethod
    def of(cls, parts: Iterable[Steps]) -> DailyCounts:
        """The counts over some steps, which may come part by part."""
        found = [cls(*(np.zeros(0, dtype=np.int64),) * 4, np.zeros(0))]
        for part in parts:
            is_positive = part.reward > 0
            found.append(cls._summed(part.day, part.item, np.ones(len(part)), is_positive, part.reward * is_positive))
        return cls._summed(*(np.concatenate([getattr(counts, field.name) for counts in found]) for field in fields(cls)))

    @classmethod
    def _summed(cls, day: NDArray[Any], item: NDArray[Any], steps: NDArray[Any], rewarded: NDArray[Any], reward: NDArray[Any]) -> DailyCounts:
        keys, which = np.unique(day.astype(np.int64) << 32 | item, return_inverse=True)
        sums = [np.bincount(which, values, len(keys)) for values in (steps, rewarded, reward)]
        return cls(keys >> 32, keys & 0xFFFFFFFF, sums[0].astype(np.int64), sums[1].astype(np.int64), sums[2].astype(np.float64))


class Ranker(Protocol):
    """Whatever can rank the catalogue for a user."""

    name: str

    def score(self, steps: Steps, users: Ints, ends: Ints, now: Ints | None = None) -> Floats:
        """Score every item for user users[i] after the steps offsets[users[i]]..ends[i] (exclusive), at the moment now[i] (seconds since 1970).

        Only steps before `ends` may be looked at; now = None is right after the last of them. Returns float32[len(users), len(catalogue)].
        """


def ranges(begins: Ints, ends: Ints) -> Ints:
    """begins[0], begins[0] + 1, … to ends[0] (exclusive), then the next one's: int64[n]."""
    lengths = ends - begins
    places: Ints = np.arange(lengths.sum()) + np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
    return places


def _evening(users: Ints, days: Ints | NDArray[np.int32] | int) -> Ints:
    keys: Ints = (users.astype(np.int64) << 32) + days
    return keys


def day_number(day: date) -> int:
    """Days since 1970-01-01."""
    return (day - EPOCH).days


def noon_of(day: _Days) -> _Days:
    """The middle of a day, or of each of some, in seconds since 1970: when a list made by night is read. Days as in `day_number`."""
    return day * DAY_SECONDS + DAY_SECONDS // 2


def load_catalogue(lake: Lake, day: date, version: int | None = None) -> Catalogue:
    """Items known at the end of `day`: those with a row that holds then, and those of steps up to then that never had a row.

    The steps are those of a version of gold.transitions (None = the newest). Sorted by item id. An item without a row is available.
    """
    rows: dict[str, dict[str, Any]] = {}
    table = lake.schema("silver.items").empty_table()
    if lake.exists("silver.items"):
        holds = (pc.field("valid_from") <= day) & (pc.field("valid_to").is_null() | (pc.field("valid_to") > day))
        table = lake.read("silver.items", ["item_id", "category", "title", "available", "price", "embeddings"], holds)
        rows = {row["item_id"]: row for row in table.drop_columns("embeddings").to_pylist()}
    if lake.exists("gold.transitions"):
        met = pc.unique(lake.read("gold.transitions", ["item"], pc.field("day") <= day, version)["item"])
        known = lake.read("gold.item_index", ["item_id"], pc.field("item").isin(met))["item_id"]
        rows |= {item_id: {} for item_id in known.to_pylist() if item_id not in rows}
    item_ids = sorted(rows)
    places = pc.add(pc.index_in(table["item_id"], value_set=pa.array(item_ids, pa.string())), 1).to_numpy()
    prices = np.array([None, *(rows[item_id].get("price") for item_id in item_ids)], dtype=np.float64)
    price: Floats = np.where(np.abs(prices) < np.finfo(np.float32).max, prices, np.nan).astype(np.float32)
    return Catalogue(
        item_ids=("", *item_ids),
        categories=((), *(tuple(rows[item_id].get("category") or ()) for item_id in item_ids)),
        titles=(None, *(rows[item_id].get("title") for item_id in item_ids)),
        available=np.array([False, *(rows[item_id].get("available") is not False for item_id in item_ids)], dtype=np.bool_),
        numbers={"price": price} if np.isfinite(price).any() else {},
        vectors=vectors_by_name(table["embeddings"], places, len(item_ids) + 1),
    )


def load_availability(lake: Lake, catalogue: Catalogue, counts: DailyCounts, first_day: date, last_day: date) -> Bools:
    """Which items could have been chosen on each day: bool[days, items].

    A row of silver.items says so while it holds. Before its first row an item counts as available from the first step with it on.
    """
    first, days = day_number(first_day), (last_day - first_day).days + 1
    known_from = np.full(len(catalogue), days, dtype=np.int64)
    np.minimum.at(known_from, counts.item, counts.day - first)
    available = np.arange(days)[:, None] >= known_from
    if lake.exists("silver.items"):
        index = catalogue.index()
        table = lake.read("silver.items", ["item_id", "available", "valid_from", "valid_to"], pc.field("valid_from") <= last_day).sort_by("valid_from")
        columns = (table[name].to_pylist() for name in ("item_id", "available", "valid_from", "valid_to"))
        for item_id, is_available, valid_from, valid_to in zip(*columns, strict=True):
            end = days if valid_to is None else max(0, day_number(valid_to) - first)
            if item_id in index:
                available[max(0, day_number(valid_from) - first) : end, index[item_id]] = is_available is not False
    available[:, 0] = False
    return available


def version_as_of(lake: Lake, first_day: date, day: date) -> int:
    """The newest version of gold.transitions that knows nothing after `day`, judged by its rows from `first_day` to `day`.

    Raises NotReady when `day` has not been made, FutureData when every version that holds it knows more.
    """
    lake.require("gold.transitions", [day])
    within = (pc.field("day") >= first_day) & (pc.field("day") <= day)
    newest = lake.version("gold.transitions")
    if not _knows_more(lake, day, within, newest):
        return newest
    made: set[date] = set()
    candidate = None
    for commit in lake.commits("gold.transitions"):
        made |= commit.days
        if max(made, default=day) > day:
            break
        candidate = commit.version
    if candidate is None or day not in made or _knows_more(lake, day, within, candidate):
        raise FutureData(
            f"gold.transitions in {lake.root} knows more than {day}: some of its rows were made again with later arrivals, and no version of it "
            f"ends with {day}. Take a later day, or make the tables up to {day} in a new lake first (`nightjar backfill --to {day}`)."
        )
    return candidate


def _knows_more(lake: Lake, day: date, within: pc.Expression, version: int) -> bool:
    latest = pc.max(lake.read("gold.transitions", ["as_of_day"], within, version)["as_of_day"]).as_py()
    return latest is not None and latest > day


def load_steps(lake: Lake, catalogue: Catalogue, event_types: Sequence[str], first_day: date, last_day: date, version: int | None = None) -> Steps:
    """Steps of the days first_day..last_day as a version of gold.transitions holds them (None = the newest)."""
    return read_steps(lake, files_of(lake, first_day, last_day, version), item_places(lake, catalogue), event_types)


def files_of(lake: Lake, first_day: date, last_day: date, version: int | None = None) -> list[DataFile]:
    """The files of a version of gold.transitions that hold the days first_day..last_day, in order of the day."""
    return [file for file in lake.files("gold.transitions", version) if first_day <= date.fromisoformat(file.partition["day"]) <= last_day]


def item_places(lake: Lake, catalogue: Catalogue) -> NDArray[np.int32]:
    """Index into the catalogue of each item by its number in gold.item_index; 0 for those that are not in it, and for the number 0."""
    index = lake.read("gold.item_index", ["item", "item_id"])
    places = np.zeros((pc.max(index["item"]).as_py() or 0) + 1, dtype=np.int32)
    found = pc.index_in(index["item_id"], value_set=pa.array(catalogue.item_ids[1:], pa.string()))
    places[index["item"].to_numpy()] = pc.fill_null(pc.add(found, 1), 0).to_numpy()
    return places


def read_steps(lake: Lake, files: Sequence[DataFile], places: NDArray[np.int32], event_types: Sequence[str], sets: CandidateSets | None = None) -> Steps:
    """Steps of some files of gold.transitions, of which no other is opened; `places` as of `item_places`. Without `sets` none has one."""
    columns = _COLUMNS if sets is None else (*_COLUMNS, "candidate_set")
    tables = [lake.read_file("gold.transitions", file, columns) for file in files]
    rows = pa.concat_tables(tables) if tables else lake.schema("gold.transitions").empty_table()
    days = np.array([day_number(date.fromisoformat(file.partition["day"])) for file in files], dtype=np.int32)
    day = np.repeat(days, [table.num_rows for table in tables])
    user_ids, order, counts = _order(rows["user_id"], day, rows["step"].to_numpy())
    return Steps(
        user_ids=user_ids,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        item=places[rows["item"].to_numpy()][order],
        event=_codes(rows["event_type"], event_types)[order],
        response=_codes(rows["response"], event_types)[order],
        reward=rows["reward"].to_numpy().astype(np.float32)[order],
        time=(pc.cast(rows["event_time"], pa.int64()).to_numpy() // 1_000_000)[order],
        first=rows["first"].to_numpy().astype(np.bool_)[order],
        end=_codes(rows["end"], list(END_CODES))[order],
        propensity=rows["propensity"].to_numpy().astype(np.float32)[order],
        candidates=np.zeros(len(order), dtype=np.int32) if sets is None else sets.places(rows["candidate_set"])[order],
        day=day[order],
    )


def _order(user_id: pa.ChunkedArray, day: NDArray[np.int32], step: NDArray[np.int32]) -> tuple[tuple[str, ...], Ints, Ints]:
    """The users, sorted; the order by user, day and step of rows whose days ascend; and how many rows each user has."""
    dictionary, code = _dictionary(user_id)
    ascending = pc.sort_indices(dictionary).to_numpy()
    place = np.empty(len(ascending), dtype=np.int64)
    place[ascending] = np.arange(len(ascending))
    # A file is sorted by user and step: it is enough to sort runs, of a user's rows of a day, by the user.
    begins = np.ones(len(code), dtype=np.bool_)
    begins[1:] = (code[1:] != code[:-1]) | (day[1:] != day[:-1])
    start = np.flatnonzero(begins)
    size, user = np.diff(start, append=len(code)), place[code[start]]
    runs = np.argsort(user, kind="stable")
    moved = start[runs] - (np.cumsum(size[runs]) - size[runs])
    order = np.arange(len(code)) + np.repeat(moved, size[runs])
    is_split = (np.diff(user[runs]) == 0) & (np.diff(day[start[runs]]) == 0)
    if is_split.any() or not np.all((step[1:] > step[:-1]) | begins[1:]):
        order = np.lexsort((step, day, place[code]))  # some file is not sorted
    counts = np.bincount(user, weights=size, minlength=len(ascending)).astype(np.int64)
    return tuple(dictionary.take(ascending).to_pylist()), order, counts


def _dictionary(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int32]]:
    """Distinct values, and the place of each row's value among them; one behind the last where it is null."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    if column.num_chunks == 0:
        return pa.array([], pa.string()), np.zeros(0, dtype=np.int32)
    dictionary = column.chunk(0).dictionary
    indices = pa.chunked_array([chunk.indices for chunk in column.chunks])
    return dictionary, pc.fill_null(indices, len(dictionary)).to_numpy()


def _codes(column: pa.ChunkedArray, names: Sequence[str]) -> NDArray[np.int8]:
    """1-based place of each value in `names`, 0 where it is null or none of them."""
    dictionary, places = _dictionary(column)
    code = pc.fill_null(pc.add(pc.index_in(dictionary, value_set=pa.array(names, pa.string())), 1), 0).to_numpy()
    found: NDArray[np.int8] = np.append(code, 0).astype(np.int8)[places]
    return found
