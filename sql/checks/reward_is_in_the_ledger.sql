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

given as (
    select
        null as reason,
        reward
    from transitions
    union all
    select
        reason,
        reward
    from unattributed
),

given_sums as (
    select
        coalesce(reason, 'given') as reason,
        sum(cast(round(reward * 1000000) as bigint)) as reward
    from given
    group by reason
),

ledger_sums as (
    select
        coalesce(reason, 'given') as reason,
        sum(cast(round(reward * 1000000) as bigint)) as reward
    from ledger
    group by reason
)

select
    given_sums.reward as given_reward,
    ledger_sums.reward as ledger_reward,
    coalesce(given_sums.reason, ledger_sums.reason) as reason
from given_sums
full outer join ledger_sums on given_sums.reason = ledger_sums.reason
where coalesce(given_sums.reward, 0) != coalesce(ledger_sums.reward, 0)
