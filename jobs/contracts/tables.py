"""The tables of the lake: what a row stands for, its columns, and how it is partitioned.

Types are spelled as in Spark SQL. A table that `has_features` carries, after its own columns, one column per feature that
`jobs.contracts.features` declares for its entity: the first column of its grain, less `_id`.
"""

from __future__ import annotations

from dataclasses import dataclass

ENDS = ("terminated", "truncated_gap", "truncated_window", "immature")  # why an episode stops at a step


@dataclass(frozen=True)
class Column:
    """One column: its Spark SQL type, whether it may be null, and what it means."""

    name: str
    type: str
    doc: str
    nullable: bool = True


@dataclass(frozen=True)
class Table:
    """The contract of one table of the lake."""

    name: str
    doc: str
    grain: tuple[str, ...]
    columns: tuple[Column, ...]
    partition_by: tuple[str, ...] = ()
    has_features: bool = False

    @property
    def day_column(self) -> str | None:
        """The partition column that every write replaces days of; None for a table that is replaced whole."""
        return self.partition_by[0] if self.partition_by else None


def _required(name: str, type: str, doc: str) -> Column:
    return Column(name, type, doc, nullable=False)


_SOURCE = (
    _required("source_file", "string", "path below the landing folder"),
    _required("source_line", "bigint", "line of that file, from 1"),
)
_ARRIVAL_DAY = _required("arrival_day", "date", "landing folder that brought the row")
_DAY = _required("day", "date", "data day")
EVENT_COLUMNS = (
    _required("event_id", "string", "id of the event; a hash of its line where the log has none"),
    _required("user_id", "string", "who"),
    _required("item_id", "string", "what"),
    _required("event_type", "string", "impression, view, click, purchase, …"),
    _required("event_time", "timestamp", "when it happened, UTC"),
    Column("value", "double", "rating, seconds, price, …"),
    Column("session_id", "string", "session, as logged"),
    Column("request_id", "string", "request that showed the item"),
    Column("position", "int", "place in the list shown"),
    Column("propensity", "double", "probability with which the item was chosen, in (0, 1]"),
    Column("policy_id", "string", "what chose the item"),
    Column("candidates", "array<string>", "items that could have been shown; null = every available one"),
    Column("context", "map<string,string>", "anything else that was logged"),
)
_ITEM = (
    _required("item_id", "string", "id"),
    Column("category", "array<string>", "path from the root category down"),
    Column("price", "double", "price"),
    Column("title", "string", "title"),
    Column("available", "boolean", "false = may not be recommended; null counts as true"),
    Column("attributes", "map<string,string>", "anything else"),
    Column("embeddings", "map<string,array<float>>", "given vectors by name"),
)
_USER = (
    _required("user_id", "string", "id"),
    Column("attributes", "map<string,string>", "anything known"),
)
_VALIDITY = (
    _required("valid_from", "date", "first arrival day from which the row holds"),
    Column("valid_to", "date", "first day on which it holds no more; null = still holds"),
)
_PARTIAL = (
    _required("event_day", "date", "UTC day of the events"),
    _required("event_type", "string", "type of the events"),
    _required("event_count", "bigint", "number of events"),
    _required("value_sum", "decimal(38,6)", "sum of their values; a decimal, so that order changes no bit"),
    Column("value_count", "bigint", "events with a value: a finite number below 1e22"),
    Column("value_min", "decimal(38,6)", "smallest value"),
    Column("value_max", "decimal(38,6)", "largest value"),
    Column("value_last", "decimal(38,6)", "value of the latest event that has one"),
    Column("value_last_order", "decimal(38,0)", "when that was: microseconds since 1970 * 1e20 + a hash of the event id, which decides between equal instants"),
)
_RECOMMENDATION = (
    _required("user_id", "string", "whom to show it; `*` = somebody with no history"),
    _required("rank", "int", "place in the list, from 1"),
    _required("item_id", "string", "what to show"),
    _required("score", "double", "ranking score in the state of its place, which with score.as_read is another one at each: it orders nothing"),
    _required("propensity", "double", "probability with which this item was chosen for this rank, given the ranks above"),
    _required("reason", "string", "why, for a person to read"),
    _required("day", "date", "data day; the list is for the day after"),
    _required("policy_version", "string", "policy that chose it"),
)

_ALL = (
    Table("bronze.events", "events as they landed, typed", ("source_file", "source_line"),
          (*EVENT_COLUMNS, _required("event_day", "date", "UTC day of event_time"), *_SOURCE, _ARRIVAL_DAY), ("arrival_day",)),
    Table("bronze.items", "item rows as they landed, typed", ("source_file", "source_line"), (*_ITEM, *_SOURCE, _ARRIVAL_DAY), ("arrival_day",)),
    Table("bronze.users", "user rows as they landed, typed", ("source_file", "source_line"), (*_USER, *_SOURCE, _ARRIVAL_DAY), ("arrival_day",)),
    Table("bronze.quarantine", "lines that could not be taken in, kept whole", ("source_file", "source_line"),
          (_required("feed", "string", "events, items or users"),
           _required("reason", "string", "code from a closed list"),
           _required("detail", "string", "what was expected and what came"),
           _required("line", "binary", "the whole line, byte for byte, without its line feed"),
           *_SOURCE, _ARRIVAL_DAY), ("arrival_day",)),
    Table("bronze.files", "what became of the lines of every landing file; their duplicates are told apart in silver", ("source_file",),
          (_required("source_file", "string", "path below the landing folder"),
           _required("feed", "string", "events, items or users"),
           _required("bytes", "bigint", "size"),
           _required("sha256", "string", "checksum of its bytes"),
           Column("modified", "bigint", "when it had last been changed, ns since 1970: a file of this size and time need not be read to be known"),
           _required("lines", "bigint", "lines that are not blank, and one for the tail that can't be read"),
           _required("rows", "bigint", "lines that were typed"),
           _required("requeued", "bigint", "those among them that came out of quarantine"),
           _required("quarantined", "map<string,bigint>", "the others, by reason"),
           _required("rules", "string", "hash of the settings that decide which lines are taken in"),
           _ARRIVAL_DAY), ("arrival_day",)),
    Table("silver.interactions", "events, one row an event id, by the day on which they happened", ("event_id",),
          (*EVENT_COLUMNS, *_SOURCE, _ARRIVAL_DAY, _DAY), ("day",)),
    Table("silver.repeats", "lines whose event id had arrived before", ("source_file", "source_line"),
          (_required("event_id", "string", "the id"),
           _required("kind", "string", "duplicate: the same content; conflict: another one"),
           _required("changed", "array<string>", "columns that differ from the first line's"),
           _required("line", "binary", "the typed content, as JSON"),
           *_SOURCE,
           _required("first_source_file", "string", "file of the line that counts"),
           _required("first_source_line", "bigint", "line of that file"),
           _ARRIVAL_DAY), ("arrival_day",)),
    Table("silver.items", "items over time", ("item_id", "valid_from"), (*_ITEM, *_VALIDITY)),
    Table("silver.users", "users over time", ("user_id", "valid_from"), (*_USER, *_VALIDITY)),
    Table("gold.set_aside", "what one arrival day brought of a user's day beyond the limits: it counts nowhere", ("user_id", "event_day", "arrival_day"),
          (_required("user_id", "string", "who"),
           _required("event_day", "date", "UTC day of the events"),
           _required("reason", "string", "the limit, a name in [limits]"),
           _required("events", "bigint", "how many there are"),
           _required("busiest_minute", "bigint", "most of them within one minute of the clock"),
           _ARRIVAL_DAY), ("arrival_day",)),
    Table("gold.user_partials", "what a user did on one event day, as far as it arrived on one arrival day",
          ("user_id", "event_day", "event_type", "arrival_day"), (_required("user_id", "string", "who"), *_PARTIAL,
           Column("items", "map<string,bigint>", "items of these events, sorted, and number of events of each; null = no feature asks"),
           _ARRIVAL_DAY), ("arrival_day",)),
    Table("gold.item_partials", "what was done with an item on one event day, as far as it arrived on one arrival day",
          ("item_id", "event_day", "event_type", "arrival_day"), (_required("item_id", "string", "what"), *_PARTIAL,
           Column("users", "array<bigint>", "the smallest hashes of the users of these events, sorted; null = no feature asks"),
           _ARRIVAL_DAY), ("arrival_day",)),
    Table("gold.user_features", "users active in the longest window, at the end of the day", ("user_id", "day"),
          (_required("user_id", "string", "who"), _DAY), ("day",), has_features=True),
    Table("gold.item_features", "items met in the longest window, at the end of the day", ("item_id", "day"),
          (_required("item_id", "string", "what"), _DAY), ("day",), has_features=True),
    Table("gold.feature_statistics", "each numeric feature over the snapshot of the day, to normalise by", ("entity", "feature", "day"),
          (_required("entity", "string", "user or item"),
           _required("feature", "string", "column of its features"),
           _required("rows", "bigint", "rows of the snapshot that have a finite value"),
           Column("mean", "double", "mean of these values; null = there is none"),
           Column("deviation", "double", "standard deviation, of the values as the whole population"),
           Column("minimum", "double", "smallest value"),
           Column("maximum", "double", "largest value"),
           _DAY), ("day",)),
    Table("gold.item_index", "items by number: given at first sight, never to another item", ("item",),
          (_required("item", "int", "number of the item, from 1, in the order of the day of first sight and the id"),
           _required("item_id", "string", "id"),
           _required("day", "date", "arrival day that first brought it, of those that were there when it got its number")), ("day",)),
    Table("gold.transitions", "one action of the logging system, and how it ended; the next state is the user's next row", ("user_id", "day", "step"),
          (_required("user_id", "string", "who"),
           _required("event_time", "timestamp", "when, UTC"),
           _required("step", "int", "place among the user's steps of the day, from 1: by time, position in the list shown, event id"),
           _required("item", "int", "action: a number of gold.item_index"),
           _required("event_type", "string", "type of the event that is the step"),
           Column("response", "string", "weightiest event type that answered the step before the user's next step; null = none"),
           _required("reward", "double", "reward of all events attributed to the step"),
           _required("first", "boolean", "true = the first step of an episode"),
           Column("end", "string", f"{', '.join(ENDS)}; null = the episode goes on"),
           Column("propensity", "float", "probability with which the logging system chose the item; null = not logged"),
           Column("candidate_set", "bigint", "key in gold.candidate_sets; null = every item available on the day"),
           _required("as_of_day", "date", "last arrival day that the row may know of"),
           _DAY,
           _required("bucket", "int", "hash of the user; a training worker reads its own buckets alone")), ("day", "bucket")),
    Table("gold.candidate_sets", "items that could have been chosen, once per distinct set and day", ("candidate_set", "day"),
          (_required("candidate_set", "bigint", "hash of the sorted items"), _required("items", "array<string>", "sorted ids"), _DAY), ("day",)),
    Table("gold.unattributed", "rewarded events that belong to no step", ("event_id",),
          (_required("event_id", "string", "the event"),
           _required("user_id", "string", "who"),
           _required("item", "int", "what: a number of gold.item_index"),
           _required("event_type", "string", "type"),
           _required("reward", "double", "reward that no step received"),
           _required("reason", "string", "code from a closed list"),
           _required("as_of_day", "date", "last arrival day that the row may know of"),
           _DAY), ("day",)),
    Table("gold.rewards", "where the rewards of one event day and type went: to the steps of which day, or why to none",
          ("day", "event_day", "event_type", "reason"),
          (_required("event_day", "date", "UTC day of the rewarded events"),
           _required("event_type", "string", "their type"),
           Column("reason", "string", "why they belong to no step, a code from a closed list; null = they do"),
           _required("events", "bigint", "how many there are"),
           _required("reward", "double", "what they are worth together"),
           _required("as_of_day", "date", "last arrival day that the row may know of"),
           _required("day", "date", "day of their steps; where there is none, their own")), ("day",)),
    Table("gold.policies", "policies trained", ("day", "policy_version"),
          (_required("policy_version", "string", "name of the policy"),
           Column("name", "string", "which of [train.policies] it is; null = the only one of its run"),
           _required("path", "string", "its folder, below the lake"),
           _required("trained_from", "date", "first day of its transitions"),
           _required("trained_to", "date", "last day of its transitions"),
           _required("steps", "bigint", "transitions learnt from"),
           _required("items", "bigint", "items known"),
           _required("manifest", "string", "JSON: Delta version of every input, code revision, config, seed"),
           _DAY), ("day",)),
    Table("gold.evaluations", "how policy and baselines did on the held-out days", ("day", "name", "metric"),
          (_required("policy_version", "string", "challenger of the day: of the policies trained that day the one that was judged best"),
           _required("name", "string", "who was judged: challenger, champion, policy and a name, for the others trained that day, the name of a baseline,"
                     " or logged: the logging system itself"),
           _required("metric", "string", "for example ndcg@10, snips, effective_sample_size"),
           _required("value", "double", "estimate"),
           Column("lower", "double", "lower end of the 95% interval over users"),
           Column("upper", "double", "upper end"),
           _required("samples", "bigint", "what the estimate rests on: test events, or logged steps"),
           _DAY), ("day",)),
    Table("gold.verdicts", "which policy may be served after the day", ("day",),
          (_required("challenger", "string", "policy trained that day, of several the one judged best"),
           _required("champion", "string", "policy served before; `popularity` before the first promotion"),
           _required("verdict", "string", "promote, keep_champion, insufficient_support"),
           _required("serving", "string", "policy to score with"),
           _required("reasons", "array<string>", "why, for a person to read"),
           _required("effective_sample_size", "double", "of the off-policy estimate"),
           _required("overlap", "double", "share of the challenger's choices that the logging system could have made too"),
           _DAY), ("day",)),
    Table("gold.recommendations", "lists scored each day; served once audited", ("day", "user_id", "rank"), _RECOMMENDATION, ("day",)),
    Table("gold.audits", "checks run before publishing", ("day", "check"),
          (_required("check", "string", "name of the SQL file"),
           _required("offending", "bigint", "rows that break it; 0 = passed"),
           _required("sample", "array<string>", "one of those rows, as JSON"),
           _DAY), ("day",)),
    Table("serving.recommendations", "the current lists, replaced in one commit", ("user_id", "rank"), _RECOMMENDATION),
)  # fmt: skip

TABLES: dict[str, Table] = {table.name: table for table in _ALL}
