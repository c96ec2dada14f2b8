-- Each transition of the day is an event of the same user with the same item, of the same type and at the same time.
-- Grain: a transition.
with transitions as (
    select
        user_id,
        step,
        item,
        event_type,
        event_time
    from gold_transitions
    where day = $day
),

item_index as (
    select
        item,
        item_id
    from gold_item_index
),

interactions as (
    select
        user_id,
        item_id,
        event_type,
        event_time
    from silver_interactions
    where day = $day
),

named as (
    select
        transitions.user_id,
        transitions.step,
        item_index.item_id,
        transitions.event_type,
        transitions.event_time
    from transitions
    left join item_index on transitions.item = item_index.item
)

select
    named.user_id,
    named.step,
    named.item_id,
    named.event_type,
    named.event_time
from named
anti join interactions
    on
        named.user_id = interactions.user_id
        and named.item_id = interactions.item_id
        and named.event_type = interactions.event_type
        and named.event_time = interactions.event_time
