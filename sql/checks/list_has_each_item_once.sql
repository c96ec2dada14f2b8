-- No item stands in a list twice.
-- Grain: a user and an item.
with recommendations as (
    select
        user_id,
        item_id
    from gold_recommendations
    where day = $day
)

select
    user_id,
    item_id,
    count(*) as times
from recommendations
group by user_id, item_id
having count(*) > 1
