-- Each recommended item is known, and not marked unavailable, at the end of the day. One without a row of its own is known by its steps.
-- Grain: a user and a rank.
with recommendations as (
    select
        user_id,
        rank,
        item_id
    from gold_recommendations
    where day = $day
),

items as (
    select
        item_id,
        available
    from silver_items
    where valid_from <= $day and (valid_to is null or valid_to > $day)
),

transitions as (
    select item
    from gold_transitions
    where day <= $day
),

item_index as (
    select
        item,
        item_id
    from gold_item_index
),

known_items as (
    select item_id
    from items
    union
    select item_index.item_id
    from item_index
    semi join transitions on item_index.item = transitions.item
),

unavailable_items as (
    select item_id
    from items
    where not available
),

available_items as (
    select known_items.item_id
    from known_items
    anti join unavailable_items on known_items.item_id = unavailable_items.item_id
)

select
    recommendations.user_id,
    recommendations.rank,
    recommendations.item_id
from recommendations
anti join available_items on recommendations.item_id = available_items.item_id
