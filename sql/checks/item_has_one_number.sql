-- Each item that has a number has one.
-- Grain: an item.
with item_index as (
    select
        item,
        item_id
    from gold_item_index
)

select
    item_id,
    count(*) as number_count
from item_index
group by item_id
having count(*) > 1
