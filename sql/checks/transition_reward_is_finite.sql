-- Each reward is a finite number.
-- Grain: a transition.
with transitions as (
    select
        event_id,
        reward
    from gold_transitions
    where day = $day
)

select
    event_id,
    reward
from transitions
where reward is null or not isfinite(reward)
