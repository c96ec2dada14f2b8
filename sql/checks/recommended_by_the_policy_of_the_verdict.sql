-- Each recommendation was made by the policy that the verdict of the day allows to serve.
-- Grain: a policy version.
with recommendations as (
    select policy_version
    from gold_recommendations
    where day = $day
),

verdicts as (
    select serving
    from gold_verdicts
    where day = $day
)

select
    recommendations.policy_version,
    count(*) as row_count_of_policy
from recommendations
anti join verdicts on recommendations.policy_version = verdicts.serving
group by recommendations.policy_version
