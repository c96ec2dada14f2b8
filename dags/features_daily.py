"""Each night: what arrived on day D becomes bronze, silver, features and transitions."""

from __future__ import annotations

from airflow.sdk import chain
from nightly import nightly_dag, run

from jobs.steps import FEATURES_DAILY

with nightly_dag("features_daily", __doc__):
    chain(*map(run, FEATURES_DAILY))
