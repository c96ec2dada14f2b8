-- No list has more items than `score.top_n`.
-- Grain: a user.
with recommendations as (
    select user_id
    from gold_recommendations
    where day = $day
)

select
    user_id,
    count(*) as item_count
from recommendations
group by user_id
having count(*) > $top_n
