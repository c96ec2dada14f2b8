-- The ranks of a list are 1, 2, 3, … with no gap and none twice.
-- Grain: a user.
with recommendations as (
    select
        user_id,
        rank
    from gold_recommendations
    where day = $day
),

lists as (
    select
        user_id,
        array_agg(rank order by rank) as ranks
    from recommendations
    group by user_id
)

select
    user_id,
    ranks
from lists
where ranks != range(1, len(ranks) + 1)
