-- Each event of the day happened on the day, and arrived no earlier.
-- Grain: an event.
with interactions as (
    select
        event_id,
        event_time,
        arrival_day
    from silver_interactions
    where day = $day
)

select
    event_id,
    event_time,
    arrival_day
from interactions
where arrival_day < $day or cast(event_time as date) != $day
