-- Each score is a finite number.
-- Grain: a user and a rank.
with recommendations as (
    select
        user_id,
        rank,
        score
    from gold_recommendations
    where day = $day
)

select
    user_id,
    rank,
    score
from recommendations
where score is null or not isfinite(score)
