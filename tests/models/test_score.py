from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.contracts.errors import BadRequest, NotReady
from jobs.lake import Lake
from jobs.settings import Evaluate, Score, Settings
from models import score as scoring
from models import train as training
from models.baselines import Popularity
from models.data import END_CODES, DailyCounts, Floats, Ints, Steps, day_number, load_availability, load_catalogue, load_steps
from models.policy import Policy, save_policy
from models.reading import Reading
from models.recommend import answers
from models.score import draw_lists, generator
from models.serving import Served
from tests.models.learner_cases import EVENT_TYPES, HOUR, NO_POPULARITY, SMALL, catalogue, network, random_steps, steps
from tests.models.learner_lake import D, land

POPULAR = "popularity"


def serve(lake: Lake, version: str) -> None:
    row = {"challenger": version, "champion": POPULAR, "verdict": "promote", "serving": version, "reasons": [], "effective_sample_size": 1.0, "overlap": 1.0}
    lake.replace("gold.verdicts", pa.Table.from_pylist([row | {"day": D}], lake.schema("gold.verdicts")), "gate", [D], {})


def trained(lake: Lake, settings: Settings) -> str:
    land(lake, users=4, items=9)
    training.run(lake, settings, D)
    return str(lake.read("gold.policies", ["policy_version"])["policy_version"][0].as_py())


def lists_of(lake: Lake) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {}
    for row in lake.read("gold.recommendations").sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist():
        found.setdefault(row["user_id"], []).append(row)
    return found


def test_what_is_read_from_the_lake(lake: Lake, settings: Settings) -> None:
    """Item i0 has no row, i1 is not available; user u2 meets 7 6 5 4 3 2 from D - 5 to D."""
    land(lake, users=3, items=9)
    items = load_catalogue(lake, D)
    assert items.item_ids == ("", *(f"i{number}" for number in range(9)))
    assert items.available.tolist() == [False, True, False, *[True] * 7]
    assert (items.categories[1], items.categories[3], items.titles[3]) == ((), ("home", "c0"), "Thing 2")
    log = load_steps(lake, items, tuple(settings.event_types), D - timedelta(days=3), D)
    assert (log.user_ids, log.offsets.tolist()) == (("u0", "u1", "u2"), [0, 4, 8, 12])
    assert log.item[8:].tolist() == [6, 5, 4, 3]  # one more than their numbers
    assert log.response[8:].tolist() == [0, 2, 0, 2]
    assert set(log.event.tolist()) == {1}
    assert set(log.end.tolist()) == {END_CODES["truncated_gap"]}
    assert log.time[-1] == day_number(D) * 86_400 + 12 * 3600
    known = load_availability(lake, items, DailyCounts.of([log]), D - timedelta(days=9), D)
    assert known[:, 3].tolist() == [False] * 4 + [True] * 6  # its row came 5 days before D
    assert not known[:, [0, 2]].any()


def test_the_lists_of_a_night(lake: Lake, settings: Settings) -> None:
    settings = settings.model_copy(update={"train": SMALL, "score": Score(top_n=3, exploration=0.0, as_read=False)})
    serve(lake, trained(lake, settings))
    scoring.run(lake, settings, D)
    found = lists_of(lake)
    assert set(found) == {"*", "u0", "u1", "u2", "u3"}
    for rows in found.values():
        assert [row["rank"] for row in rows] == [1, 2, 3]
        assert all(row["propensity"] == 1 for row in rows)
        assert sorted((float(str(row["score"])) for row in rows), reverse=True) == [row["score"] for row in rows]
        assert "i1" not in {row["item_id"] for row in rows}
        assert all(row["reason"] for row in rows)
    for rows in (rows for user, rows in found.items() if user != "*"):
        again = [row for row in rows if str(row["reason"]).startswith("again: met")]
        user = int(str(rows[0]["user_id"])[1:])
        for row in again:
            back = int(str(row["item_id"])[1:]) - user
            assert row["reason"] == f"again: met {'today' if back == 0 else '1 day ago' if back == 1 else f'{back} days ago'}"
    settings = settings.model_copy(update={"score": Score(top_n=3, exploration=0.0)})
    scoring.run(lake, settings, D)
    assert {user: rows[0]["item_id"] for user, rows in lists_of(lake).items()} == {user: rows[0]["item_id"] for user, rows in found.items()}
    before = lake.read("gold.recommendations").sort_by([("user_id", "ascending"), ("rank", "ascending")])
    scoring.run(lake, settings, D)
    assert lake.read("gold.recommendations").sort_by([("user_id", "ascending"), ("rank", "ascending")]).equals(before)


def test_without_repeats_a_list_holds_nothing_met_and_may_be_short(lake: Lake, settings: Settings) -> None:
    """Nine items, of which i1 is not available and a user has met six."""
    settings = settings.model_copy(update={"train": SMALL, "evaluate": Evaluate(repeats=False)})
    serve(lake, trained(lake, settings))
    scoring.run(lake, settings, D)
    found = lists_of(lake)
    for user in range(4):
        met = {f"i{(user + back) % 9}" for back in range(6)}
        assert {row["item_id"] for row in found[f"u{user}"]} == {f"i{number}" for number in range(9)} - met - {"i1"}
    assert len(found["*"]) == 8


def test_popularity_can_be_served(lake: Lake, settings: Settings) -> None:
    land(lake, users=3, items=9)
    with pytest.raises(NotReady, match=r"gold\.verdicts"):
        scoring.run(lake, settings, D)
    serve(lake, POPULAR)
    scoring.run(lake, settings.model_copy(update={"score": Score(top_n=2, exploration=0.0)}), D)
    liked = Counter(f"i{(user + back) % 9}" for user in range(3) for back in range(6) if (user + back) % 9 % 2 == 0)
    for rows in lists_of(lake).values():
        assert [liked[str(row["item_id"])] for row in rows] == sorted(liked.values(), reverse=True)[:2]
        assert {row["reason"] for row in rows} == {"popular in the last 60 days"}
    serve(lake, "2026-01-06-none")
    with pytest.raises(NotReady, match=r"no policy '2026-01-06-none'"):
        scoring.run(lake, settings, D)


def test_propensities_are_the_chances_of_what_is_drawn() -> None:
    """Four candidates, two ranks, exploration 0.4: the frequency of each pair is the product of its propensities."""
    scores, allowed = np.array([9.0, 1, 4, 3, 2], dtype=np.float32), np.array([False, True, True, True, True])
    draws, seen = 10_000, Counter[tuple[int, ...]]()
    stated: dict[tuple[int, ...], list[float]] = {}
    rng = np.random.default_rng(0)
    for _ in range(draws):
        drawn = draw_lists(lambda _: scores[None], allowed[None], 2, 0.4, [rng]).of(0)
        pair = tuple(drawn.items.tolist())
        seen[pair] += 1
        assert stated.setdefault(pair, drawn.propensities.tolist()) == drawn.propensities.tolist()
    assert stated[2, 3] == pytest.approx([0.6 + 0.4 / 4, 0.6 + 0.4 / 3])
    assert stated[1, 2] == pytest.approx([0.4 / 4, 0.6 + 0.4 / 3])
    assert len(stated) == 12
    assert sum(np.prod(chances) for chances in stated.values()) == pytest.approx(1)
    for pair, chances in stated.items():
        expected = np.prod(chances)
        assert abs(seen[pair] / draws - expected) < 5 * np.sqrt(expected * (1 - expected) / draws)


def test_a_list_is_never_filled_up() -> None:
    """Three users with two candidates, none and one."""
    scores, allowed = np.tile(np.arange(4, dtype=np.float32), (3, 1)), np.array([[0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=np.bool_)
    drawn = draw_lists(lambda _: scores, allowed, 5, 0.5, [generator(D, name) for name in "uvw"])
    assert [sorted(drawn.of(row).items.tolist()) for row in range(3)] == [[1, 3], [], [1]]
    assert drawn.of(2).propensities.tolist() == [1.0]
    assert draw_lists(lambda _: scores, allowed, 5, 0.0, [generator(D, "u")] * 3).of(0).items.tolist() == [3, 1]
    assert draw_lists(lambda _: scores[:, :], np.zeros_like(allowed), 5, 0.0, [generator(D, "u")] * 3).of(0).items.tolist() == []


def test_each_place_is_chosen_after_those_above_it() -> None:
    """A ranker that seeks what lies one above the last item of the list: 2 first, then 3, 4 and 5, which is not allowed, so 1."""

    def score_after(items: Ints) -> Floats:
        sought = items[0, -1] + 1 if items.shape[1] else 2
        return (-np.abs(np.arange(6) - sought - 0.1)).astype(np.float32)[None]

    allowed = np.array([[False, True, True, True, True, False]])
    drawn = draw_lists(score_after, allowed, 5, 0.0, [generator(D, "u")]).of(0)
    assert drawn.items.tolist() == [2, 3, 4, 1]
    assert drawn.scores.tolist() == pytest.approx([-0.1, -0.1, -0.1, -4.1])


def test_a_list_is_read_as_the_log_is() -> None:
    """Impressions 60 and 100 seconds apart, two clicks and a purchase among five; after that, u1's items 3 and 4 as clicked ones from noon on."""
    rows = [{"item": 1, "time": 0, "response": 2, "reward": 1}, {"item": 2, "time": 60}, {"item": 3, "time": 160, "response": 3, "reward": 5}]
    log = steps([rows, [{"item": 4, "time": 0, "response": 2, "reward": 1}, {"item": 5, "time": 100}]])
    reading = Reading.of(log)
    assert reading == Reading(event=1, response=2, seconds=100)
    read = reading.after(log, np.array([1, 0]), np.array([[3, 4], [5, 6]]), now=43_200)
    assert (read.user_ids, read.offsets.tolist()) == (("u001", "u000"), [0, 4, 9])
    assert read.item.tolist() == [4, 5, 3, 4, 1, 2, 3, 5, 6]
    assert read.time.tolist() == [0, 100, 43_200, 43_300, 0, 60, 160, 43_200, 43_300]
    assert read.response.tolist() == [2, 0, 2, 2, 2, 0, 3, 2, 2]
    assert read.event.tolist() == [1] * 9
    assert Reading.of(replace(log, reward=np.ones(5, dtype=np.float32))) is None  # of interactions alone
    assert Reading.of(steps([])) is None


def test_a_list_is_made_for_the_noon_of_the_next_day(settings: Settings) -> None:
    """In seconds: noon of 2026-01-07, whoever it is for."""
    asked = []

    class Watched(Popularity):
        def score(self, steps: Steps, users: Ints, ends: Ints, now: Ints | None = None) -> Floats:
            assert now is not None
            asked.extend(now.tolist())
            return super().score(steps, users, ends, now)

    log = steps([[{"item": 1, "time": day_number(D) * 86_400}], [{"item": 2, "time": day_number(D) * 86_400 + HOUR}]])
    scoring.lists(Served("p", Watched(log, 4), catalogue(3), log, 0), settings, D)
    assert asked == [int(datetime(2026, 1, 7, 12, tzinfo=UTC).timestamp())] * 3  # two users, and everybody


def test_histories_are_answered(lake: Lake, settings: Settings) -> None:
    settings = settings.model_copy(update={"train": SMALL})
    version = trained(lake, settings)
    step = {"item_id": "i3", "event_type": "impression", "response": "click", "event_time": 1767700000}
    strange = {"item_id": "never seen", "event_type": "never seen", "response": None, "event_time": 1767700000}
    line = json.dumps({"n": 20, "histories": [[], [step], [strange], [step] * 50]}) + "\n"
    (answer, again) = answers(io.StringIO(line * 2), lake, settings, D, version)
    lists = json.loads(answer)["lists"]
    assert answer == again
    assert all(sorted(items) == sorted(f"i{number}" for number in range(9) if number != 1) for items in lists)
    assert len({tuple(items) for items in lists}) > 1
    waits = [0, *(4**power for power in range(12))]
    later = {"n": 20, "now": [1767700000 + wait for wait in waits], "histories": [[step]] * len(waits)}
    (late,) = answers(io.StringIO(json.dumps(later)), lake, settings, D, version)
    assert json.loads(late)["lists"][0] == lists[1]
    assert len({tuple(items) for items in json.loads(late)["lists"]}) > 1
    informed = {"n": 3, "histories": [[], [step]], "features": [{"click_count_7d": 3.0}, {}]}
    (same,) = answers(io.StringIO(json.dumps(informed)), lake, settings, D, version)
    assert json.loads(same)["lists"] == [items[:3] for items in lists[:2]], "the policy knows none of them"
    (popular,) = answers(io.StringIO(json.dumps({"n": 1, "histories": [[], [step]]})), lake, settings, D, POPULAR)
    assert len({items[0] for items in json.loads(popular)["lists"]}) == 1
    with pytest.raises(BadRequest, match=r"Line 1 of the input can't be read"):
        list(answers(io.StringIO('{"n": 1}\n'), lake, settings, D, POPULAR))
    with pytest.raises(BadRequest, match=r"Line 1 of the input can't be read"):
        list(answers(io.StringIO('{"n": 1, "now": [1], "histories": []}\n'), lake, settings, D, POPULAR))
    for features in ("[]", "[1]", '[{"click_count_7d": "many"}]'):
        with pytest.raises(BadRequest, match=r"Line 1 of the input can't be read"):
            list(answers(io.StringIO(f'{{"n": 1, "histories": [[]], "features": {features}}}\n'), lake, settings, D, version))


def test_a_folder_answers_histories_without_a_lake(tmp_path: Path) -> None:
    """Four items, none to be repeated; the scores are those of the same steps, and a stranger and strange steps are answered too."""
    items = catalogue(4)
    save_policy(tmp_path / "p", network(items, repeats=False), items, NO_POPULARITY.repeat(5, 0), {}, {})
    policy = Policy.load(tmp_path / "p")
    log = steps([[{"item": 2, "response": 2}, {"item": 3}]])
    late = policy.score(log, np.array([0]), np.array([2]), np.array([HOUR * 99]))[0]
    history = [
        {"item_id": f"i{item}", "event_type": "impression", "response": answer, "event_time": HOUR * at}
        for at, (item, answer) in enumerate([(2, "click"), (3, None)])
    ]
    assert policy.recommend([history], 4, now=[HOUR * 99]) == [[f"i{item}" for item in sorted((1, 4), key=lambda item: -late[item])]]
    strange = [{"item_id": "?", "event_type": "?", "response": None, "event_time": 0}]
    own, unknown, nobody = policy.recommend([history, strange, []], 3)
    scores = policy.score(log, np.array([0]), np.array([2]))[0]
    assert own == [f"i{item}" for item in sorted((1, 4), key=lambda item: -scores[item])]
    assert len({*unknown}) == len({*nobody}) == 3
    with pytest.raises(KeyError):
        policy.recommend([[{"item_id": "i1"}]], 3)


def test_a_policy_reads_steps_by_the_names_of_their_types() -> None:
    """Settings that name the types in another order, and one more, code the same steps otherwise; the new type counts as none."""
    items, log = catalogue(6), random_steps(2, 8, 6, seed=7)
    ends, popularity = log.offsets[1:], NO_POPULARITY.repeat(7, 0)
    before = Policy("p", network(items), items.item_ids, items.categories, items, EVENT_TYPES, popularity)
    later = Policy("p", network(items), items.item_ids, items.categories, items, (*EVENT_TYPES[::-1], "new"), popularity)
    event, response = (np.where(codes > 0, len(EVENT_TYPES) + 1 - codes, 0).astype(np.int8) for codes in (log.event, log.response))
    recoded = replace(log, event=event, response=response)
    np.testing.assert_array_equal(later.score(recoded, np.arange(2), ends), before.score(log, np.arange(2), ends))
    unknown, none = (replace(log, response=np.full_like(log.response, code)) for code in (len(EVENT_TYPES) + 1, 0))
    unknown, none = (replace(steps, event=np.zeros_like(log.event)) for steps in (unknown, none))
    np.testing.assert_array_equal(later.score(unknown, np.arange(2), ends), before.score(none, np.arange(2), ends))


def test_who_has_met_everything_is_offered_it_again() -> None:
    """Three items, none to be repeated: user 0 met 1 and 2 and gets 3; user 1 met all that are available, 1 and 3, and gets both."""
    items = replace(catalogue(3), available=np.array([False, True, True, True]))
    log = steps([[{"item": 1}, {"item": 2}], [{"item": 1}, {"item": 3}]])
    served = Served("p", Popularity(log, 4), items, log, 0)
    assert served.candidates(log, np.array([0]), repeats=False).tolist() == [[False, False, False, True]]
    fewer = replace(served, catalogue=replace(items, available=np.array([False, True, False, True])))
    assert fewer.candidates(log, np.array([1, 0]), repeats=False).tolist() == [[False, True, False, True], [False, False, False, True]]


def test_the_context_is_all_that_a_score_depends_on() -> None:
    """A history of 20 steps scores as its last 8 do; an empty one, an unknown item and a catalogue of one item have scores too."""
    items, log = catalogue(6), random_steps(1, 20, 6, seed=7)
    policy = Policy("p", network(items), items.item_ids, items.categories, items, EVENT_TYPES, NO_POPULARITY.repeat(7, 0))
    long = policy.score(log, np.array([0]), np.array([20]))
    rows = [{"item": int(log.item[at]), "response": int(log.response[at]), "time": int(log.time[at])} for at in range(11, 20)]
    np.testing.assert_allclose(policy.score(steps([rows]), np.array([0]), np.array([9])), long, atol=1e-5)
    others = steps([[], [{"item": 0, "event": 0}]])
    assert np.isfinite(policy.score(others, np.array([0, 1]), others.offsets[1:])[:, 1:]).all()
    one = catalogue(1)
    single = Policy("p", network(one), one.item_ids, one.categories, one, EVENT_TYPES, NO_POPULARITY.repeat(2, 0))
    assert np.isfinite(single.score(steps([[{"item": 1}]]), np.array([0]), np.array([1]))[0, 1])
