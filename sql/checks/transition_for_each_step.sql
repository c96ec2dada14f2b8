-- Each user has as many transitions on the day as steps that had arrived when it was made, numbered from 1 without a gap.
-- Grain: a user.
with interactions as (
    select
        user_id,
        event_type,
        arrival_day
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

transitions as (
    select
        user_id,
        step,
        as_of_day
    from gold_transitions
    where day = $day
),

knowledge as (
    select coalesce(max(as_of_day), $day) as as_of_day
    from transitions
),

steps as (
    select
        interactions.user_id,
        count(*) as step_count
    from interactions
    inner join knowledge on interactions.arrival_day <= knowledge.as_of_day
    anti join set_aside
        on
            interactions.user_id = set_aside.user_id
            and interactions.arrival_day = set_aside.arrival_day
    where list_contains($step_types, interactions.event_type)
    group by interactions.user_id
),

numbered as (
    select
        user_id,
        count(*) as transition_count,
        count(distinct step) as number_count,
        min(step) as first_step,
        max(step) as last_step
    from transitions
    group by user_id
)

select
    steps.step_count,
    numbered.transition_count,
    numbered.number_count,
    numbered.first_step,
    numbered.last_step,
    coalesce(steps.user_id, numbered.user_id) as user_id
from steps
full outer join numbered on steps.user_id = numbered.user_id
where
    steps.step_count is distinct from numbered.transition_count
    or numbered.number_count != numbered.transition_count
    or numbered.first_step != 1
    or numbered.last_step != numbered.transition_count
