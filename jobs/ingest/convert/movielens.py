"""MovieLens: film ratings, in each of the forms in which GroupLens has published them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from jobs.contracts.errors import BadSource
from jobs.ingest.convert.source import bad_line, film_item, find_file, read_csv, read_rows, utc_day
from jobs.ingest.convert.writer import LandingWriter

SETTINGS = """\
# Film ratings. Only what people rated is known, not what they were shown.
lake = "../lake"

[landing]
folder = "."

[event_types.rating]
step = true
reward = "value / 5"

[episodes]
gap_hours = 6 # people rate many films in one sitting

[evaluate]
holdout_days = 7
repeats = false # nobody rates a film twice
"""
_OLD_ENCODING = "latin-1"  # of the titles of the oldest two
_NO_GENRES = "(no genres listed)"


@dataclass(frozen=True)
class _Form:
    """One form of the data set: its files, what separates the fields of a rating, and what the lines hold."""

    ratings: str
    films: str
    separator: str
    holds_ratings: str
    holds_films: str


_FORMS = (
    _Form("ratings.csv", "movies.csv", ",", "userId,movieId,rating,timestamp", "movieId,title,genre|genre"),
    _Form("ratings.dat", "movies.dat", "::", "user::film::rating::unix seconds", "film::title (year)::genre|genre"),
    _Form("u.data", "u.item", "\t", "user<tab>film<tab>rating<tab>unix seconds", "film|title (year)|date|date|url|19 flags of genres"),
)
# The flags of u.item, in their order.
_FLAGS = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir"),
    *("Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def write(source: Path, landing: LandingWriter) -> None:
    """Write ratings as events of their UTC day, and each film as an item on the first day on which it is rated."""
    form = _form(source)
    rated_first: dict[str, date] = {}
    path = find_file(source, form.ratings, form.holds_ratings)
    rows = read_csv(path, 4, form.holds_ratings) if form.separator == "," else read_rows(path, form.separator, 4, form.holds_ratings)
    for number, (user, film, rating, seconds) in rows:
        if not (re.fullmatch(r"[0-5](\.[05])?", rating) and seconds.isdecimal()):
            bad_line(path, number, form.separator.join((user, film, rating, seconds)), form.holds_ratings)
        day = utc_day(int(seconds))
        rated_first[film] = min(day, rated_first.get(film, day))
        landing.write("events", day, {"user_id": user, "item_id": film, "event_type": "rating", "event_time": int(seconds), "value": float(rating)})
    for film, title, genres in _films(source, form):
        if film in rated_first:
            landing.write("items", rated_first[film], film_item(film, title, genres))


def _form(source: Path) -> _Form:
    for form in _FORMS:
        if (source / form.ratings).is_file():
            return form
    expected = ", ".join(f"{form.ratings} and {form.films}" for form in _FORMS)
    raise BadSource(f"Expected one of {expected} in {source.absolute()}.")


def _films(source: Path, form: _Form) -> Iterator[tuple[str, str, list[str]]]:
    path = find_file(source, form.films, form.holds_films)
    if form.separator == "\t":
        for _, fields in read_rows(path, "|", 24, form.holds_films, _OLD_ENCODING):
            yield fields[0], fields[1], [genre for genre, flag in zip(_FLAGS, fields[5:], strict=True) if flag == "1"]
        return
    rows = read_csv(path, 3, form.holds_films) if form.separator == "," else read_rows(path, form.separator, 3, form.holds_films, _OLD_ENCODING)
    for _, (film, title, genres) in rows:
        yield film, title, [genre for genre in genres.split("|") if genre and genre != _NO_GENRES]
