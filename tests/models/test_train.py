from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.contracts.errors import FutureData, NotReady, TooLittleData
from jobs.lake import Lake
from jobs.settings import Evaluate, Settings
from models import train as training
from models.data import load_catalogue, version_as_of
from models.gate import PolicyRecord, policy_named
from models.policy import Learnt, Policy, save_policy
from tests.models.learner_cases import NO_POPULARITY, SMALL, catalogue, network, random_steps
from tests.models.learner_lake import DAYS, D, land, transitions

ROOT = Path(__file__).parent.parent.parent


def test_sigterm_ends_a_night_that_is_gone_on_with(lake: Lake, settings: Settings) -> None:
    """As a process: it exits 0, and the same command again makes the policy that an uninterrupted run makes, and leaves nothing else."""
    assert isinstance(lake.root, Path)
    settings = settings.model_copy(update={"train": SMALL.model_copy(update={"window_days": DAYS, "epochs": 150})})
    land(lake, users=6, items=7)
    environment = os.environ | {f"NIGHTJAR_TRAIN__{name.upper()}": str(value) for name, value in settings.train.model_dump(exclude_none=True).items()}
    environment |= {"NIGHTJAR_LAKE": str(lake.root)}
    command = [sys.executable, "-m", "models", "run", "train", "--day", str(D)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stderr is not None
        told = next(line for line in child.stderr if "epoch 3 of 150" in line)
        child.terminate()
        told += child.stderr.read()
    assert (child.returncode, "Traceback" in told) == (0, False)
    assert "was ended by SIGTERM. What it has learnt is saved" in told
    assert not lake.exists("gold.policies") or lake.read("gold.policies").num_rows == 0
    again = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "epoch 2 of 150" not in again.stderr
    (row,) = lake.read("gold.policies").to_pylist()
    made = (lake.root / row["path"] / "policy.safetensors").read_bytes()
    assert [path.name for path in (lake.root / "policies").iterdir()] == [row["policy_version"]]
    shutil.rmtree(lake.root / "policies")
    subprocess.run(command, env=environment, capture_output=True, cwd=ROOT, check=True)
    assert (lake.root / row["path"] / "policy.safetensors").read_bytes() == made


def test_a_policy_is_written_registered_and_the_same_again(lake: Lake, settings: Settings) -> None:
    settings = settings.model_copy(update={"train": SMALL.model_copy(update={"window_days": DAYS})})
    land(lake, users=6, items=7)
    training.run(lake, settings, D)
    (row,) = lake.read("gold.policies").to_pylist()
    folder = lake.root / row["path"]
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {"policy.safetensors", "axes.safetensors", "config.json", "items.parquet", "manifest.json"}
    assert (row["trained_from"], row["trained_to"], row["items"]) == (D - timedelta(days=DAYS - 1), D - timedelta(days=1), 7)
    assert row["steps"] == 6 * (DAYS - 1)
    shards = json.loads(row["manifest"])["shards"]
    assert sum(shard["rows"] for shard in shards) == row["steps"]
    assert [[*shard] for shard in shards] == [["bucket", "bytes", "rows"]] * len(shards)

    training.run(lake, settings, D)
    assert lake.read("gold.policies").to_pylist() == [row]
    assert (folder / "policy.safetensors").read_bytes() == files["policy.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == [row["policy_version"]]

    items = load_catalogue(lake, D)
    log = random_steps(3, 4, 7, seed=6)
    scores = Policy.load(folder, items, tuple(settings.event_types)).score(log, np.arange(3), log.offsets[1:])
    assert np.isfinite(scores[:, 1:]).all()
    (folder / "items.parquet").unlink()
    with pytest.raises(NotReady, match=r"items\.parquet"):
        Policy.load(folder, items, tuple(settings.event_types))


def test_wide_vectors_are_told_along_axes_that_a_warm_start_keeps(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The items have other vectors when the second policy is made, whose own axes would be others; a policy reads them as they are given."""
    settings = settings.model_copy(update={"train": SMALL.model_copy(update={"window_days": DAYS, "vector_dim": 2, "warm_epochs": 1})})
    land(lake, users=6, items=7)
    begin = D - timedelta(days=DAYS - 1)

    def trained(seed: int) -> PolicyRecord:
        given = np.random.default_rng(seed).normal(size=(7, 5)).astype(np.float32).tolist()
        rows = [{"item_id": f"i{item}", "embeddings": [("text", vector)], "valid_from": begin} for item, vector in enumerate(given)]
        lake.replace("silver.items", pa.Table.from_pylist(rows, lake.schema("silver.items")), "silver", [begin], {})
        training.run(lake, settings, D)
        (version,) = lake.read("gold.policies", ["policy_version"])["policy_version"].to_pylist()
        return policy_named(lake, version)

    first = trained(0)
    monkeypatch.setattr(training, "champion_before", lambda lake, day: first)
    second = trained(1)
    one, other = (Learnt.load(lake.root / policy.path).catalogue for policy in (first, second))
    np.testing.assert_array_equal(one.axes["text"], other.axes["text"])
    assert [made.vectors["text"].shape for made in (one, other)] == [(8, 2)] * 2
    assert not np.allclose(one.vectors["text"], other.vectors["text"])
    log = random_steps(3, 4, 7, seed=6)
    asked = log, np.arange(3), log.offsets[1:]
    by_its_own, by_the_lake = (Policy.load(lake.root / second.path, items).score(*asked) for items in (None, load_catalogue(lake, D)))
    np.testing.assert_allclose(by_its_own, by_the_lake, atol=1e-6)


def test_a_warm_start_keeps_as_many_critics_as_there_were(
    lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many the log would have from nothing; other settings than those of the champion begin from nothing, and say so."""
    land(lake, users=6, items=7)

    def trained(critics: int | None) -> tuple[PolicyRecord, int, str | None]:
        """The policy, how many critics it has, and what it began with."""
        train = SMALL.model_copy(update={"window_days": DAYS, "warm_epochs": 1, "critics": critics})
        training.run(lake, settings.model_copy(update={"train": train}), D)
        (row,) = lake.read("gold.policies", ["policy_version", "manifest"]).to_pylist()
        policy = policy_named(lake, row["policy_version"])
        config = json.loads((lake.root / policy.path / "config.json").read_text())
        assert config["network"]["critics"] == config["train"]["critics"]
        return policy, config["network"]["critics"], json.loads(row["manifest"])["began_with"]

    assert trained(None)[1:] == (3, None)
    champion, *made = trained(1)
    assert made == [1, None]
    monkeypatch.setattr(training, "champion_before", lambda lake, day: champion)
    assert trained(None)[1:] == (1, champion.version)
    assert "begins from nothing" not in capsys.readouterr().err
    assert trained(2)[1:] == (2, None)
    assert f"begins from nothing, as the settings ask for another network than that of {champion.version}" in capsys.readouterr().err


def test_a_version_that_knew_no_more_is_read(lake: Lake) -> None:
    """Night D + 1 makes the days up to D again: night D has to read what there was before."""
    land(lake, users=3, items=4)
    known, first, later = lake.version("gold.transitions"), D - timedelta(days=DAYS - 1), D + timedelta(days=1)
    assert version_as_of(lake, first, D) == known
    rows = transitions(lake, 3, 4, as_of=later)
    days = [first + timedelta(days=place) for place in range(DAYS + 1)]
    lake.replace("gold.transitions", rows, "transitions", days, {})
    assert version_as_of(lake, first, later) == known + 1
    assert version_as_of(lake, first, D) == known
    with pytest.raises(FutureData, match=r"knows more than 2026-01-05"):
        version_as_of(lake, first, D - timedelta(days=1))


@pytest.mark.parametrize(("users", "items", "days"), [(0, 0, DAYS), (1, 1, DAYS), (1, 2, 1)], ids=["no transitions", "one item", "one step"])
def test_too_little_to_learn_from(lake: Lake, settings: Settings, users: int, items: int, days: int) -> None:
    land(lake, users=users, items=items, days=days)
    with pytest.raises(TooLittleData, match=r"at least 2 steps with 2 different items"):
        training.run(lake, settings, D)
    assert not (lake.root / "policies").exists()


def test_one_user_is_enough(lake: Lake, settings: Settings) -> None:
    land(lake, users=1, items=2)
    training.run(lake, settings.model_copy(update={"train": SMALL}), D)
    assert lake.done("gold.policies") == {D}


def test_a_day_without_transitions(lake: Lake, settings: Settings) -> None:
    with pytest.raises(NotReady, match=r"gold\.transitions"):
        training.run(lake, settings, date(2026, 1, 1))


def test_validation_days_are_told_and_not_learnt_from(lake: Lake, settings: Settings) -> None:
    """Nor are held-out ones looked at: whatever they bring, the weights are the same."""
    settings = settings.model_copy(update={"train": SMALL.model_copy(update={"patience": 1, "validation_days": 2, "epochs": 4})})
    found = []
    for reward in (0.0, 9.0):
        land(lake, users=6, items=7)
        rows = lake.read("gold.transitions").to_pylist()
        changed = [row | {"reward": reward} if row["day"] == D else row for row in rows]
        days = sorted({row["day"] for row in rows})
        lake.replace("gold.transitions", pa.Table.from_pylist(changed, lake.schema("gold.transitions")), "transitions", days, {})
        training.run(lake, settings, D)
        (row,) = lake.read("gold.policies").to_pylist()
        found.append((lake.root / row["path"] / "policy.safetensors").read_bytes())
    assert found[0] == found[1]
    manifest = json.loads(row["manifest"])
    assert (manifest["trained_to"], manifest["validated_on"]) == (str(D - timedelta(days=3)), [str(D - timedelta(days=2)), str(D - timedelta(days=1))])
    assert (row["trained_to"], row["steps"]) == (D - timedelta(days=3), 6 * (DAYS - 3))
    assert sum(shard["rows"] for shard in manifest["shards"]) == 6 * (DAYS - 1)


def test_too_few_days_for_validation(lake: Lake, settings: Settings) -> None:
    """None left, none with a step to learn from, none with a step to validate by."""
    land(lake, users=2, items=4)
    for validation_days, message in (
        (DAYS - 1, r"evaluate\.holdout_days and train\.validation_days take all of train\.window_days"),
        (DAYS, r"the days 2025-12-30\.\.2025-12-30 .* hold 0 steps .* The 6 after them are kept for validation: lower train\.validation_days\."),
    ):
        train = SMALL.model_copy(update={"patience": 1, "validation_days": validation_days, "window_days": DAYS + 2 * (validation_days == DAYS)})
        with pytest.raises(TooLittleData, match=message):
            training.run(lake, settings.model_copy(update={"train": train}), D)
    rows = lake.read("gold.transitions").to_pylist()
    kept = [row for row in rows if row["day"] != D - timedelta(days=1)]
    days = sorted({row["day"] for row in rows})
    lake.replace("gold.transitions", pa.Table.from_pylist(kept, lake.schema("gold.transitions")), "transitions", days, {})
    with pytest.raises(TooLittleData, match=r"Validation needs a step; the 1 days after 2026-01-04 hold none"):
        training.run(lake, settings.model_copy(update={"train": SMALL.model_copy(update={"patience": 1})}), D)


def test_rewards_that_can_still_grow_validate_nothing(lake: Lake, settings: Settings) -> None:
    """Unless the penalty does: it asks for no reward."""
    land(lake, users=6, items=7)
    rows = [row | {"end": "immature"} if row["day"] >= D - timedelta(days=1) else row for row in lake.read("gold.transitions").to_pylist()]
    days = sorted({row["day"] for row in rows})
    lake.replace("gold.transitions", pa.Table.from_pylist(rows, lake.schema("gold.transitions")), "transitions", days, {})
    train = SMALL.model_copy(update={"patience": 1, "backup": "logged", "alpha": 0.0, "supervised": 0.0})
    with pytest.raises(TooLittleData, match=r"raise train\.validation_days \(now 1\) to more than the longest maturity_days"):
        training.run(lake, settings.model_copy(update={"train": train}), D)
    for change in ({"validation_days": 2}, {"alpha": 0.1}):
        training.run(lake, settings.model_copy(update={"train": train.model_copy(update=change)}), D)


def test_holdout_days_are_not_learnt_from(lake: Lake, settings: Settings) -> None:
    land(lake, users=2, items=4)
    changes = {"train": SMALL, "evaluate": Evaluate(holdout_days=3)}
    training.run(lake, settings.model_copy(update=changes), D)
    assert lake.read("gold.policies", ["steps"])["steps"].to_pylist() == [2 * (DAYS - 3)]


def test_a_folder_of_another_form_is_not_read(tmp_path: Path) -> None:
    save_policy(tmp_path / "p", network(catalogue(3)), catalogue(3), NO_POPULARITY.repeat(4, 0), {}, {})
    config = tmp_path / "p" / "config.json"
    config.write_text(config.read_text().replace('"form": 6', '"form": 1'))
    with pytest.raises(NotReady, match="has form 1, and this version of Nightjar reads form 6"):
        Learnt.load(tmp_path / "p")
