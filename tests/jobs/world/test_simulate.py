from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.contracts.errors import FolderTaken
from jobs.settings import CONFIG_VARIABLE, load_settings
from jobs.world.episodes import LONGEST, SHORTEST
from jobs.world.truth import REWARDS, load_world
from tests.jobs.world.world_logs import events, raw_lines, written


def contents(landing: Path) -> dict[str, bytes]:
    return {str(path.relative_to(landing)): path.read_bytes() for path in sorted(landing.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("faults", [False, True])
def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path, faults: bool) -> None:
    one = contents(written(tmp_path / "one", faults=faults))
    two = contents(written(tmp_path / "two", faults=faults))
    other = contents(written(tmp_path / "other", faults=faults, seed=1))
    assert one == two
    assert all(one[name] != other[name] for name in one.keys() & other.keys() if name.startswith(("events", ".world/truth")))


def test_the_log_hangs_together(tmp_path: Path) -> None:
    """Ids are unique, each answer follows the impression of its request, each event lies on the day that brought it."""
    found = events(written(tmp_path / "landing"))
    assert len({event["event_id"] for event in found}) == len(found)
    assert {event["event_type"] for event in found} == {"impression", *REWARDS}
    shown = {event["request_id"]: event for event in found if event["event_type"] == "impression"}
    episodes: dict[str, list[str]] = {}
    for event in found:
        impression = shown[event["request_id"]]
        assert (event["user_id"], event["item_id"]) == (impression["user_id"], impression["item_id"])
        assert event["event_time"] >= impression["event_time"]
        assert event["event_time"][:10] == event["arrival"]
        if event["event_type"] == "impression":
            assert 0 < event["propensity"] <= 1
            episodes.setdefault(event["session_id"], []).append(event["item_id"])
    assert all(SHORTEST <= len(items) <= LONGEST and len(set(items)) == len(items) for items in episodes.values())
    late = [event for event in found if event["event_type"] == "purchase" and event["event_time"][:10] != shown[event["request_id"]]["event_time"][:10]]
    assert late, "some purchases come on a later day than the click"


def test_items_are_shown_only_while_the_feed_says_they_are_there(tmp_path: Path) -> None:
    landing = written(tmp_path / "landing", days=12)
    rows = [(day, json.loads(line)) for day, line in raw_lines(landing, "items")]
    assert any(not row["available"] for _, row in rows)
    assert all(len(row["category"]) == 2 and row["title"] and row["price"] > 0 for _, row in rows)
    changes: dict[str, list[tuple[str, bool]]] = {}
    for day, row in rows:
        changes.setdefault(row["item_id"], []).append((day, row["available"]))
    for event in events(landing):
        if event["event_type"] == "impression":
            assert [there for day, there in changes[event["item_id"]] if day <= event["arrival"]][-1]
    known = {json.loads(line)["user_id"] for _, line in raw_lines(landing, "users")}
    assert {event["user_id"] for event in events(landing)} <= known


def test_its_settings_pay_what_its_users_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    landing = written(tmp_path / "landing")
    monkeypatch.setenv(CONFIG_VARIABLE, str(landing / "nightjar.toml"))
    settings = load_settings()
    assert {name: float(kind.reward) for name, kind in settings.event_types.items() if not kind.step} == REWARDS
    assert settings.step_types == ("impression",)
    assert settings.landing_path.resolve() == landing
    assert settings.lake_path.resolve() == tmp_path / "lake"


def test_the_truth_comes_back_as_it_was(tmp_path: Path) -> None:
    world = load_world(written(tmp_path / "landing", days=3))
    world.save(tmp_path / "again")
    assert (tmp_path / "again/.world/truth.npz").read_bytes() == (tmp_path / "landing/.world/truth.npz").read_bytes()
    assert world.item_scores.shape == (4, world.items)


@pytest.mark.parametrize("size", [{"users": 1}, {"items": 1}, {"days": 1}, {"users": 1, "items": 1, "days": 1}])
@pytest.mark.parametrize("faults", [False, True])
def test_a_world_of_one(tmp_path: Path, size: dict[str, int], faults: bool) -> None:
    landing = written(tmp_path / "landing", faults=faults, **size)
    assert len(raw_lines(landing, "items")) >= 1
    assert len({event["user_id"] for event in events(written(tmp_path / "clean", **size))}) <= size.get("users", 60)


def test_a_folder_with_something_else_is_left_alone_and_an_older_world_replaced(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(FolderTaken, match="Name a new or an empty folder"):
        written(taken)
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "mine.txt"]
    written(tmp_path / "landing", days=6)
    written(tmp_path / "landing", days=2)
    assert len(list((tmp_path / "landing" / "events").iterdir())) == 2
