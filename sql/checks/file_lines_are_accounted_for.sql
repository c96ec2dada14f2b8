-- Every line of a file that arrived on the day is an interaction, a repeat or in quarantine; of items and users, a row or in quarantine.
-- Grain: a file.
with files as (
    select
        source_file,
        feed,
        lines,
        rows
    from bronze_files
    where arrival_day = $day
),

quarantined as (
    select
        source_file,
        count(*) as line_count
    from bronze_quarantine
    where arrival_day = $day
    group by source_file
),

interactions as (
    select
        source_file,
        count(*) as line_count
    from silver_interactions
    where arrival_day = $day
    group by source_file
),

repeats as (
    select
        source_file,
        count(*) as line_count
    from silver_repeats
    where arrival_day = $day
    group by source_file
)

select
    files.source_file,
    files.lines,
    files.rows,
    quarantined.line_count as quarantined,
    interactions.line_count as interactions,
    repeats.line_count as repeats
from files
left join quarantined on files.source_file = quarantined.source_file
left join interactions on files.source_file = interactions.source_file
left join repeats on files.source_file = repeats.source_file
where
    files.lines != files.rows + coalesce(quarantined.line_count, 0)
    or (files.feed = 'events' and files.rows != coalesce(interactions.line_count, 0) + coalesce(repeats.line_count, 0))
