"""Types lines: every field is taken from the line as text, then cast, so that no value can stop the step or lose its spelling."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from jobs.contracts.landing import EARLIEST, EVERYBODY, EXPECTED, FEEDS, Feed, Field, Kind, Reason
from jobs.settings import Landing, Settings

_SHOWN = 120  # characters of a wrong value that the detail repeats; the line holds all of it
_NUL = r"\u0000"  # as JSON escapes it
_MACROS: dict[Kind, str] = {
    "number": "as_number",
    "integer": "as_integer",
    "boolean": "as_boolean",
    "time": "as_time",
    "texts": "as_texts",
    "path": "as_path",
    "text_map": "as_text_map",
    "vector_map": "as_vector_map",
}


def typed(feed: Feed, settings: Settings) -> str:
    """A query over `lines` (line, source_file, source_line, arrival_day) that types those that aren't blank, one row each.

    Columns: those of the feed's table, `line`, and `problem`: a struct of reason and detail, null where the line is fine. The
    macros of `sql/macros/typing.sql` have to be there.
    """
    cast = ", ".join(f"{_cast(field, settings.landing)} as {_name(field)}" for field in feed.fields)
    return f"""
        with {_texts(feed, settings.landing)},
        typed as (select *, {cast} from texts where not regexp_full_match(line, '[ \\t\\r\\n\\f]*'))
        select {_columns(feed)}, line, source_file, source_line, arrival_day, {_problem(feed, settings)} as problem from typed
    """


def quickly_typed(feed: Feed, settings: Settings) -> str:
    """A query over `lines` that does the same at two thirds of the cost for those that need no second look, in their order.

    Columns: those of the feed's table but for the line's place, and `fine`: whether they are what `typed` makes of the line,
    without a problem.
    """
    cast = ", ".join(f"{_quick_cast(field)} as {_name(field)}" for field in feed.fields)
    wrong = [condition for condition, _, _ in _rules(feed, settings)]
    fine = " and ".join([f"not contains(line, '{_NUL}')", *map(_needs_no_look, feed.fields), *(f"not ({condition})" for condition in wrong)])
    return f"""
        with {_texts(feed, settings.landing)},
        typed as (select *, {cast} from texts)
        select {_columns(feed)}, case when {fine} then true else false end as fine from typed
    """


def _texts(feed: Feed, landing: Landing) -> str:
    """Common table expressions that end in `texts`: the lines, `object` (null where there is none), and the text of each field."""
    shape: dict[str, Any] = {}
    for field in feed.fields:
        *folders, name = _keys(field, landing)
        inner = shape
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = "VARCHAR"
    raw = ", ".join(f"{_named(field, landing)} as {_raw(field)}" for field in feed.fields)
    return f"""
        objects as (select *, try(from_json(line, {_quoted(json.dumps(shape))})) as object from lines),
        texts as (select *, {raw} from objects)"""


def _named(field: Field, landing: Landing) -> str:
    """Text of a field in the object, event types by our names."""
    text = ".".join(["object", *map(_identifier, _keys(field, landing))])
    if field.name != "event_type" or not landing.event_types:
        return text
    names = " ".join(f"when {_quoted(theirs)} then {_quoted(ours)}" for theirs, ours in landing.event_types.items())
    return f"case {text} {names} else {text} end"


def _keys(field: Field, landing: Landing) -> list[str]:
    """Where the log has a field."""
    return landing.fields.get(field.name, field.name).split(".")


def _columns(feed: Feed) -> str:
    columns = {field.name: _name(field) for field in feed.fields}
    if feed == FEEDS[0]:
        # The same line delivered twice is the same event.
        columns["event_id"] = r"coalesce(event_id, sha256(rtrim(line, e'\r\n')))"
        columns["event_day"] = "cast(event_time as date)"
    return ", ".join(f'{value} as "{name}"' for name, value in columns.items())


def _cast(field: Field, landing: Landing) -> str:
    raw = _raw(field)
    if field.kind != "text":
        return f"case when not is_blank({raw}) then {_MACROS[field.kind]}({raw}) end"
    keys = _keys(field, landing)
    # A JSON pointer (RFC 6901), in which a quote needs no care.
    pointer = "".join(f"/{key.replace('~', '~0').replace('/', '~1')}" for key in keys)
    after_key = re.escape(json.dumps(keys[-1], ensure_ascii=False)) + r"\s*:\s*(-?[0-9][0-9.eE+-]*)"
    spelled = f"regexp_extract(line, {_quoted(after_key)}, 1)"
    certain = f"as_spelled({raw}, json_type(line, {_quoted(pointer)}), {spelled})"
    return f"case when is_blank({raw}) then null when is_doubtful({raw}) then {certain} else {raw} end"


def _quick_cast(field: Field) -> str:
    match field.kind:
        case "text":
            return _raw(field)
        case "number":
            return f"try_cast({_raw(field)} as double)"
        case "integer":
            return f"try_cast({_raw(field)} as int)"
        case _:
            return f"{_MACROS[field.kind]}({_raw(field)})"


def _needs_no_look(field: Field) -> str:
    raw, name = _raw(field), _name(field)
    match field.kind:
        case "text":
            certain = f"(is_plain({raw}) or not (is_blank({raw}) or is_doubtful({raw})))"
        case "number":
            certain = f"(isfinite({name}) and not contains({raw}, '_'))"
        case "integer":
            certain = f"({name} is not null and regexp_full_match({raw}, '[0-9]+'))"
        case _:
            certain = f"{name} is not null"
    return certain if field.required else f"({raw} is null or {certain})"


def _problem(feed: Feed, settings: Settings) -> str:
    """The first problem of a line, in the order of `Reason`."""
    required = [field for field in feed.fields if field.required]
    has_nul = rf"contains(line, '{_NUL}') and regexp_matches(line, '(^|[^\\])(\\\\)*\{_NUL}')"
    no_object = f"object is null or case when is_blank({_raw(required[0])}) then json_type(line) != 'OBJECT' end"
    problems = [
        (has_nul, Reason.BAD_ENCODING, _quoted("expected text, got a NUL character")),
        (no_object, Reason.BAD_JSON, _quoted("expected one JSON object on the line, got something else, more, or less")),
        *((f"is_blank({_raw(field)})", Reason.MISSING_FIELD, _quoted(f"expected {field.name}, got none")) for field in required),
        *((f"{_name(field)} is null and not is_blank({_raw(field)})", Reason.WRONG_TYPE, _got(field, EXPECTED[field.kind])) for field in feed.fields),
        *_rules(feed, settings),
    ]
    cases = " ".join(f"when {wrong} then {{'reason': {_quoted(reason)}, 'detail': {detail}}}" for wrong, reason, detail in problems)
    return f"case {cases} end"


def _rules(feed: Feed, settings: Settings) -> list[tuple[str, Reason, str]]:
    """What a typed line must not hold: a condition that is never null, reason, detail."""
    rules = []
    fields = {field.name: field for field in feed.fields}
    if user := fields.get("user_id"):
        rules.append((f"user_id = {_quoted(EVERYBODY)}", Reason.RESERVED_USER, _got(user, f"the id of a user; {EVERYBODY} stands for everybody")))
    return rules + (_event_rules(fields, tuple(settings.event_types)) if feed == FEEDS[0] else [])


def _event_rules(fields: dict[str, Field], event_types: Sequence[str]) -> list[tuple[str, Reason, str]]:
    kind, time, propensity = fields["event_type"], fields["event_time"], fields["propensity"]
    known = ", ".join(map(_quoted, event_types))
    return [
        (f"event_type not in ({known})", Reason.UNKNOWN_EVENT_TYPE, _got(kind, f"one of {', '.join(event_types)}")),
        (f"event_time < date '{EARLIEST}'", Reason.EVENT_TIME_TOO_OLD, _got(time, f"{EARLIEST} or later")),
        ("event_time >= arrival_day + 1", Reason.EVENT_TIME_IN_FUTURE, _got(time, "a time before the end of the day of arrival")),
        ("propensity is not null and (propensity <= 0 or propensity > 1)", Reason.PROPENSITY_OUT_OF_RANGE, _got(propensity, "a probability in (0, 1]")),
    ]


def _got(field: Field, expected: str) -> str:
    return f"concat({_quoted(f'{field.name}: expected {expected}, got ')}, left({_raw(field)}, {_SHOWN}))"


def _name(field: Field) -> str:
    return _identifier(field.name)


def _raw(field: Field) -> str:
    return _identifier(f"raw_{field.name}")


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
