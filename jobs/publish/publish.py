"""Publishing: the audited lists of a day become the ones that are served, in one commit."""

from __future__ import annotations

from datetime import date

import pyarrow.compute as pc

from jobs.contracts.days import DayRange
from jobs.contracts.errors import AuditFailed, OlderThanServed
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step

SERVED = "serving.recommendations"
STAGED = "gold.recommendations"


def run(lake: Lake, settings: Settings, days: DayRange) -> None:  # noqa: ARG001
    """Replace the served lists by those of the last of `days`, as the audit saw them.

    Raises NotReady when there is no audit of the day, AuditFailed when it found something or saw other lists than there are
    now, OlderThanServed when newer lists are served: a night run again never takes back what later ones published.
    """
    day = days.last
    version = audited_version(lake, day)
    lake.ensure(SERVED)
    seen = lake.version(SERVED)
    served = served_day(lake)
    if served is not None and served > day:
        raise OlderThanServed(
            f"The lists of {served} are served, and those of {day} are older: they stay in {STAGED} and are not published. "
            f"Run the night of {served} again instead."
        )
    # Sorted by user: whoever looks one user up reads one part of one file.
    lists = lake.read(STAGED, filter=pc.field("day") == day, version=version).sort_by([("user_id", "ascending"), ("rank", "ascending")])
    lake.replace(SERVED, lists, "publish", [day], {**lake.versions(find_step("publish").reads), STAGED: version}, seen=seen)


def audited_version(lake: Lake, day: date) -> int:
    """The version of gold.recommendations that passed the newest audit of the day."""
    lake.require("gold.audits", [day])
    broken = lake.read("gold.audits", ["check"], (pc.field("day") == day) & (pc.field("offending") > 0))
    if broken.num_rows:
        raise AuditFailed(f"The audit of {day} found rows that break {', '.join(sorted(broken['check'].to_pylist()))}. Nothing is published.")
    version = next(commit.inputs[STAGED] for commit in reversed(lake.commits("gold.audits")) if day in commit.days)
    later = [commit for commit in lake.commits(STAGED) if commit.version > version and day in commit.days]
    if later:
        raise AuditFailed(
            f"The lists of {day} were made again after their audit (version {later[-1].version}, audited {version}). "
            f"Audit them: `nightjar run audit --day {day}`."
        )
    return version


def served_day(lake: Lake) -> date | None:
    """Data day of the served lists; null when nothing was ever published."""
    days = [day for commit in lake.commits(SERVED)[-1:] for day in commit.days]
    return max(days, default=None)
