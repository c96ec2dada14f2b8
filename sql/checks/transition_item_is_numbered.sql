-- The item of each transition of the day is the number of exactly one item.
-- Grain: an item.
with transitions as (
    select distinct item
    from gold_transitions
    where day = $day
),

item_index as (
    select item
    from gold_item_index
)

select
    transitions.item,
    count(item_index.item) as id_count
from transitions
left join item_index on transitions.item = item_index.item
group by transitions.item
having count(item_index.item) != 1
