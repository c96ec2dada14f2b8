-- Each step of the day that had arrived by its end is exactly one transition.
-- Grain: a step.
with interactions as (
    select
        event_id,
        event_type
    from silver_interactions
    where day = $day and arrival_day <= $day
),

transitions as (
    select event_id
    from gold_transitions
    where day = $day
),

steps as (
    select event_id
    from interactions
    where list_contains($step_types, event_type)
)

select
    steps.event_id,
    count(transitions.event_id) as transition_count
from steps
left join transitions on steps.event_id = transitions.event_id
group by steps.event_id
having count(transitions.event_id) != 1
