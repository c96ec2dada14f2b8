"""Types lines: every scalar is read as a string, then cast, so that no value can stop the step or lose its spelling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyspark.sql import functions as sf

from jobs.contracts.landing import EARLIEST, EVERYBODY, EXPECTED, FEEDS, Feed, Field, Kind, Reason

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_STRICT = {"allowSingleQuotes": "false", "allowNonNumericNumbers": "false"}
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_ISO_8601 = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d(:?\d\d)?)?)?$"
_SHOWN = 120  # characters of a wrong value that the detail repeats; the line holds all of it


def typed(lines: DataFrame, feed: Feed, event_types: Sequence[str]) -> DataFrame:
    """Lines of a feed with its fields typed, and `problem`: struct of reason and detail, null where the line is fine.

    Columns: those of the lines, one for each field of the feed, problem. One row in, one row out.
    """
    fields = ", ".join(f"{field.name} string" for field in feed.fields)
    # As the only element of a list, a line with anything after its object is no JSON; by itself Spark would drop the rest.
    objects = sf.from_json(sf.concat(sf.lit("["), "line", sf.lit("]")), f"array<struct<{fields}>>", _STRICT)
    raw = lines.select("*", objects.alias("objects")).select("*", sf.when(sf.size("objects") == 1, sf.col("objects")[0]).alias("raw"))
    cast = raw.select("*", *(_cast(field).alias(field.name) for field in feed.fields))
    return cast.withColumn("problem", _problem(feed, event_types)).drop("objects", "raw")


def _cast(field: Field) -> Column:
    return _KINDS[field.kind](field.name)


def _raw(name: str) -> Column:
    return sf.col(f"raw.{name}")


def _text(name: str) -> Column:
    """A string or number as spelled; null where the line has a list, an object or nothing but blanks."""
    raw = _raw(name)
    return sf.when(_is_nested(name) | (sf.trim(raw) == ""), sf.lit(None)).when(raw.contains("."), sf.coalesce(_spelling(name), raw)).otherwise(raw)


def _is_nested(name: str) -> Column:
    raw = _raw(name)
    return (raw.startswith("{") | raw.startswith("[")) & sf.col("line").rlike(rf'"{name}"\s*:\s*[\[{{]')


def _spelling(name: str) -> Column:
    """How the line spells a fraction: the JSON parser makes 1.0 of 1.00. Null where the line has no such number."""
    spelled = sf.regexp_extract("line", rf'"{name}"\s*:\s*(-?\d[\d.eE+-]*)', 1)
    return sf.when(spelled.try_cast("double") == _raw(name).try_cast("double"), spelled)


def _number(name: str) -> Column:
    number = _raw(name).try_cast("double")
    return sf.when(_raw(name).rlike(_NUMBER) & (sf.abs(number) < float("inf")), number)


def _integer(name: str) -> Column:
    number = _number(name)
    return sf.when((sf.floor(number) == number) & (sf.abs(number) < 2**31), number.cast("int"))


def _boolean(name: str) -> Column:
    raw = sf.lower(sf.trim(_raw(name)))
    return sf.when(raw.isin("true", "1"), sf.lit(True)).when(raw.isin("false", "0"), sf.lit(False))


def _time(name: str) -> Column:
    raw, number = sf.trim(_raw(name)), _number(name)
    size = sf.abs(number)
    # The units don't overlap between 1973 and 5138: 1e11 s lies in 5138, 1e11 ms in 1973, and so on.
    micros = sf.when(size < 1e11, number * 1e6).when(size < 1e14, number * 1e3).when(size < 1e17, number).otherwise(number / 1e3)
    epoch = sf.timestamp_micros(sf.round(micros).try_cast("bigint"))
    # Only what looks like ISO 8601 is cast: Spark would also take "10:00", and add the date of today.
    return sf.when(raw.rlike(_ISO_8601), raw.try_cast("timestamp")).otherwise(epoch)


def _texts(name: str) -> Column:
    texts = sf.from_json(_raw(name), "array<string>", _STRICT)
    return sf.when(~sf.exists(texts, lambda text: text.isNull()), texts)


def _path(name: str) -> Column:
    parts = sf.filter(sf.split(sf.trim(_raw(name)), r"\s*/\s*"), lambda part: part != "")
    return sf.when(_is_nested(name), _texts(name)).otherwise(parts)


def _text_map(name: str) -> Column:
    return sf.from_json(_raw(name), "map<string,string>", _STRICT)


def _vector_map(name: str) -> Column:
    vectors = sf.from_json(_raw(name), "map<string,array<float>>", _STRICT)
    finite = sf.forall(sf.map_values(vectors), lambda vector: sf.forall(vector, lambda number: sf.abs(number) < float("inf")))
    return sf.when(finite, vectors)


_KINDS: dict[Kind, Callable[[str], Column]] = {
    "text": _text,
    "number": _number,
    "integer": _integer,
    "boolean": _boolean,
    "time": _time,
    "texts": _texts,
    "path": _path,
    "text_map": _text_map,
    "vector_map": _vector_map,
}


def _problem(feed: Feed, event_types: Sequence[str]) -> Column:
    """The first problem of a line, in the order of `Reason`."""
    no_object = sf.lit("expected one JSON object on the line, got something else, more, or less")
    problems = [
        _when(~sf.is_valid_utf8("line"), Reason.BAD_ENCODING, sf.lit("expected UTF-8; the line is kept with each byte as one Latin-1 character")),
        _when(sf.col("raw").isNull(), Reason.BAD_JSON, no_object),
        *(_when(_is_blank(field), Reason.MISSING_FIELD, sf.lit(f"expected {field.name}, got none")) for field in feed.fields if field.required),
        *(_when(~_is_blank(field) & sf.col(field.name).isNull(), Reason.WRONG_TYPE, _got(field.name, EXPECTED[field.kind])) for field in feed.fields),
    ]
    names = {field.name for field in feed.fields}
    if "user_id" in names:
        problems.append(_when(sf.col("user_id") == EVERYBODY, Reason.RESERVED_USER, _got("user_id", f"the id of a user; {EVERYBODY} stands for everybody")))
    if feed == FEEDS[0]:
        problems += _event_problems(event_types)
    return sf.coalesce(*problems)


def _event_problems(event_types: Sequence[str]) -> list[Column]:
    time, propensity = sf.col("event_time"), sf.col("propensity")
    too_late = time >= sf.date_add("arrival_day", 1)
    return [
        _when(~sf.col("event_type").isin(*event_types), Reason.UNKNOWN_EVENT_TYPE, _got("event_type", f"one of {', '.join(event_types)}")),
        _when(time < sf.lit(EARLIEST), Reason.EVENT_TIME_TOO_OLD, _got("event_time", f"{EARLIEST} or later")),
        _when(too_late, Reason.EVENT_TIME_IN_FUTURE, _got("event_time", "a time before the end of the day of arrival")),
        _when((propensity <= 0) | (propensity > 1), Reason.PROPENSITY_OUT_OF_RANGE, _got("propensity", "a probability in (0, 1]")),
    ]


def _is_blank(field: Field) -> Column:
    """Whether a field holds nothing. A blank text is nothing: no id, no type."""
    raw = _raw(field.name)
    return raw.isNull() | (sf.trim(raw) == "")


def _got(name: str, expected: str) -> Column:
    return sf.concat(sf.lit(f"{name}: expected {expected}, got "), sf.substring(_raw(name), 1, _SHOWN))


def _when(condition: Column, reason: Reason, detail: Column) -> Column:
    return sf.when(condition, sf.struct(sf.lit(str(reason)).alias("reason"), detail.alias("detail")))
