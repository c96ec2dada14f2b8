"""The plan: every step of a night, in order. The command line, the DAGs and `status` all read it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from jobs.contracts.errors import UnknownStep

Engine = Literal["spark", "torch", "arrow"]


@dataclass(frozen=True)
class Step:
    """One step: one module with a `run`, one command, one task. It reads and writes the tables named here and no others.

    A Spark step takes a range of days in one pass, an arrow step (no JVM, no device) too; a torch step takes one day.
    """

    name: str
    engine: Engine
    module: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


STEPS = (
    Step("bronze", "arrow", "jobs.ingest.bronze",
         (), ("bronze.events", "bronze.items", "bronze.users", "bronze.quarantine", "bronze.files")),
    Step("silver", "arrow", "jobs.ingest.silver",
         ("bronze.events", "bronze.items", "bronze.users"), ("silver.repeats", "silver.interactions", "silver.items", "silver.users")),
    Step("features", "spark", "jobs.features.features",
         ("silver.interactions", "silver.items"),
         ("gold.set_aside", "gold.user_partials", "gold.item_partials", "gold.user_features", "gold.item_features", "gold.feature_statistics")),
    Step("transitions", "spark", "jobs.transitions.transitions",
         ("silver.interactions", "silver.items"), ("gold.item_index", "gold.candidate_sets", "gold.unattributed", "gold.rewards", "gold.transitions")),
    Step("train", "torch", "models.train",
         ("gold.transitions", "gold.item_index", "gold.candidate_sets", "gold.user_features", "silver.items"), ("gold.policies",)),
    Step("evaluate", "torch", "models.evaluate",
         ("gold.transitions", "gold.item_index", "gold.user_features", "gold.policies", "gold.verdicts", "silver.items"), ("gold.evaluations",)),
    Step("gate", "torch", "models.gate",
         ("gold.evaluations", "gold.policies", "gold.verdicts"), ("gold.verdicts",)),
    Step("score", "torch", "models.score",
         ("gold.transitions", "gold.item_index", "gold.user_features", "gold.policies", "gold.verdicts", "silver.items"), ("gold.recommendations",)),
    Step("audit", "arrow", "jobs.publish.audit",
         ("bronze.files", "bronze.quarantine", "silver.repeats", "silver.interactions", "silver.items", "gold.set_aside", "gold.item_index",
          "gold.transitions", "gold.unattributed", "gold.rewards", "gold.verdicts", "gold.recommendations"), ("gold.audits",)),
    Step("publish", "arrow", "jobs.publish.publish",
         ("gold.recommendations", "gold.audits"), ("serving.recommendations",)),
)  # fmt: skip

FEATURES_DAILY = tuple(step.name for step in STEPS[:4])
POLICY_DAILY = tuple(step.name for step in STEPS[4:])


def find_step(name: str) -> Step:
    """Return the step of that name. Raises UnknownStep, which names the nearest one, for any other name."""
    for step in STEPS:
        if step.name == name:
            return step
    names = [step.name for step in STEPS]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownStep(f"There is no step {name!r}.{hint} Steps, in order: {', '.join(names)}.")
