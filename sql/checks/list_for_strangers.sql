-- There is a list for `*`, somebody with no history.
-- Grain: the day.
with recommendations as (
    select user_id
    from gold_recommendations
    where day = $day
),

strangers as (
    select count(*) filter (where user_id = '*') as item_count
    from recommendations
)

select
    '*' as user_id,
    item_count
from strangers
where item_count = 0
