from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.contracts.errors import FolderTaken, FolderUnwritable, NotReady
from jobs.lake import Lake
from jobs.settings import Settings
from models import train as training
from models.data import Catalogue
from models.histories import steps_of
from models.network import ENCODERS
from models.online import Online, export_policy
from models.policy import Policy, save_policy
from models.popularity import POPULARITY_FEATURES
from models.recommend import answers
from tests.models.learner_cases import EVENT_TYPES, HOUR, SMALL, catalogue, network
from tests.models.learner_lake import DAYS, D, land

README = (Path(__file__).parent.parent.parent / "README.md").read_text()
(EXAMPLE,) = (block for block in re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if "policy.pt2" in block)
ALONE = "import sys\nsys.modules |= dict.fromkeys(('jobs', 'models', 'safetensors', 'deltalake'))  # none can be imported\n"
NOW = 900 * HOUR
ITEMS = catalogue(12, [*((f"c{number % 3}",) for number in range(10)), (), ()])  # two have no category


def a_policy(folder: Path, **shape: Any) -> Policy:
    """One of random weights and popularity, read from its folder."""
    popularity = np.random.default_rng(1).random((len(ITEMS), POPULARITY_FEATURES)).astype(np.float32)
    save_policy(folder, network(ITEMS, **shape), ITEMS, popularity, {}, {})
    return Policy.load(folder)


def history(length: int, seed: int) -> list[dict[str, Any]]:
    """Some of its items and event types are not known, and some steps go back in time."""
    rng = np.random.default_rng(seed)
    return [
        {
            "item_id": f"i{rng.integers(1, 15)}",
            "event_type": str(rng.choice(["impression", "click", "wish"])),
            "response": "purchase" if rng.random() < 0.5 else None,
            "event_time": HOUR * (5 * place + int(rng.integers(0, 9))),
        }
        for place in range(length)
    ]


# Nobody, one step, as many as a state sees, one more, of which the time counts, and many more.
HISTORIES = [history(length, seed) for seed, length in enumerate((0, 1, 5, 8, 9, 30))]
MOMENTS = [NOW, NOW, 0, NOW, 9 * 5 * HOUR, NOW]  # that of the third is before its last step


@pytest.mark.parametrize("shape", [*({"encoder": encoder} for encoder in ENCODERS), {"critics": 2}], ids=str)
def test_the_program_scores_as_the_policy(tmp_path: Path, shape: dict[str, Any]) -> None:
    """Whatever the number of users; z is put together here as it stands at the head of models/online.py, item by item."""
    policy = a_policy(tmp_path / "p", **shape)
    Online.of_policy(policy).save(tmp_path, ITEMS, {})
    program = torch.export.load(tmp_path / "policy.pt2").module()
    table = pq.read_table(tmp_path / "items.parquet").to_pydict()
    vectors = np.array(table["vector"])
    for chosen in ([0, 1, 2, 3, 4, 5], [5], [0]):
        log = steps_of([HISTORIES[user] for user in chosen], ITEMS.index(), EVENT_TYPES)
        steps, count = torch.full((len(chosen), 9, 4), 1), torch.zeros(len(chosen), dtype=torch.int64)  # behind the steps stands whatever
        for user in range(len(chosen)):
            last = np.arange(log.offsets[user], log.offsets[user + 1])[-9:]
            count[user] = len(last)
            steps[user, : len(last)] = torch.from_numpy(np.stack([log.item, log.event, log.response, log.time], axis=1)[last])
        now = np.array([MOMENTS[user] for user in chosen])
        with torch.no_grad():
            state = {name: tensor.numpy() for name, tensor in program(steps, count, torch.from_numpy(now)).items()}
        expected = policy.score(log, np.arange(len(chosen)), log.offsets[1:], now)
        for user, item in np.ndindex(len(chosen), len(ITEMS)):
            met, kin = state["met_item"][user] == item, state["category"][user] == table["category"][item]
            z = state["query"][user] @ vectors[item] + state["meeting"][user] @ met + state["kin"][user] @ kin
            if item:
                assert z == pytest.approx(expected[user, item], abs=1e-5)


def test_the_program_takes_what_is_known_of_users(tmp_path: Path) -> None:
    """The features of each, or nan: query is that of the policy, and the manifest says which they are. Without them the service answers too."""
    policy = a_policy(tmp_path / "p", user_features=("click_count_7d", "click_recency_90d"))
    (tmp_path / "demo" / "online").mkdir(parents=True)
    manifest = Online.of_policy(policy).save(tmp_path / "demo" / "online", ITEMS, {})
    assert manifest["user_features"] == ("click_count_7d", "click_recency_90d")
    program = torch.export.load(tmp_path / "demo" / "online" / "policy.pt2").module()
    vectors = np.array(pq.read_table(tmp_path / "demo" / "online" / "items.parquet")["vector"].to_pylist())
    steps, count, now = torch.zeros(3, 9, 4, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), torch.full((3,), NOW)
    with torch.no_grad():
        query = program(steps, count, now, torch.tensor([[50.0, torch.nan], [50.0, 2.0], [torch.nan, torch.nan]]))["query"].numpy()
    log = steps_of([[]] * 3, ITEMS.index(), EVENT_TYPES, [{"click_count_7d": 50}, {"click_count_7d": 50, "click_recency_90d": 2}, {}])
    scores = policy.score(log, np.arange(3), log.offsets[1:], now.numpy())
    np.testing.assert_allclose((query @ vectors.T)[:, 1:], scores[:, 1:], atol=1e-5)
    assert len({*map(tuple, scores.round(3).tolist())}) == 3
    service, asked = f"{ALONE}{EXAMPLE}\nprint(json.dumps(recommend(*json.loads(sys.stdin.read()))))", json.dumps([HISTORIES, 6, MOMENTS])
    answer = subprocess.run([sys.executable, "-c", service], input=asked, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(answer.stdout) == policy.recommend(HISTORIES, 6, MOMENTS)


def test_a_service_of_torch_alone_answers_as_the_policy(tmp_path: Path) -> None:
    """The example of the README, in a process that knows nothing else; an item that is not available is not recommended."""
    a_policy(tmp_path / "p")
    items = Catalogue(ITEMS.item_ids, ITEMS.categories, ITEMS.titles, ITEMS.available & (np.arange(len(ITEMS)) != 3))
    policy = Policy.load(tmp_path / "p", items)
    (tmp_path / "demo" / "online").mkdir(parents=True)
    Online.of_policy(policy).save(tmp_path / "demo" / "online", items, {})
    program, question = f"{ALONE}{EXAMPLE}\nprint(json.dumps(recommend(*json.loads(sys.stdin.read()))))", json.dumps([HISTORIES, 6, MOMENTS])
    answer = subprocess.run([sys.executable, "-c", program], input=question, capture_output=True, text=True, cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    found = json.loads(answer.stdout)
    assert found == policy.recommend(HISTORIES, 6, MOMENTS)
    assert len({*map(tuple, found)}) > 3
    assert "i3" not in {item for best in found for item in best}


def test_what_a_day_serves(lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy, or popularity where that has not been overtaken yet: the lists are those of `recommend`."""
    land(lake, users=6, items=7)
    settings = settings.model_copy(update={"train": SMALL.model_copy(update={"window_days": DAYS})})
    training.run(lake, settings, D)
    (version,) = lake.read("gold.policies")["policy_version"].to_pylist()
    service: dict[str, Any]
    histories = [[{"item_id": "i4", "event_type": "impression", "response": "click", "event_time": 1767225600}], []]
    now, lists = [1767312000, 1767312000], {}
    for serving in (version, "popularity"):
        verdict = {"challenger": version, "champion": "popularity", "verdict": "promote", "serving": serving, "day": D}
        rows = pa.Table.from_pylist([verdict | {"reasons": [], "effective_sample_size": 9.0, "overlap": 1.0}], lake.schema("gold.verdicts"))
        lake.replace("gold.verdicts", rows, "gate", [D], {})
        manifest = export_policy(lake, settings, tmp_path / serving / "demo" / "online", D, None)
        monkeypatch.chdir(tmp_path / serving)
        exec(EXAMPLE, service := {})
        assert (manifest["policy_version"], manifest["day"]) == (serving, str(D))
        (answer,) = answers([json.dumps({"n": 3, "histories": histories, "now": now})], lake, settings, D, None)
        lists[serving] = json.loads(answer)["lists"]
        assert service["recommend"](histories, 3, now) == lists[serving]
    assert lists[version] != lists["popularity"]


def full(_: torch.export.ExportedProgram, path: Path) -> None:
    """A disk that is full before the program has been written to its end."""
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_nothing_half_written(lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    land(lake, users=6, items=7)
    folder = tmp_path / "new" / "online"
    with pytest.raises(NotReady, match=r"no policy 'none' in .*policies"):
        export_policy(lake, settings, folder, D, "none")
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "save", full)
        with pytest.raises(FolderUnwritable, match=r"new/online stopped, and nothing of it is left: .*No space left"):
            export_policy(lake, settings, folder, D, "popularity")
    assert not folder.parent.exists()
    export_policy(lake, settings, folder, D, "popularity")
    assert sorted(path.name for path in folder.iterdir()) == ["items.parquet", "manifest.json", "policy.pt2"]
    with pytest.raises(FolderTaken, match="new or an empty folder"):
        export_policy(lake, settings, folder, D, "popularity")
