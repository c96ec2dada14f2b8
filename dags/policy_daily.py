"""Each night: once the transitions of day D lie in the lake, a policy is trained, judged, and what it earned is published."""

from __future__ import annotations

from airflow.sdk import chain
from nightly import nightly_dag, report, run, wait_for

from jobs.steps import FEATURES_DAILY, POLICY_DAILY

with nightly_dag("policy_daily", __doc__):
    chain(wait_for(FEATURES_DAILY[-1]), *map(run, POLICY_DAILY), report())
