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


MOVIELENS: dict[str, dict[str, bytes]] = {
    "latest": {
        "ratings.csv": b"userId,movieId,rating,timestamp\r\n1,10,4.0,86400\r\n2,11,0.5,86399\r\n",
        "movies.csv": 'movieId,title,genres\n10,"Amélie, or so (2001)",Comedy|Romance\n11,Nothing,(no genres listed)\n12,Unrated (1999),Drama\n'.encode(),
    },
    "1m": {
        "ratings.dat": b"1::10::4::86400\n2::11::0.5::86399\n",
        "movies.dat": b"10::Am\xe9lie, or so (2001)::Comedy|Romance\n11::Nothing::\n12::Unrated (1999)::Drama\n",
    },
    "100k": {
        "u.data": b"1\t10\t4\t86400\n2\t11\t0.5\t86399\n",
        "u.item": b"10|Am\xe9lie, or so (2001)|01-Jan-2001||http://x|" + b"|".join(b"1" if flag in (5, 14) else b"0" for flag in range(19)) + b"\n"
        b"11|Nothing||||" + b"|".join([b"0"] * 19) + b"\n",
    },
}


@pytest.mark.parametrize("form", MOVIELENS)
def test_movielens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    (tmp_path / "source").mkdir()
    for name, body in MOVIELENS[form].items():
        (tmp_path / "source" / name).write_bytes(body)
    landing = tmp_path / "landing"
    convert("movielens", tmp_path / "source", landing)
    assert lines(landing, "events") == {
        "1970-01-01": [{"user_id": "2", "item_id": "11", "event_type": "rating", "event_time": 86399, "value": 0.5}],
        "1970-01-02": [{"user_id": "1", "item_id": "10", "event_type": "rating", "event_time": 86400, "value": 4.0}],
    }
    amelie = {"item_id": "10", "title": "Amélie, or so (2001)", "category": ["Comedy", "Romance"], "attributes": {"year": "2001"}}
    assert lines(landing, "items") == {"1970-01-01": [{"item_id": "11", "title": "Nothing"}], "1970-01-02": [amelie]}
    monkeypatch.setenv(CONFIG_VARIABLE, str(landing / "nightjar.toml"))
    assert load_settings().step_types == ("rating",)


def test_retailrocket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    rows = "86399999,1,view,10,\n86400000,1,addtocart,10,\n86400001,1,transaction,10,77\n"
    (tmp_path / "source" / "events.csv").write_text("timestamp,visitorid,event,itemid,transactionid\n" + rows)
    landing = tmp_path / "landing"
    convert("retailrocket", tmp_path / "source", landing)
    event = {"user_id": "1", "item_id": "10"}
    assert lines(landing, "events") == {
        "1970-01-01": [{**event, "event_type": "view", "event_time": 86399999}],
        "1970-01-02": [
            {**event, "event_type": "cart", "event_time": 86400000},
            {**event, "event_type": "purchase", "event_time": 86400001, "context": {"transaction": "77"}},
        ],
    }
    monkeypatch.setenv(CONFIG_VARIABLE, str(landing / "nightjar.toml"))
    assert load_settings().step_types == ("view",)


def test_yoochoose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "yoochoose-clicks.dat").write_text("1,2014-04-07T23:59:59.277Z,9,0\n1,2014-04-08T00:00:00.000Z,8,S\n")
    (tmp_path / "source" / "yoochoose-buys.dat").write_text("1,2014-04-08T00:01:00.000Z,8,12462,2\n")
    landing = tmp_path / "landing"
    convert("yoochoose", tmp_path / "source", landing)
    event = {"user_id": "1", "session_id": "1"}
    bought = {"event_type": "purchase", "value": 12462.0, "context": {"quantity": "2"}}
    assert lines(landing, "events") == {
        "2014-04-07": [{**event, "item_id": "9", "event_time": "2014-04-07T23:59:59.277Z", "event_type": "click", "context": {"category": "0"}}],
        "2014-04-08": [
            {**event, "item_id": "8", "event_time": "2014-04-08T00:00:00.000Z", "event_type": "click", "context": {"category": "S"}},
            {**event, "item_id": "8", "event_time": "2014-04-08T00:01:00.000Z", **bought},
        ],
    }
    monkeypatch.setenv(CONFIG_VARIABLE, str(landing / "nightjar.toml"))
    assert load_settings().step_types == ("click",)


def test_more_days_than_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.ingest.convert.writer._MOST_OPEN", 2)
    (tmp_path / "source").mkdir()
    days = [0, 1, 2, 3, 0, 1, 3, 3, 2]
    (tmp_path / "source" / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(f"{n},1,3,{day * 86400}\n" for n, day in enumerate(days)))
    (tmp_path / "source" / "movies.csv").write_text("movieId,title,genres\n")
    convert("movielens", tmp_path / "source", tmp_path / "landing")
    found = {day: [line["user_id"] for line in of_day] for day, of_day in lines(tmp_path / "landing", "events").items()}
    assert found == {f"1970-01-0{day + 1}": [str(n) for n, other in enumerate(days) if other == day] for day in range(4)}


@pytest.mark.parametrize(
    ("format", "spoil", "error", "message"),
    [
        (
            "movietweeting",
            {},
            UnknownFormat,
            "no format 'movietweeting'. Did you mean 'movietweetings'? Formats: movielens, movietweetings, retailrocket, taobao, yoochoose.",
        ),
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
        ("movielens", {"ratings.dat": b"1::2::9::5\n"}, BadSource, "ratings.dat, line 1: expected `user::film::rating::unix seconds`, got '1::2::9::5'"),
        ("movielens", {"ratings.dat": None}, BadSource, "Expected one of ratings.csv and movies.csv, ratings.dat and movies.dat, u.data and u.item in "),
        ("movielens", {"ratings.csv": b"a,b,c,d\n1,2,3\n"}, BadSource, "ratings.csv, line 2: expected `userId,movieId,rating,timestamp`"),
        ("movielens", {"ratings.csv": b'a,b,c,d\n1,"2"x,3,4\n'}, BadSource, "ratings.csv, line 2: expected"),
        ("retailrocket", {"events.csv": b"a,b,c,d,e\n1,2,look,3,\n"}, BadSource, "events.csv, line 2: expected `timestamp in ms"),
        ("yoochoose", {"y-clicks.dat": b"1,yesterday,2,0\n"}, BadSource, "y-clicks.dat, line 1: expected `session,2014-04-07T10:51:09.277Z"),
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
