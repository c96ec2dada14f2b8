"""Who is no person: users whose events are beyond the limits of the settings."""

from __future__ import annotations

from jobs.settings import Limits

REASONS = {
    "events_per_day": "more events on one day than `events_per_day` of [limits]",
    "events_per_minute": "more events within one minute than `events_per_minute` of [limits]",
}


def set_aside(rows: str, limits: Limits) -> str:
    """DuckDB's SQL for what is beyond the limits among rows of silver.interactions: user_id, event_day, reason, events, busiest_minute, arrival_day.

    Each arrival day is judged by what it brings alone, so that a later one changes nothing about it.
    """
    exempt = ", ".join("'{}'".format(user.replace("'", "''")) for user in limits.exempt)
    persons = f"and user_id not in ({exempt})" if exempt else ""
    return f"""
        with many as (
            select user_id, day, arrival_day from {rows} group by all
            having count(*) > {min(limits.events_per_day, limits.events_per_minute)} {persons}
        ),
        minutes as (
            select user_id, day, arrival_day, date_trunc('minute', event_time) as minute, count(*) as events
            from {rows} semi join many using (user_id, day, arrival_day) group by all
        ),
        days as (
            select user_id, day, arrival_day, cast(sum(events) as bigint) as events, max(events) as busiest_minute from minutes group by all
        )
        select
            user_id, day as event_day, case when events > {limits.events_per_day} then 'events_per_day' else 'events_per_minute' end as reason,
            events, busiest_minute, arrival_day
        from days
        where events > {limits.events_per_day} or busiest_minute > {limits.events_per_minute}
    """
