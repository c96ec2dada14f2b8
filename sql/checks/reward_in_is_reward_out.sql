-- What the events of the day are worth went to steps, or was put aside with a reason: in whole millionths.
-- Grain: the day.
with interactions as (
    select
        user_id,
        arrival_day,
        reward_micros(event_type, value) as reward
    from silver_interactions
    where day = $day
),

set_aside as (
    select
        user_id,
        arrival_day
    from gold_set_aside
    where event_day = $day
),

rewards as (
    select
        day,
        as_of_day,
        reward
    from gold_rewards
    where event_day = $day
),

knowledge as (
    select coalesce(max(as_of_day), $day) as as_of_day
    from rewards
    where day = $day
),

came as (
    select coalesce(sum(interactions.reward), 0) as reward
    from interactions
    inner join knowledge on interactions.arrival_day <= knowledge.as_of_day
    anti join set_aside
        on
            interactions.user_id = set_aside.user_id
            and interactions.arrival_day = set_aside.arrival_day
),

went as (
    select coalesce(sum(cast(round(reward * 1000000) as bigint)), 0) as reward
    from rewards
)

select
    came.reward as reward_in,
    went.reward as reward_out
from came
cross join went
where came.reward != went.reward
