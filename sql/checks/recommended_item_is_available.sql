-- Each recommended item is known, and available, at the end of the day.
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

available_items as (
    select item_id
    from items
    where coalesce(available, true)
)

select
    recommendations.user_id,
    recommendations.rank,
    recommendations.item_id
from recommendations
anti join available_items on recommendations.item_id = available_items.item_id
