-- Each transition of the day is one event of the same user with the same item at the same time.
-- Grain: a transition.
with transitions as (
    select
        event_id,
        user_id,
        item_id,
        event_time
    from gold_transitions
    where day = $day
),

interactions as (
    select
        event_id,
        user_id,
        item_id,
        event_time
    from silver_interactions
    where day = $day
)

select
    transitions.event_id,
    transitions.user_id,
    transitions.item_id,
    transitions.event_time
from transitions
anti join interactions
    on
        transitions.event_id = interactions.event_id
        and transitions.user_id = interactions.user_id
        and transitions.item_id = interactions.item_id
        and transitions.event_time = interactions.event_time
