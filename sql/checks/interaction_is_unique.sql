-- No event is kept twice on the day.
-- Grain: an event.
with interactions as (
    select event_id
    from silver_interactions
    where day = $day
)

select
    event_id,
    count(*) as times
from interactions
group by event_id
having count(*) > 1
