-- Each propensity lies in (0, 1].
-- Grain: a user and a rank.
with recommendations as (
    select
        user_id,
        rank,
        propensity
    from gold_recommendations
    where day = $day
)

select
    user_id,
    rank,
    propensity
from recommendations
where propensity is null or not (propensity > 0 and propensity <= 1)
