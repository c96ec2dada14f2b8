"""Settings: `nightjar.toml`, then environment variables `NIGHTJAR_*` (`NIGHTJAR_SCORE__TOP_N=50`), which win.

Relative paths are relative to the folder of the settings file; `s3://bucket/folder` is a place of the store that `[s3]` tells of.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from jobs.contracts.errors import BadSettings
from jobs.contracts.features import ENTITIES, declared_of, met_types
from jobs.contracts.landing import FEEDS
from jobs.contracts.rewards import reward_sql
from jobs.contracts.tables import TABLES
from jobs.storage import SCHEME, Location, location

CONFIG_VARIABLE = "NIGHTJAR_CONFIG"
DEFAULT_CONFIG = "nightjar.toml"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _is_place(text: str) -> str:
    if "://" in text and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/[^/]+)*/?", text):
        raise ValueError("expected a path, or s3://bucket/folder")
    return text


class Landing(_Section):
    """Where the logs arrive, and what they call things where they don't follow the landing format."""

    folder: Annotated[str, AfterValidator(_is_place)] = Field("landing", description="folder that the logs arrive in: a path, or s3://bucket/folder")
    fields: dict[str, str] = Field(default_factory=dict, description="field of the format = where the log has it: a name, or names with dots for nested ones")
    event_types: dict[str, str] = Field(default_factory=dict, description="event type of the log = event type of these settings")

    @field_validator("fields")
    @classmethod
    def _are_fields(cls, fields: dict[str, str]) -> dict[str, str]:
        known = {field.name for feed in FEEDS for field in feed.fields}
        if unknown := sorted(fields.keys() - known):
            raise ValueError(f"{', '.join(unknown)}: no field of the landing format, which has {', '.join(sorted(known))}")
        for path, longer in itertools.permutations(fields.values(), 2):
            if longer.startswith(f"{path}."):
                raise ValueError(f"{path!r} can't be a value and, for {longer!r}, an object")
        return fields


class EventType(_Section):
    """What one type of event means to the learner."""

    step: bool = Field(False, description="an event of this type is an action of the logging system; others answer one")
    reward: str = Field("0", description="what it is worth: numbers, `value`, + - * /, parentheses, min(a, b), max(a, b)")
    maturity_days: int = Field(0, ge=0, le=90, description="an answer counts for a step up to this many days before it")
    terminates: bool = Field(False, description="an event of this type says that the user's episode is over: the last step before it is its end")

    @field_validator("reward")
    @classmethod
    def _can_be_read(cls, reward: str) -> str:
        reward_sql(reward)
        return reward


class Episodes(_Section):
    """Where a user's steps are cut, and how they are spread over files."""

    gap_hours: float = Field(6.0, gt=0, le=24 * 90, description="a longer pause between two steps ends an episode")
    buckets: int = Field(
        4, ge=1, le=4096, description="hash buckets of users: a file each a day, so some 10,000 steps and more; a training worker reads its own alone"
    )


class Limits(_Section):
    """What no person does. What one arrival day brings of a user's day is set aside whole where it is beyond: it counts nowhere, and is listed."""

    events_per_day: int = Field(20_000, ge=1, description="events of one user on one day")
    events_per_minute: int = Field(1_000, ge=1, description="events of one user within one minute of the clock")
    exempt: list[str] = Field(default_factory=list, description="ids of users that are never set aside")


class PolicySettings(_Section):
    """What one of several policies has of its own; what is unset is as in [train]."""

    gamma: float | None = Field(None, ge=0, lt=1)
    backup: Literal["best", "logged"] | None = None
    mixing: float | None = Field(None, ge=0, le=1)
    n_step: int | None = Field(None, ge=1)
    alpha: float | None = Field(None, ge=0)
    gap: float | None = Field(None, gt=0)
    supervised: float | None = Field(None, ge=0)
    rewards: dict[str, float] | None = None


class Train(_Section):
    """The learner."""

    window_days: int = Field(60, ge=1, description="days of transitions to learn from")
    seed: int = 0
    dim: int = Field(64, ge=4, description="width of the network")
    encoder: Literal["gru", "transformer", "mean"] = Field("gru", description="what makes a user's state out of the steps so far")
    layers: int = Field(1, ge=1, description="of the encoder")
    heads: int = Field(2, ge=1, description="of attention, with encoder = transformer")
    context: int = Field(64, ge=2, description="last steps of a user that the state sees")
    dropout: float = Field(0.1, ge=0, lt=1)
    id_dropout: float = Field(0.2, ge=0, lt=1, description="share of the items with content that train without a vector of their own")
    step_id_dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the steps of a history that are read by the item's content alone in training, where it has any; "
        "unset: by the log: 0.8 where it tells what was shown in vain, else 5 / (5 + n) of the steps with an item that has n",
    )
    crop: float = Field(0.0, ge=0, le=1, description="share of the windows that are read from one of their steps on alone in training")
    mask: float = Field(0.0, ge=0, lt=1, description="share of the steps of a history that are read as unknown in training")
    reorder: float = Field(0.0, ge=0, le=1, description="share of the windows in which up to 5 steps in a row are read in any order in training")
    vector_dim: int = Field(64, ge=1, description="given vectors that are wider are told by so many principal components of those of the catalogue")
    epochs: int = Field(4, ge=1)
    warm_epochs: int | None = Field(
        None, ge=1, description="epochs of a night that begins with the network served before, if of the same shape; unset: none does"
    )
    patience: int | None = Field(None, ge=1, description="epochs without a better validation loss before training stops; unset: all epochs")
    validation_days: int = Field(1, ge=1, description="last training days, kept from learning, that the validation loss is of: with patience, and in tuning")
    batch_steps: int | None = Field(None, ge=16, description="steps in a batch, of all ranks together; unset: by the log, 8 to 1,000 batches an epoch")
    learning_rate: float = Field(2e-3, gt=0)
    gamma: float = Field(0.9, ge=0, lt=1, description="discount per step, or per gamma_hours")
    gamma_hours: float | None = Field(None, gt=0, description="hours in which a reward comes to count gamma times as much; unset: gamma is per step")
    backup: Literal["best", "logged"] = Field(
        "logged", description="what a return goes on with: the best item (double Q-learning), or what the log did (one step of improvement)"
    )
    mixing: float = Field(0.95, ge=0, le=1, description="with backup = logged: lambda, the share of the logged return in the value of a state")
    n_step: int = Field(5, ge=1, description="steps of reward before the bootstrap")
    exact_items: int = Field(100_000, ge=1, description="up to so many items the penalty and the maximum are taken over all of them")
    negatives: int = Field(512, ge=1, description="beyond that, items drawn for each batch in their place")
    alpha: float | None = Field(None, ge=0, description="weight of the conservative penalty: small seeks return, large clones the log; unset: by the log")
    gap: float | None = Field(None, gt=0, description="in place of alpha: how far the logged items may stand behind all together (log-sum-exp), in nats")
    supervised: float = Field(0.0, ge=0, description="weight of the cross-entropy of rewarded steps")
    critics: int | None = Field(
        None,
        ge=1,
        description="networks that learn Q side by side, each by itself, and rank by their mean: where they differ, the log says little; "
        "unset: 3 of a log of up to half a million steps, and 1e9 steps times items, else 1",
    )
    lower: float = Field(0.0, ge=0, description="how many standard deviations of the critics below their mean an item is ranked, and a bootstrap taken")
    support: int | None = Field(
        None, ge=1, description="with backup = best: the maximum is over so many items, those that the log most likely chooses there; unset: over all"
    )
    rewards: dict[str, float] = Field(
        default_factory=dict, description="factor of a step's reward, by the type of its response, or, where it has none, its own; 1 unless given"
    )
    user_features: list[str] = Field(
        default_factory=list, description="columns of gold.user_features, numbers, that a state has, as they stood on the eve of its day"
    )
    target_rate: float = Field(0.01, gt=0, le=1, description="share of the online net that the target net takes over each step")
    policies: dict[str, PolicySettings] = Field(
        default_factory=dict, description="several policies of one run, by name, with what each has of its own; they share all but their heads"
    )

    @field_validator("policies")
    @classmethod
    def _can_be_told_apart(cls, policies: dict[str, PolicySettings]) -> dict[str, PolicySettings]:
        for name in policies:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"{name!r} becomes part of the name of a policy, so it needs to be of letters, digits, _ and -")
        return policies

    @model_validator(mode="after")
    def _critics_and_support_are_used(self) -> Self:
        if self.lower and (self.critics or 1) == 1:
            critics = f"critics is {self.critics or 'unset'}: set it to 2 or more"
            raise ValueError(f"lower = {self.lower:g} is below the mean of several critics, and {critics}, or leave lower out")
        if self.support and all(train.backup != "best" for train in self._each().values()):
            raise ValueError(f'support = {self.support} bounds the best of backup = "best", which no policy has: set backup, or leave support out')
        return self

    def for_size(self, steps: int, items: int) -> Train:
        """With `batch_steps` and `critics` by the number of steps in the log, and of items to choose from, unless they are set.

        A small log needs many updates, and of a large one larger batches take less time. What one network makes of a small log depends much on its
        seed, the mean of several less so; of a large log it depends less, and several take long, as they do where steps are held against many items.
        """
        few = max(16, steps // 8)  # or a night of a small log would be an update or two
        by_size = {"batch_steps": min(max(steps // 1000, min(few, 512)), 8192), "critics": 3 if steps <= 500_000 and steps * items <= 1e9 else 1}
        return self._unless_set(by_size)

    def each(self, has_refusals: bool) -> dict[str, Train]:
        """Each policy of the run by name, as `for_log`; one without a name, unless `policies` names some."""
        return {name: train.for_log(has_refusals) for name, train in self._each().items()}

    def _each(self) -> dict[str, Train]:
        named = {name: self.model_copy(update=own.model_dump(exclude_none=True) | {"policies": {}}) for name, own in self.policies.items()}
        return named or {"": self}

    def for_log(self, has_refusals: bool) -> Train:
        """With `alpha` and `step_id_dropout` by the kind of log, unless they are set.

        A log that tells what was shown in vain says itself what is bad. Where it tells of interactions alone, nothing is known of all other
        items, and what is not close to the log is a guess. There each item of a history was the user's choice, which says more than its content,
        once the item is known; what was shown to him was not.
        """
        return self._unless_set({"alpha": 0.0, "step_id_dropout": 0.8} if has_refusals else {"alpha": 50.0})

    def _unless_set(self, values: Mapping[str, Any]) -> Train:
        return self.model_copy(update={name: value for name, value in values.items() if getattr(self, name) is None})


class Evaluate(_Section):
    """How policies are judged."""

    holdout_days: int = Field(1, ge=1, description="last days, kept from training, on which policies are judged")
    cutoff: int = Field(10, ge=1, description="k of recall@k and NDCG@k")
    bootstrap: int = Field(200, ge=20, description="resamples of users behind an interval")
    repeats: bool = Field(True, description="an item that the user has met already may be recommended again")
    max_steps: int = Field(50_000, ge=1, description="steps judged; where the held-out days have more, users are drawn at random")


class Gate(_Section):
    """What a challenger needs before it may be served."""

    min_users: int = Field(20, ge=1, description="users with a reward on the held-out days")
    min_effective_sample_size: float = Field(50.0, ge=0, description="of the off-policy estimate, where propensities are logged")
    min_overlap: float = Field(0.2, ge=0, le=1, description="share of its choices that the log could have made, where propensities are logged")
    ranking_margin: float = Field(0.05, ge=0, le=1, description="part of the champion's NDCG that the lower end may fall short by")
    value_margin: float = Field(0.2, ge=0, le=1, description="part of the champion's value that the lower end may fall short by")


class Score(_Section):
    """The lists that come out."""

    top_n: int = Field(20, ge=1)
    active_days: int = Field(30, ge=1, description="users active within this many days get a list")
    exploration: float = Field(0.02, ge=0, lt=1, description="chance, rank by rank, of a uniform draw instead of the best item")
    as_read: bool = Field(
        True, description="each place is chosen as if those above it had been answered, where the log tells what was shown in vain; false: top_n times as fast"
    )


class S3(_Section):
    """The object store, where the landing folder or the lake lies in one. Credentials are no settings: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY."""

    endpoint: str = Field("", pattern=r"^(https?://[^/\s]+)?$", description="http(s)://host:port of a store of one's own; else AWS's")
    region: str = Field("", description="else AWS_REGION, AWS_DEFAULT_REGION, us-east-1")


class Spark(_Section):
    """The engine."""

    cores: int = Field(2, ge=1)
    memory: str = Field("2g", pattern=r"^\d+[kmgt]$", description="heap of the driver, which on one machine does all the work")
    java_options: str = Field("", description="more options of the JVM; on small days -XX:TieredStopAtLevel=1 halves the CPU time of a step")


class DuckDB(_Section):
    """What reads, types and deduplicates the log, and audits."""

    threads: int = Field(2, ge=1)
    memory: str = Field("2GB", pattern=r"^\d+(\.\d+)?[KMGT]i?B$", description="limit; what does not fit is spilled to the temporary folder")


def _default_event_types() -> dict[str, EventType]:
    return {
        "impression": EventType(step=True),
        "click": EventType(reward="1", maturity_days=1),
        "purchase": EventType(reward="5", maturity_days=3),
    }


class Settings(BaseSettings):
    """Everything that can be configured."""

    model_config = SettingsConfigDict(env_prefix="NIGHTJAR_", env_nested_delimiter="__", extra="forbid", frozen=True)

    landing: Landing = Landing()
    lake: Annotated[str, AfterValidator(_is_place)] = Field("lake", description="folder of the Delta tables: a path, or s3://bucket/folder")
    event_types: dict[str, EventType] = Field(default_factory=_default_event_types, description="types of the log; steps first")
    episodes: Episodes = Episodes()
    limits: Limits = Limits()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    score: Score = Score()
    duckdb: DuckDB = DuckDB()
    s3: S3 = S3()
    spark: Spark = Spark()

    @field_validator("event_types")
    @classmethod
    def _can_be_columns(cls, event_types: dict[str, EventType]) -> dict[str, EventType]:
        for name in event_types:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} becomes the name of a column, so it needs to be of letters, digits and _, a letter first")
        return event_types

    @model_validator(mode="after")
    def _has_steps(self) -> Self:
        if not any(event_type.step for event_type in self.event_types.values()):
            raise ValueError("event_types: at least one type needs `step = true`; nothing can be learnt from a log without actions")
        return self

    @model_validator(mode="after")
    def _renames_to_what_there_is(self) -> Self:
        if unknown := sorted(set(self.landing.event_types.values()) - self.event_types.keys()):
            raise ValueError(f"landing.event_types: {', '.join(unknown)} is not among event_types, which has {', '.join(self.event_types)}")
        return self

    @model_validator(mode="after")
    def _weighs_what_there_is(self) -> Self:
        for train in self.train.each(False).values():
            if unknown := sorted(train.rewards.keys() - self.event_types.keys()):
                raise ValueError(f"train.rewards: {', '.join(unknown)} is not among event_types, which has {', '.join(self.event_types)}")
        return self

    @model_validator(mode="after")
    def _knows_of_users_what_there_is(self) -> Self:
        features = {feature.name: feature for feature in declared_of("user", tuple(self.event_types))}
        wanted = self.train.user_features
        for name in wanted:
            if name not in features:
                near = difflib.get_close_matches(name, features, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ValueError(f"train.user_features: {name!r} is no column of gold.user_features; {hint}`nightjar features list` tells them")
            if not features[name].is_number:
                raise ValueError(f"train.user_features: {name} is of type {features[name].type}, and a state takes numbers alone (double)")
        if len({*wanted}) < len(wanted):
            raise ValueError(f"train.user_features: {', '.join(sorted({name for name in wanted if wanted.count(name) > 1}))} is there more than once")
        return self

    @property
    def step_types(self) -> tuple[str, ...]:
        """Event types that are steps."""
        return tuple(name for name, event_type in self.event_types.items() if event_type.step)

    def rules(self, made: str) -> str:
        """Hash of what decides, beside its inputs, how a step of `features_daily`, or a table of features, is made; what was made by other rules is stale."""
        deciding: dict[str, Any] = {
            "bronze": [sorted(self.event_types), self.landing.fields, self.landing.event_types],
            "transitions": [
                [(name, event_type.model_dump()) for name, event_type in self.event_types.items()],
                self.episodes.model_dump(),
                self.limits.model_dump(),
            ],
            "gold.set_aside": self.limits.model_dump(),
        }
        for entity in ENTITIES:
            features, partials = declared_of(entity, tuple(self.event_types)), f"gold.{entity}_partials"
            deciding[partials] = [self.limits.model_dump(), met_types(features), [(column.name, column.type) for column in TABLES[partials].columns]]
            deciding[f"gold.{entity}_features"] = [deciding[partials], [repr(feature) for feature in features]]
        return hashlib.sha256(json.dumps(deciding.get(made), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def landing_path(self) -> Location:
        return location(self.landing.folder, self.s3)

    @property
    def lake_path(self) -> Location:
        return location(self.lake, self.s3)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_path())


def elsewhere(config: Path) -> dict[str, str]:
    """The environment, pointing to other settings: what names the landing folder and the lake of the user's own is left out."""
    own = {CONFIG_VARIABLE, "NIGHTJAR_LANDING__FOLDER", "NIGHTJAR_LAKE"}
    return {name: value for name, value in os.environ.items() if name not in own} | {CONFIG_VARIABLE: str(config)}


def config_path() -> Path:
    """The settings file in force: `$NIGHTJAR_CONFIG`, else `nightjar.toml` of the current folder."""
    return Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG)).absolute()


def load_settings(**overrides: Any) -> Settings:
    """Read the settings in force. Raises BadSettings, which lists each value that does not fit."""
    path = config_path()
    if CONFIG_VARIABLE in os.environ and not path.is_file():
        raise BadSettings(f"There is no settings file at {path}. Give one with --config or {CONFIG_VARIABLE}.")
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise BadSettings("\n".join([f"Settings do not fit ({path} and NIGHTJAR_*):", *map(_told, error.errors())])) from error
    except ValueError as error:
        raise BadSettings(f"{path} is no TOML: {error}") from error
    landing = settings.landing.model_copy(update={"folder": _beside(path, settings.landing.folder)})
    return settings.model_copy(update={"landing": landing, "lake": _beside(path, settings.lake)})


def _told(problem: ErrorDetails) -> str:
    """One line; where settings do not fit each other the message says which, and what is given is all of them."""
    message = problem["msg"].removeprefix("Value error, ")
    place, given = ".".join(map(str, problem["loc"])), problem["input"]
    return f"  {place}{': ' if place else ''}{message}{'' if isinstance(given, dict) else f', got {given!r}'}"


def _beside(config: Path, place: str) -> str:
    return place if place.startswith(SCHEME) else str(config.parent / place)
