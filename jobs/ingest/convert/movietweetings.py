"""MovieTweetings: film ratings from 0 to 10, posted as tweets."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from jobs.ingest.convert.source import bad_line, film_item, find_file, read_rows, utc_day
from jobs.ingest.convert.writer import LandingWriter

_RATINGS = "user::film::rating 0-10::unix seconds"
_MOVIES = "film::title (year)::genre|genre"

SETTINGS = """\
# Film ratings. Only what people rated is known, not what they were shown.
lake = "../lake"

[landing]
folder = "."

[event_types.rating]
step = true
reward = "value / 10"

[episodes]
gap_hours = 168 # people rate a film every few days: two in three pauses are shorter than a week
buckets = 1 # a few thousand steps a day: one file of them

[train]
window_days = 200 # all of it: most people rate a handful of films
epochs = 12
dropout = 0.3 # so little of each

[evaluate]
holdout_days = 7
repeats = false # nobody rates a film twice
"""


def write(source: Path, landing: LandingWriter) -> None:
    """Write ratings as events of their UTC day, and each film as an item on the first day on which it is rated."""
    ratings = find_file(source, "ratings.dat", _RATINGS)
    movies = find_file(source, "movies.dat", _MOVIES)
    rated_first: dict[str, date] = {}
    for number, fields in read_rows(ratings, "::", 4, _RATINGS):
        user, film, rating, seconds = fields
        if not (rating.isdecimal() and int(rating) <= 10 and seconds.isdecimal()):
            bad_line(ratings, number, "::".join(fields), _RATINGS)
        day = utc_day(int(seconds))
        rated_first[film] = min(day, rated_first.get(film, day))
        landing.write("events", day, {"user_id": user, "item_id": film, "event_type": "rating", "event_time": int(seconds), "value": int(rating)})
    for _, (film, title, genres) in read_rows(movies, "::", 3, _MOVIES):
        if film in rated_first:
            landing.write("items", rated_first[film], film_item(film, title, genres.split("|") if genres else []))
