-- Each reward is a finite number.
-- Grain: a transition.
with transitions as (
    select
        user_id,
        step,
        reward
    from gold_transitions
    where day = $day
)

select
    user_id,
    step,
    reward
from transitions
where reward is null or not isfinite(reward)
