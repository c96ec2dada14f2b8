-- Each recommendation says why.
-- Grain: a user and a rank.
with recommendations as (
    select
        user_id,
        rank,
        reason
    from gold_recommendations
    where day = $day
)

select
    user_id,
    rank,
    reason
from recommendations
where reason is null or trim(reason) = ''
