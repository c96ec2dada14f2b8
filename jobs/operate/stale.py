"""What would come out otherwise if it were made again, why, and in how many rows; and its making.

A table is stale for a day when something that the day was made from is another by now: the landing files (by their checksums, as
the ledger has them), the rows of an input (by its version, as the commit recorded it), or the settings that decide, up to
transitions (by their hash). That a version is newer says nothing yet: the rows that count for the day are compared. No clock is
read; a file whose size and time of change are those of the ledger is taken to be the one that was read.

A day that has never been made is missing, and not stale. The night is made again only for the newest day: what an earlier one
decided and published is the record of what was served.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from itertools import count
from pathlib import Path

import duckdb
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from jobs.commits import Commit
from jobs.contracts.days import DayRange, ranges
from jobs.contracts.errors import EmptyLanding, NotReady
from jobs.contracts.features import ENTITIES, WINDOWS
from jobs.contracts.tables import TABLES
from jobs.database import database, one_of, tables_of
from jobs.ingest import bronze, silver
from jobs.ingest.bronze import LEDGER
from jobs.ingest.landing import LandingFile, landing_files
from jobs.ingest.lines import fingerprint, stamp
from jobs.lake import Lake
from jobs.operate.run import run_steps
from jobs.settings import Settings
from jobs.steps import FEATURES_DAILY, POLICY_DAILY, STEPS, find_step
from jobs.transitions.cuts import reach_days
from jobs.transitions.items import INDEX

INTERACTIONS, TRANSITIONS, ITEMS, STATISTICS = "silver.interactions", "gold.transitions", "silver.items", "gold.feature_statistics"
SET_ASIDE, FEATURES = "gold.set_aside", "gold.user_features"
# What the features of an entity read of the items that hold on a day.
_READ_OF_ITEMS = {"user": "item_id, category[1], embeddings", "item": "item_id, category[1], price, first_known"}
# A source of silver, what tells its rows' subjects apart, and the tables that are made from it, subject by subject.
SILVER = (
    ("bronze.events", "event_id", ("silver.interactions", "silver.repeats")),
    ("bronze.items", "item_id", ("silver.items",)),
    ("bronze.users", "user_id", ("silver.users",)),
)
REACH = max(WINDOWS)
_CHANGED = "greatest(count(*) filter (gone), count(*) filter (not gone))"  # a row that goes and one that comes are one that changes
_EVENT = "event_id, user_id, item_id, event_type, day as event_day, arrival_day, candidates is not null as listed"
_EVENT_TYPES = "event_id varchar, user_id varchar, item_id varchar, event_type varchar, event_day date, arrival_day date, listed boolean"


@dataclass(frozen=True)
class Stale:
    """A day of a table that would come out otherwise: why, and in how many rows at most."""

    table: str
    day: date
    reason: str
    rows: int


def find_stale(lake: Lake, settings: Settings) -> list[Stale]:
    """Everything stale, in the order of the plan; what is made from something stale is stale too."""
    with database(settings.duckdb) as duck, tempfile.TemporaryDirectory(prefix="nightjar-") as folder:
        search = _Search(lake, settings, duck, Path(folder))
        for look in (search.bronze, search.silver, search.features, search.statistics, search.transitions, search.tonight):
            look()
        return search.found


def print_stale(lake: Lake, settings: Settings) -> None:
    """Print what is stale, neighbouring days of one table and reason as one line. Raises NotReady for a lake without any day."""
    if not any(lake.done(table) for step in STEPS for table in step.writes):
        raise nothing_made(lake)
    found = find_stale(lake, settings)
    console = Console(width=130, highlight=False)
    if not found:
        console.print("Nothing is stale: every table is as its inputs are.")
        return
    page = Table(box=None, title=f"{lake.root}: {len(found):,} days of tables are stale", title_justify="left")
    for heading in ("table", "days", "rows, at most", "because"):
        page.add_column(heading, justify="right" if heading.startswith("rows") else "left", no_wrap=heading != "because")
    for table, reason in dict.fromkeys((one.table, one.reason) for one in found):
        rows = {one.day: one.rows for one in found if (one.table, one.reason) == (table, reason)}
        for days in ranges(rows):
            page.add_row(table, str(days), f"{sum(rows[day] for day in days):,}", reason)
    console.print(page)
    console.print("`nightjar stale --recompute` makes them again.")


def nothing_made(lake: Lake) -> NotReady:
    """The message for a lake without any day."""
    return NotReady(f"No step has made anything in {lake.root} yet. `nightjar backfill` makes the tables for a range of days.")


def recompute(lake: Lake, settings: Settings) -> None:
    """Make again what is stale, each step after those that it reads from: what comes out as before makes nothing after it stale."""
    for names in (["bronze"], ["silver"], ["features", "transitions"]):
        found = find_stale(lake, settings)
        run_steps([(name, days) for name in names for days in ranges(one.day for one in found if one.table in find_step(name).writes)], settings)
    tonight = [(name, one.day) for one in find_stale(lake, settings) for name in POLICY_DAILY if one.table in find_step(name).writes]
    if tonight:
        first, day = tonight[0]
        run_steps([(name, DayRange(day, day)) for name in POLICY_DAILY[POLICY_DAILY.index(first) :]], settings)


@dataclass
class _Search:
    """Goes through the plan, in its order. `found` grows; rows that differ are kept in temporary tables of `duck`."""

    lake: Lake
    settings: Settings
    duck: duckdb.DuckDBPyConnection
    folder: Path
    found: list[Stale] = field(default_factory=list)
    landed: frozenset[date] = frozenset()  # days whose landing files are not those of the ledger
    _numbers: Iterator[int] = field(default_factory=count)
    _read: dict[str, list[Commit]] = field(default_factory=dict)

    @cached_property
    def aside(self) -> Lake:
        """A lake whose bronze holds the days of `landed` as they have landed."""
        return Lake(self.folder / "aside", self.lake.event_types)

    def bronze(self) -> None:
        """Take in, beside the lake, the days that have landed otherwise, and compare."""
        done = self.lake.done(LEDGER)
        if not done:
            return
        days = DayRange(min(done), max(done))
        try:
            files = landing_files(self.settings.landing_path, days)
        except EmptyLanding:
            return
        unknown = bronze.unknown_days(self.lake, files, days, self.settings.rules("bronze"), _known_by_stamp(self.lake))
        self.landed = done & {*unknown} & {file.arrival_day for file in files}
        for some_days in ranges(self.landed):
            bronze.run(self.aside, self.settings, some_days)
        reasons = {day: self._news(day) for day in sorted(self.landed)}
        for table in find_step("bronze").writes:
            for day, reason in reasons.items():
                before, after = (self._rows(lake, table, [day]) for lake in (self.lake, self.aside))
                self._tell(table, day, reason, self._count(_differing(before, after), _CHANGED))

    def _news(self, day: date) -> str:
        arrived = pc.field("arrival_day") == day
        ledgers = (lake.read(LEDGER, ["source_file", "sha256"], arrived).to_pylist() for lake in (self.lake, self.aside))
        before, after = ({row["source_file"]: row["sha256"] for row in ledger} for ledger in ledgers)
        news = [
            *(f"{name} has changed" for name in sorted(after.keys() & before.keys()) if after[name] != before[name]),
            *(f"{name} is new" for name in sorted(after.keys() - before.keys())),
            *(f"{name} is gone" for name in sorted(before.keys() - after.keys())),
        ]
        if not news:
            return "the settings name other fields or event types"
        return news[0] + (f", and {len(news) - 1} more" if news[1:] else "")

    def silver(self) -> None:
        """Make silver anew, beside the lake, for the ids, items and users alone of which bronze says something else, and compare."""
        self.duck.execute("create temp table touched (source varchar, id varchar, day date, reason varchar)")
        self.duck.execute(f"create temp table coming ({_EVENT_TYPES})")
        for source, key, (target, *_) in SILVER:
            for since, days in self._since(target, source).items():
                for lake, some_days, what in ((self.lake, days - self.landed, "has changed"), (self.aside, days & self.landed, "is stale")):
                    if some_days:
                        differing = _differing(self._rows(self.lake, source, some_days, since), self._rows(lake, source, some_days))
                        self.duck.execute(f"insert into touched select distinct '{source}', {key}, arrival_day, '{source} {what}' from ({differing})")
        if not self._count("from touched"):
            return
        again = self._silver_of_touched()
        for source, key, targets in SILVER:
            for target in filter(self._made, targets):
                held, made = (f"select * from {self._named(lake.dataset(target))} where {key} in ({_ids(source)})" for lake in (self.lake, again))
                self.duck.execute(f"create or replace temp table changed as {_differing(held, made)}")
                self._tell_all(
                    target, f"select touched.day, touched.reason, {_CHANGED} from touched join changed on id = {key} where source = '{source}' group by all"
                )
                if target == INTERACTIONS:
                    self.duck.execute(f"insert into coming select {_EVENT} from ({_differing(_read_on(held), _read_on(made))})")

    def _silver_of_touched(self) -> Lake:
        again = Lake(self.folder / "again", self.lake.event_types)
        done = self.lake.done(INTERACTIONS)
        for source, key, _ in SILVER:
            said = [self._rows(self.lake, source, done - self.landed)]
            if self.landed:
                said.append(self._rows(self.aside, source, done & self.landed))
            of_touched = self.duck.sql(f"from ({' union all by name '.join(said)}) where {key} in ({_ids(source)})")
            again.replace(source, tables_of(of_touched), "bronze", done, {})
        for days in ranges(done):
            silver.run(again, self.settings, days)
        return again

    def features(self) -> None:
        """A partial counts what arrived on its day; a snapshot sums the partials of a window, and knows the items that hold on its day."""
        self._users_near_the_limits()
        for entity in ENTITIES:
            key, partials, features = f"{entity}_id", f"gold.{entity}_partials", f"gold.{entity}_features"
            changes = self._changes(partials)
            self._tell_all(partials, f"select day, min(reason), count(distinct ({key}, event_day, event_type)) from {changes} group by day")
            otherwise = self._tell_other_rules(features, features, "the features are declared otherwise, or the limits are others")
            self.duck.execute("create or replace temp table met (day date, reason varchar, id varchar)")
            made = self._made(features).keys() - otherwise
            self._meet(f"select {key} as id, event_day, arrival_day, '{partials} is stale' as reason from {changes}", made)
            for since, days in self._since(features, partials, REACH - 1).items():
                window = {day - timedelta(days=back) for day in days for back in range(REACH)}
                differing = _differing(self._rows(self.lake, partials, window, since), self._rows(self.lake, partials, window))
                self._meet(f"select {key} as id, event_day, arrival_day, '{partials} has changed' as reason from ({differing})", days - otherwise)
            for day, reason in self._other_items(features, _READ_OF_ITEMS[entity], made):
                self.duck.execute(f"insert into met select day, '{reason}', {key} from ({self._rows(self.lake, features, [day])})")
            self._tell_all(features, "select day, min(reason), count(distinct id) from met group by day")

    def _users_near_the_limits(self) -> None:
        """Only who has as many events as a limit can come to be set aside, or not to be."""
        changes = self._changes(SET_ASIDE)
        arrived = self._rows(self.lake, INTERACTIONS, [day for (day,) in self.duck.sql(f"select distinct day from {changes}").fetchall()])
        fewest = min(self.settings.limits.events_per_day, self.settings.limits.events_per_minute)
        many = f"""
            select user_id, event_day, day from (
                select user_id, day as event_day, arrival_day as day from ({arrived}) union all select user_id, event_day, day from {changes}
            ) group by all having count(*) > {fewest}
        """
        near = f"{changes} semi join ({many}) using (user_id, event_day, day)"
        self._tell_all(SET_ASIDE, f"select day, min(reason), count(distinct (user_id, event_day)) from {near} group by day")
        self._tell_other_rules(SET_ASIDE, SET_ASIDE, "the limits are others")

    def _other_items(self, features: str, read: str, days: Collection[date]) -> Iterator[tuple[date, str]]:
        """Days on which something else is known of some item than their snapshots were made from, and why. A category is shared: any row may change."""
        coming = min((one.day for one in self.found if one.table == ITEMS), default=date.max)
        for day in sorted(days):
            since = self._made(features)[day].inputs.get(ITEMS)
            if day >= coming:
                yield day, f"{ITEMS} is stale"
            elif since is not None and any(min(commit.days) <= day for commit in self._commits(ITEMS) if commit.version > since):
                known = "select *, min(valid_from) over (partition by item_id) as first_known from ({})"
                before, after = (
                    f"select {read} from ({known.format(self._rows(self.lake, ITEMS, [day], version))}) where valid_to is null" for version in (since, None)
                )
                if self._count(_differing(before, after)):
                    yield day, f"{ITEMS} has changed"

    def statistics(self) -> None:
        """Those of a day are of its snapshots."""
        self.duck.execute("create or replace temp table others (day date, reason varchar, entity varchar)")
        for entity in ENTITIES:
            features = f"gold.{entity}_features"
            stale = {one.day for one in self.found if one.table == features} & self._made(STATISTICS).keys()
            if stale:
                self.duck.execute(f"insert into others select day, '{features} is stale', '{entity}' from ({_values(stale)}) as days (day)")
            for since, days in self._since(STATISTICS, features).items():
                differing = _differing(self._rows(self.lake, features, days, since), self._rows(self.lake, features, days))
                self.duck.execute(f"insert into others select distinct day, '{features} has changed', '{entity}' from ({differing})")
        if self._count("from others"):
            held = self._named(self.lake.dataset(STATISTICS))
            self._tell_all(STATISTICS, f"select day, min(reason), count(distinct (entity, feature)) from others join {held} using (day, entity) group by day")

    def _meet(self, partials: str, days: Collection[date]) -> None:
        """Note whose snapshots of the days the partials (id, event_day, arrival_day, reason) are part of."""
        if not days:
            return
        self.duck.execute(f"""
            insert into met
            select distinct days.day, reason, id from ({partials}) join ({_values(days)}) as days (day)
            on arrival_day <= days.day and date_diff('day', event_day, days.day) between 0 and {REACH - 1}
        """)

    def transitions(self) -> None:
        """A night rebuilds the days around what arrived on its day: the rows, there, of the users of whom something else is known."""
        if not all(map(self.lake.exists, find_step("transitions").writes)):
            return
        changes, reach, steps = self._changes(TRANSITIONS), reach_days(self.settings), ", ".join(f"'{name}'" for name in self.settings.step_types)
        for table in (TRANSITIONS, "gold.candidate_sets", "gold.unattributed", "gold.rewards"):  # a number, once given, stays
            otherwise = self._tell_other_rules(table, "transitions", "the settings of rewards, episodes or limits are others")
        self.duck.execute(f"delete from {changes} where {one_of('day', otherwise)}")
        near = f"abs(date_diff('day', held.day, changed.event_day)) <= {reach}"
        for table, come, key, joined in (
            (TRANSITIONS, f"event_type in ({steps})", "held.user_id, held.day, held.step", "held.user_id = changed.user_id"),
            ("gold.unattributed", f"event_type not in ({steps})", "held.event_id", "held.user_id = changed.user_id"),
            ("gold.rewards", "true", "held.day, held.event_day, held.event_type, held.reason", "true"),
        ):
            held = f"from {changes} as changed join {self._named(self.lake.dataset(table))} as held on {joined} and {near}"
            rows = f"select day, reason, {{'event_id': event_id}}::varchar as key from {changes} where {come}"
            rows += f" union select changed.day, changed.reason, row({key})::varchar {held}"
            self._tell_all(table, f"select day, min(reason), count(distinct key) from ({rows}) group by day")
        listed = f"select day, min(reason), count(distinct event_id) from {changes} where event_type in ({steps}) and listed group by day"
        self._tell_all("gold.candidate_sets", listed)
        new = f"item_id not in (select item_id from {self._named(self.lake.dataset(INDEX))})"
        self._tell_all(INDEX, f"select day, min(reason), count(distinct item_id) from {changes} where {new} group by day")

    def _changes(self, target: str) -> str:
        """Make a table of the rows of silver.interactions that differ, or will, from those that the target was made from, by the day of its run."""
        changes = f"changes_{next(self._numbers)}"
        self.duck.execute(f"create temp table {changes} (day date, reason varchar, {_EVENT_TYPES})")
        for since, days in self._since(target, INTERACTIONS).items():
            replaced = {day for commit in self._commits(INTERACTIONS) if commit.version > since for day in commit.replaced}
            before, after = (_read_on(self._rows(self.lake, INTERACTIONS, days, version, replaced or None)) for version in (since, None))
            self.duck.execute(f"insert into {changes} select arrival_day, '{INTERACTIONS} has changed', {_EVENT} from ({_differing(before, after)})")
        made = one_of("arrival_day", self._made(target))
        self.duck.execute(f"insert into {changes} select arrival_day, '{INTERACTIONS} is stale', * from coming where {made}")
        return changes

    def tonight(self) -> None:
        """Tables of the newest night, from the policy to the list that is served."""
        nights = self.lake.done(TRANSITIONS)
        stale = {one.table for one in self.found} & {TRANSITIONS, ITEMS, FEATURES}
        earlier = {table for name in FEATURES_DAILY for table in find_step(name).writes}
        for step in map(find_step, POLICY_DAILY):
            for table in step.writes:
                commit = self._made(table).get(max(nights)) if nights else None
                if commit is None:
                    return
                sources = [source for source in step.reads if source in earlier and (source != FEATURES or source in commit.inputs)]  # a policy may need none
                reasons = [f"{source} is stale" for source in sources if source in stale]
                reasons += [f"{source} has changed" for source in sources if self._differs(source, commit.inputs.get(source), max(nights))]
                if reasons:
                    stale.add(table)
                    self._tell(table, max(nights), reasons[0], self._count(self._rows(self.lake, table, [max(nights)])))
            earlier |= {*step.writes}

    def _differs(self, source: str, since: int | None, night: date) -> bool:
        """Whether the rows of a table that count for a night are others than in a version of it."""
        newer = [commit for commit in self._commits(source) if since is not None and commit.version > since]
        if source in (TRANSITIONS, FEATURES):
            days = {day for commit in newer for day in commit.replaced if day <= night}
        else:
            days = {night} if source == ITEMS or any(night in commit.days for commit in newer) else set()
        return bool(newer and days) and self._count(_differing(self._rows(self.lake, source, days, since), self._rows(self.lake, source, days))) > 0

    def _commits(self, table: str) -> list[Commit]:
        if table not in self._read:
            self._read[table] = self.lake.commits(table)
        return self._read[table]

    def _made(self, table: str) -> dict[date, Commit]:
        """By day, the commit that has made it last. A table without partitions is made whole each time, and served lists are those of one night."""
        commits = self._commits(table)
        if table in (ITEMS, "silver.users"):
            return dict.fromkeys(self.lake.done(table), commits[-1]) if commits else {}
        if table == "serving.recommendations":
            commits = commits[-1:]
        return {day: commit for commit in commits for day in commit.days}

    def _since(self, target: str, source: str, looks_back: int = 0) -> dict[int, set[date]]:
        """By the version of the source that it was made from, days of the target for which the source has been written since.

        A day looks at that of the source, and at as many before it.
        """
        newest = {day: commit.version for commit in self._commits(source) for day in commit.days | commit.changed}
        last = self.lake.version(source) if newest else -1
        found: dict[int, set[date]] = defaultdict(set)
        for day, commit in self._made(target).items():
            since = commit.inputs.get(source)
            if since is None:
                continue
            # A version that is newer than the newest is of a table that has been removed, and made again, since.
            written = since > last or any(newest.get(day - timedelta(days=back), since) > since for back in range(looks_back + 1))
            if written or (day in self.landed and source in find_step("bronze").writes):
                found[since].add(day)
        return found

    def _rows(self, lake: Lake, table: str, days: Collection[date], version: int | None = None, partitions: Collection[date] | None = None) -> str:
        """A query for the rows that count for the days: of a table with arrival days those that arrived on them, of items what holds on the last.

        Where a file of the version is gone, there are none: then every row counts as one that differs.
        """
        names = [column.name for column in lake.columns(table)]
        column = "valid_from" if "valid_from" in names else "arrival_day" if "arrival_day" in names else "day"
        among = days if partitions is None and TABLES[table].day_column == column else partitions
        there = version is None or lake.is_whole(table, version, among)
        name = self._named(lake.dataset(table, version, among) if there else lake.schema(table).empty_table())
        if column == "valid_from":
            last = f"date '{max(days)}'"
            return f"select * replace (case when valid_to <= {last} then valid_to end as valid_to) from {name} where valid_from <= {last}"
        return f"select * from {name} where {one_of(column, days)}"

    def _named(self, rows: object) -> str:
        name = f"rows_{next(self._numbers)}"
        self.duck.register(name, rows)
        return name

    def _count(self, query: str, what: str = "count(*)") -> int:
        return int(self.duck.sql(f"select {what} from ({query})").fetchall()[0][0])

    def _tell(self, table: str, day: date, reason: str, rows: int) -> None:
        if rows:
            self.found.append(Stale(table, day, reason, rows))

    def _tell_all(self, table: str, query: str) -> None:
        """Tell what a query finds: day, reason, rows."""
        for day, reason, rows in sorted(self.duck.sql(query).fetchall()):
            self._tell(table, day, reason, rows)

    def _tell_other_rules(self, table: str, made: str, reason: str) -> set[date]:
        """Tell every day that was not made as `Settings.rules` has it for `made`, and return them."""
        days = {day for day, commit in self._made(table).items() if commit.fingerprint not in ("", self.settings.rules(made))}
        for day in sorted(days):
            self._tell(table, day, reason, self._count(self._rows(self.lake, table, [day])))
        return days


def _known_by_stamp(lake: Lake) -> Callable[[LandingFile], tuple[int, str]]:
    """The checksum of a file as the ledger has it, where its size and its time of change are still those; else the file is read."""
    columns = ["source_file", "bytes", "modified", "sha256"]
    known = {row["source_file"]: (row["bytes"], row["modified"], row["sha256"]) for row in lake.read(LEDGER, columns).to_pylist()}

    def look(file: LandingFile) -> tuple[int, str]:
        size, modified, checksum = known.get(file.source_file, (None, None, ""))
        return (size, checksum) if size is not None and (size, modified) == stamp(file.path) else fingerprint(file)

    return look


def _differing(before: str, after: str) -> str:
    """The rows of one query that the other has not, as often as it has not; `gone` are those of the first."""
    return f"select *, true as gone from (({before}) except all ({after})) union all select *, false as gone from (({after}) except all ({before}))"


def _read_on(interactions: str) -> str:
    """What later steps read of them: all but where they stood."""
    return f"select * exclude (source_file, source_line) from ({interactions})"


def _ids(source: str) -> str:
    return f"select id from touched where source = '{source}'"


def _values(days: Iterable[date]) -> str:
    quoted = ", ".join(f"(date '{day}')" for day in sorted(days))
    return f"values {quoted}"
