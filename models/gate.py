"""Decides which policy may be served: one that lost nowhere, judged by enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

import pyarrow as pa
import pyarrow.dataset as ds

from jobs.contracts.errors import NotReady
from jobs.lake import Lake
from jobs.settings import Gate, Settings
from jobs.steps import find_step

POPULARITY = "popularity"  # the champion before the first promotion
POLICIES = "policies"  # folder below the lake
MANIFEST = "manifest.json"  # of a policy folder, its last file: a folder that has it is whole

Verdict = Literal["promote", "keep_champion", "insufficient_support"]


@dataclass(frozen=True)
class Measure:
    """One row of gold.evaluations."""

    value: float
    lower: float | None
    upper: float | None
    samples: int

    def __str__(self) -> str:
        interval = "" if self.lower is None or self.upper is None else f" ({self.lower:.4f} to {self.upper:.4f})"
        return f"{self.value:.4f}{interval}"


@dataclass(frozen=True)
class PolicyRecord:
    """A policy and its folder below the lake; popularity has none."""

    version: str
    path: str
    manifest: str
    name: str = ""  # which of train.policies it is; empty = the only one


@dataclass(frozen=True)
class Decision:
    """The verdict, why, and what the off-policy estimate rests on."""

    verdict: Verdict
    reasons: tuple[str, ...]
    effective_sample_size: float
    overlap: float


Measures = Mapping[tuple[str, str], Measure]  # by name and metric


def run(lake: Lake, settings: Settings, day: date) -> None:
    """Write gold.verdicts of `day`, and record the night in MLflow. Raises NotReady when the day has not been evaluated."""
    from models.tracking import record_night

    inputs = lake.versions(find_step("gate").reads)
    challenger, measures = _judged(lake, day)
    champion = champion_before(lake, day)
    decision = decide(measures, champion.version, settings.evaluate.cutoff, settings.gate)
    serving = challenger if decision.verdict == "promote" else champion
    row = {
        "challenger": challenger.version,
        "champion": champion.version,
        "verdict": decision.verdict,
        "serving": serving.version,
        "reasons": list(decision.reasons),
        "effective_sample_size": decision.effective_sample_size,
        "overlap": decision.overlap,
        "day": day,
    }
    record_night(lake, day, challenger, serving, row, measures)
    # Last, so that a day with a verdict is a day that is recorded.
    lake.replace("gold.verdicts", pa.Table.from_pylist([row], lake.schema("gold.verdicts")), "gate", [day], inputs)


def policies_of(lake: Lake, day: date) -> list[PolicyRecord]:
    """The policies trained on `day`, by name. Raises NotReady when there is none."""
    found = lake.read("gold.policies", ["policy_version", "path", "manifest", "name"], ds.field("day") == day).sort_by("name").to_pylist()
    if not found:
        raise NotReady(f"No policy of {day} is in gold.policies. Run `nightjar run train --day {day}` first.")
    return [PolicyRecord(row["policy_version"], row["path"], row["manifest"], row["name"] or "") for row in found]


def champion_before(lake: Lake, day: date) -> PolicyRecord:
    """What the last verdict before `day` serves; popularity where there is none. Raises NotReady when its policy is gone."""
    verdicts = lake.read("gold.verdicts", ["day", "serving"], ds.field("day") < day) if lake.exists("gold.verdicts") else None
    if not verdicts:
        return PolicyRecord(POPULARITY, "", "{}")
    version = verdicts.sort_by("day")["serving"][-1].as_py()
    if version == POPULARITY:
        return PolicyRecord(POPULARITY, "", "{}")
    return policy_named(lake, version)


def policy_named(lake: Lake, version: str) -> PolicyRecord:
    """The policy of that version, by its folder: gold.policies forgets a policy whose day was trained again, a verdict may still serve it.

    Raises NotReady when there is no such folder.
    """
    path = f"{POLICIES}/{version}"
    manifest = lake.root / path / MANIFEST
    if not manifest.is_file():
        raise NotReady(f"There is no policy {version!r} in {lake.root / POLICIES}. Name another one, `{POPULARITY}`, or bring its folder back.")
    return PolicyRecord(version, path, manifest.read_text())


def _judged(lake: Lake, day: date) -> tuple[PolicyRecord, Measures]:
    """The challenger of the day, and what was found of everybody."""
    policies = {policy.version: policy for policy in policies_of(lake, day)}
    rows = lake.read("gold.evaluations", filter=ds.field("day") == day).to_pylist()
    strangers = {row["policy_version"] for row in rows} - policies.keys()
    if not rows or strangers:
        what = f"judges {', '.join(sorted(strangers))}, not {', '.join(policies)}" if strangers else "is empty"
        raise NotReady(f"gold.evaluations of {day} {what}. Run `nightjar run evaluate --day {day}` first.")
    measures = {(row["name"], row["metric"]): Measure(row["value"], row["lower"], row["upper"], row["samples"]) for row in rows}
    return policies[rows[0]["policy_version"]], measures


def decide(measures: Measures, champion: str, cutoff: int, gate: Gate) -> Decision:
    """Promote the challenger if it does not lose to the champion: in value where propensities are logged, else in ranking.

    Ranking asks who foresees what the logging system showed and was answered; where it chose with known chances, the value
    asks what the challenger's own lists would have earned, so that ranking is told and does not count. Where propensities had
    to be estimated it is the other way round. "Does not lose": the lower end of the paired difference falls short of the
    champion by no more than the margin. With too few users, or an off-policy estimate that rests on too little, the verdict
    is insufficient_support, and the champion stays.
    """
    logged = ("challenger", "snips") in measures
    sample = measures["challenger", "effective_sample_size"].value
    overlap = measures["challenger", "overlap"].value
    missing = _missing_support(measures, logged, gate)
    if missing:
        return Decision("insufficient_support", (*missing, f"{champion} goes on being served."), sample, overlap)
    opponent = "champion" if ("champion", f"ndcg@{cutoff}") in measures else POPULARITY
    ranks_well, ranking = _ranking(measures, opponent, champion, cutoff, gate)
    if logged:
        holds, value = _value(measures, opponent, champion, gate)
        reasons = (value, f"Not counted, as it only sees what the logging system chose to show: {ranking[0].lower()}{ranking[1:]}")
    else:
        holds, reasons = ranks_well, (ranking, _advice(measures))
    return Decision("promote" if holds else "keep_champion", reasons, sample, overlap)


def _missing_support(measures: Measures, logged: bool, gate: Gate) -> list[str]:
    """What the verdict can't rest on, as sentences; none = enough."""
    missing = []
    users = measures["challenger", "test_users"].value
    if users < gate.min_users:
        missing.append(f"Only {users:.0f} users did something rewarded on the held-out days; a verdict needs {gate.min_users}.")
    sample = measures["challenger", "effective_sample_size"].value
    if logged and sample < gate.min_effective_sample_size:
        missing.append(
            f"The off-policy estimate is worth {sample:.1f} steps (effective sample size); a verdict needs {gate.min_effective_sample_size:.0f}. "
            "The challenger chooses too differently from what was logged."
        )
    overlap = measures["challenger", "overlap"].value
    if logged and overlap < gate.min_overlap:
        missing.append(
            f"The logging system could have made {overlap:.0%} of the challenger's choices (overlap); a verdict needs {gate.min_overlap:.0%}. "
            "Log with more exploration."
        )
    return missing


def _ranking(measures: Measures, opponent: str, champion: str, cutoff: int, gate: Gate) -> tuple[bool, str]:
    metric = f"ndcg@{cutoff}"
    own, theirs = measures["challenger", metric], measures[opponent, metric]
    holds, difference = _does_not_lose(measures["challenger", f"{metric}_minus_champion"], theirs.value, gate.ranking_margin)
    return holds, f"Ranking {_verb(holds)}: NDCG@{cutoff} is {own}, that of {champion} {theirs}, over {own.samples} test events; {difference}."


def _value(measures: Measures, opponent: str, champion: str, gate: Gate) -> tuple[bool, str]:
    """Against the champion where the log supports an estimate of it, else against what the logging system earned."""
    own = measures["challenger", "snips"]
    supported = measures[opponent, "effective_sample_size"].value >= gate.min_effective_sample_size
    theirs = measures[opponent, "snips"] if supported else measures["logged", "mean_reward"]
    whose = f"that of {champion}" if supported else f"what the logging system earned (the log tells too little about {champion})"
    difference = measures["challenger", "snips_minus_champion" if supported else "snips_minus_logged"]
    holds, told = _does_not_lose(difference, theirs.value, gate.value_margin)
    sample = measures["challenger", "effective_sample_size"].value
    return holds, f"Value {_verb(holds)}: reward of an item of its list by SNIPS is {own}, {whose} {theirs}; {told}. Effective sample size {sample:.0f}."


def _does_not_lose(difference: Measure, reference: float, margin: float) -> tuple[bool, str]:
    allowed = margin * abs(reference)
    holds = difference.lower is not None and difference.lower >= -allowed
    return holds, f"the difference is {difference}, and its lower end may go down to {-allowed:.4f}"


def _verb(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _advice(measures: Measures) -> str:
    value = measures["challenger", "snips_estimated_propensities"]
    return (
        f"Value does not count: the log holds no propensities. With estimated ones the challenger would earn {value} per step, "
        f"the logging system earned {measures['logged', 'mean_reward']}: advice, no more."
    )
