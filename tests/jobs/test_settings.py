from __future__ import annotations

from pathlib import Path

import pytest

from jobs.contracts.errors import BadSettings
from jobs.settings import CONFIG_VARIABLE, elsewhere, load_settings

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "nightjar.toml"
    path.write_text("")
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    return path


def test_the_environment_wins_over_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("[score]\ntop_n = 7\nactive_days = 3\n")
    monkeypatch.setenv("NIGHTJAR_SCORE__TOP_N", "9")
    settings = load_settings()
    assert (settings.score.top_n, settings.score.active_days) == (9, 3)


def test_who_works_elsewhere_leaves_the_lake_of_the_environment_alone(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make demo` of somebody whose shell names a real lake."""
    monkeypatch.setenv("NIGHTJAR_LAKE", "/real/lake")
    monkeypatch.setenv("NIGHTJAR_LANDING__FOLDER", "/real/landing")
    monkeypatch.setenv("NIGHTJAR_SCORE__TOP_N", "9")
    assert load_settings().lake == "/real/lake"
    environment = elsewhere(config)
    assert {name for name in environment if name.startswith("NIGHTJAR_")} >= {CONFIG_VARIABLE, "NIGHTJAR_SCORE__TOP_N"}
    assert not {"NIGHTJAR_LAKE", "NIGHTJAR_LANDING__FOLDER"} & environment.keys()


def test_paths_are_relative_to_the_file(config: Path) -> None:
    config.write_text('lake = "/elsewhere"\n[landing]\nfolder = "."\n')
    settings = load_settings()
    assert settings.landing_path == config.parent
    assert settings.lake_path == Path("/elsewhere")


def test_the_file_at_the_top_of_the_project_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(ROOT / "nightjar.toml"))
    assert load_settings().step_types == ("impression",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nlower = 1.0\n", r"  train: lower = 1 is below the mean of several critics, and critics is unset: set it to 2 or more, or leave lower out$"),
        (
            "[train]\nlower = 1.0\ncritics = 1\n",
            r"  train: lower = 1 is below the mean of several critics, and critics is 1: set it to 2 or more, or leave lower out$",
        ),
        ("[train.rewards]\nsold = 1\n", r"\):\n  train\.rewards: sold is not among event_types, which has impression, click, purchase$"),
        ("[score]\ntop_n = 0\n", r"score\.top_n: .*greater than or equal to 1, got 0"),
        ("[score]\ntopn = 5\n", r"score\.topn: Extra inputs are not permitted"),
        ('[event_types.click]\nreward = "1"\n', "at least one type needs `step = true`"),
        ('[event_types.view]\nstep = true\nreward = "1 +"\n', r"event_types\.view\.reward"),
        ("[event_types.'add to cart']\nstep = true\n", "'add to cart' becomes the name of a column"),
        ('[duckdb]\nmemory = "much"\n', r"duckdb\.memory: String should match pattern .*, got 'much'"),
        ('[spark]\nmemory = "2 GB"\n', r"spark\.memory: String should match pattern .*, got '2 GB'"),
        ('[landing.fields]\nuser = "x"\n', r"landing\.fields: .*user: no field of the landing format, which has attributes, "),
        ('[landing.fields]\nuser_id = "a"\nitem_id = "a.b"\n', r"'a' can't be a value and, for 'a\.b', an object"),
        ('[landing.event_types]\nlook = "looked"\n', r"landing\.event_types: looked is not among event_types, which has impression, "),
        ('[train.policies."to buy"]\nalpha = 1\n', r"train\.policies: .*'to buy' becomes part of the name of a policy"),
        ("[train.policies.bold]\ndim = 8\n", r"train\.policies\.bold\.dim: Extra inputs are not permitted"),
        ("[train.policies.bold]\nrewards = { sold = 2 }\n", r"train\.rewards: sold is not among event_types, which has impression, "),
        (
            '[train]\nuser_features = ["click_cont_7d"]\n',
            r"train\.user_features: 'click_cont_7d' is no column of gold\.user_features; did you mean click_count_7d\? `nightjar features list`",
        ),
        ('[train]\nuser_features = ["price"]\n', r"train\.user_features: 'price' is no column of gold\.user_features"),
        (
            '[train]\nuser_features = ["click_category_top_30d"]\n',
            r"train\.user_features: click_category_top_30d is of type array<string>, and a state takes numbers alone \(double\)",
        ),
        ('[train]\nuser_features = ["click_count_7d", "click_count_7d"]\n', r"train\.user_features: click_count_7d is there more than once"),
        ('[train]\nuser_features = "click_count_7d"\n', r"train\.user_features: Input should be a valid list, got 'click_count_7d'"),
        ("score = [", "is no TOML"),
    ],
)
def test_a_value_that_does_not_fit_is_named(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    with pytest.raises(BadSettings, match=message):
        load_settings()


def test_a_settings_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, "/nowhere/nightjar.toml")
    with pytest.raises(BadSettings, match="no settings file at /nowhere"):
        load_settings()
