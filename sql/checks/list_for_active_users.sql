-- Every user who did a step within the active days, as far as the day knew of it, has a list.
-- Grain: a user.
with interactions as (
    select
        user_id,
        event_type
    from silver_interactions
    where day between $day - ($active_days - 1) and $day and arrival_day <= $day
),

recommendations as (
    select user_id
    from gold_recommendations
    where day = $day
),

active_users as (
    select distinct user_id
    from interactions
    where list_contains($step_types, event_type)
)

select active_users.user_id
from active_users
anti join recommendations on active_users.user_id = recommendations.user_id
