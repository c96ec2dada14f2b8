from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.contracts.errors import BadSource, LandingUnwritable, NightjarError, UnknownFormat
from jobs.ingest.convert import convert
from jobs.settings import CONFIG_VARIABLE, load_settings

RATINGS = "9::0002::7::86399\n8::0001::10::86400\n9::0001::0::172800\n"
MOVIES = "0001::Fantômas (1913)::Crime|Drama\n0002::No Genre (2001)::\n0003::Never Rated (1950)::Drama\n"
# China's 25 November begins at 16:00 UTC of the 24th: 1511539200. The window ends nine days later, at 1512316800.
TAOBAO = """\
1,i1,c1,pv,1505117799
1,i1,c1,cart,1511539200
1,i2,c2,fav,1511596800
1,i2,c3,buy,1511596799
2,i1,c9,pv,1512316799
2,i1,c9,pv,2037764477
2,i3,c3,pv,-28800
"""


def lines(landing: Path, feed: str) -> dict[str, list[dict[str, Any]]]:
    """Day → lines of a feed."""
    files = sorted(landing.glob(f"{feed}/ds=*/*.json.gz"))
    return {path.parent.name.removeprefix("ds="): [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")] for path in files}


def digest(landing: Path) -> dict[str, str]:
    return {path.relative_to(landing).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(landing.rglob("*")) if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "ratings.dat").write_text(RATINGS)
    (folder / "movies.dat").write_text(MOVIES)
    (folder / "UserBehavior.csv").write_text(TAOBAO)
    return folder


def test_movietweetings(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    landing = tmp_path / "new" / "landing"
    convert("movietweetings", source, landing)
    rating = {"event_type": "rating"}
    assert lines(landing, "events") == {
        "1970-01-01": [{"user_id": "9", "item_id": "0002", **rating, "event_time": 86399, "value": 7}],
        "1970-01-02": [{"user_id": "8", "item_id": "0001", **rating, "event_time": 86400, "value": 10}],
        "1970-01-03": [{"user_id": "9", "item_id": "0001", **rating, "event_time": 172800, "value": 0}],
    }
    assert lines(landing, "items") == {
        "1970-01-01": [{"item_id": "0002", "title": "No Genre (2001)", "attributes": {"year": "2001"}}],
        "1970-01-02": [{"item_id": "0001", "title": "Fantômas (1913)", "category": ["Crime", "Drama"], "attributes": {"year": "1913"}}],
    }
    monkeypatch.setenv(CONFIG_VARIABLE, str(landing / "nightjar.toml"))
    settings = load_settings()
    assert (settings.landing_path.resolve(), settings.lake_path.resolve()) == (landing, landing.parent / "lake")
    assert (settings.step_types, settings.evaluate.repeats) == (("rating",), False)
    again = tmp_path / "again"
    convert("movietweetings", source, again)
    assert digest(again) == digest(landing)


def test_taobao(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events outside the window arrive on its nearest day; an item is told again when its category changes."""
    landing = tmp_path / "landing"
    convert("taobao", source, landing)
    names = ("user_id", "item_id", "event_type", "event_time")
    found = {day: [tuple(line[name] for name in names) for line in of_day] for day, of_day in lines(landing, "events").items()}
    assert found == {
        "2017-11-24": [("1", "i1", "view", 1505117799), ("1", "i1", "cart", 1511539200), ("2", "i3", "view", -28800)],
        "2017-11-25": [("1", "i2", "favourite", 1511596800), ("1", "i2", "purchase", 1511596799)],
        "2017-12-03": [("2", "i1", "view", 1512316799), ("2", "i1", "view", 2037764477)],
    }
    assert lines(landing, "items") == {
        "2017-11-24": [{"item_id": "i1", "category": "c1"}, {"item_id": "i3", "category": "c3"}],
        "2017-11-25": [{"item_id": "i2", "category": "c2"}],
        "2017-12-03": [{"item_id": "i1", "category": "c9"}],
    }
    monkeypatch.setenv(CONFIG_VARIABLE, str(landing / "nightjar.toml"))
    assert load_settings().step_types == ("view", "cart", "favourite", "purchase")


@pytest.mark.parametrize(
    ("format", "spoil", "error", "message"),
    [
        ("movietweeting", {}, UnknownFormat, "no format 'movietweeting'. Did you mean 'movietweetings'? Formats: movietweetings, taobao."),
        ("netflix", {}, UnknownFormat, "no format 'netflix'. Formats:"),
        ("movietweetings", {"movies.dat": None}, BadSource, "Expected one file movies.dat in "),
        ("taobao", {"UserBehavior.csv": None}, BadSource, "with lines `user,item,category,pv|cart|fav|buy,unix seconds`; found 0 (movies.dat, ratings.dat)"),
        ("taobao", {"UserBehavior2.csv": b""}, BadSource, "found 2"),
        (
            "movietweetings",
            {"ratings.dat": RATINGS.encode() + b"1::2::3\n"},
            BadSource,
            "ratings.dat, line 4: expected `user::film::rating 0-10::unix s",
        ),
        ("movietweetings", {"ratings.dat": b"1::0001::11::5\n"}, BadSource, "line 1"),
        ("movietweetings", {"movies.dat": b"0001::caf\xe9::Drama\n"}, BadSource, r"line 1: expected `film::title (year)::genre|genre`, got "),
        ("taobao", {"UserBehavior.csv": b"1,2,3,click,5\n"}, BadSource, "line 1"),
    ],
)
def test_what_cannot_be_converted(source: Path, tmp_path: Path, format: str, spoil: dict[str, bytes | None], error: type[NightjarError], message: str) -> None:
    for name, body in spoil.items():
        (source / name).unlink() if body is None else (source / name).write_bytes(body)
    with pytest.raises(error, match=re.escape(message)):
        convert(format, source, tmp_path / "landing")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_landing_folder_that_holds_something(source: Path, tmp_path: Path) -> None:
    (tmp_path / "landing").mkdir()
    convert("taobao", source, tmp_path / "landing")
    before = digest(tmp_path / "landing")
    with pytest.raises(LandingUnwritable, match="holds something already"):
        convert("taobao", source, tmp_path / "landing")
    assert digest(tmp_path / "landing") == before
