-- Each transition knows its own day to the end.
-- Grain: a transition.
with transitions as (
    select
        user_id,
        step,
        as_of_day
    from gold_transitions
    where day = $day
)

select
    user_id,
    step,
    as_of_day
from transitions
where as_of_day < $day
