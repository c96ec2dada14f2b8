-- The rewards of the day's transitions, and those that belong to none, are those of the ledger: in whole millionths.
-- Grain: the day and the reason.
with transitions as (
    select reward
    from gold_transitions
    where day = $day
),

unattributed as (
    select
        reason,
        reward
    from gold_unattributed
    where day = $day
),

ledger as (
    select
        reason,
        reward
    from gold_rewards
    where day = $day
),

moved as (
    select
        null as reason,
        reward as given,
        0 as booked
    from transitions
    union all
    select
        reason,
        reward as given,
        0 as booked
    from unattributed
    union all
    select
        reason,
        0 as given,
        reward as booked
    from ledger
),

sums as (
    select
        reason,
        sum(cast(round(given * 1000000) as bigint)) as given_reward,
        sum(cast(round(booked * 1000000) as bigint)) as ledger_reward
    from moved
    group by reason
)

select
    given_reward,
    ledger_reward,
    reason
from sums
where given_reward != ledger_reward
