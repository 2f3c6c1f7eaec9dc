"""`[watchdog]`: how GPUs and jobs are watched, and who may be stopped."""

import re
from typing import Final, Literal

from pydantic import Field, field_validator

from bursar.daemon._accounts import check_name, split_path
from bursar.daemon._model import DurationMs, Section, right
from bursar.watchdog.attribution import ContainerRule
from bursar.watchdog.settings import Settings

PATTERNS_MAX: Final = 100
_PATTERN_CHARACTERS_MAX: Final = 256
_POD_UID: Final = "0" * 36
_CONTAINER_ID: Final = "0" * 12
_PLACEHOLDER: Final = re.compile(r"\{(?!pod\}|container\})[^}]*\}?")


def _checked_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"it is not a regular expression: {error}") from None
    return value


class ContainerConfig(Section):
    """Maps containers to an account, by their cgroup."""

    pattern: str = Field(
        min_length=1,
        max_length=_PATTERN_CHARACTERS_MAX,
        description="a regular expression that is searched for in the container's cgroup path",
        json_schema_extra=right('write one such as "kubepods" or "docker"'),
    )
    account: str = Field(
        min_length=1,
        max_length=1024,
        description="the account that pays; {pod} and {container} stand for their ids",
        json_schema_extra=right('write a path such as "k8s/pod-{pod}"'),
    )

    @field_validator("pattern")
    @classmethod
    def _pattern(cls, value: str) -> str:
        return _checked_pattern(value)

    @field_validator("account")
    @classmethod
    def _account(cls, value: str) -> str:
        if unknown := _PLACEHOLDER.search(value):
            raise ValueError(
                f"{unknown.group()} stands for nothing; write {{pod}} or {{container}}"
            )
        for name in split_path(value):
            check_name(name.replace("{pod}", _POD_UID).replace("{container}", _CONTAINER_ID))
        return value


class WatchdogSection(Section):
    """`[watchdog]`: how GPUs and jobs are watched, and who may be stopped."""

    mode: Literal["off", "observe", "enforce"] = Field(
        default="observe",
        description="who is stopped at a hard limit: nobody, jobs to be enforced, or every job",
        json_schema_extra=right('write "observe", "enforce", or "off" for no watchdog at all'),
    )
    period: DurationMs = Field(
        default=1_000,
        ge=100,
        le=10_000,
        description="how often the GPUs are sampled",
        json_schema_extra=right('write from "100ms" to "10s"'),
    )
    gpu_time: Literal["allocated", "busy"] = Field(
        default="allocated",
        description="what is charged as gpu_ms: how long a context is held, or is busy",
        json_schema_extra=right('write "allocated" or "busy"'),
    )
    term_grace: DurationMs = Field(
        default=10_000,
        ge=0,
        le=300_000,
        description="from SIGTERM to SIGKILL, where a job does not say",
        json_schema_extra=right('write from "0s" to "300s"'),
    )
    vram_patience: DurationMs = Field(
        default=3_000,
        ge=0,
        le=60_000,
        description="how long VRAM has to be over its limit before the job is stopped",
        json_schema_extra=right('write from "0s" to "60s"'),
    )
    verify_timeout: DurationMs = Field(
        default=30_000,
        ge=1_000,
        le=600_000,
        description="how long VRAM may take to come back before it is quarantined",
        json_schema_extra=right('write from "1s" to "10m"'),
    )
    unkillable_after: DurationMs = Field(
        default=60_000,
        ge=1_000,
        le=600_000,
        description="how long a process may survive SIGKILL before it is given up",
        json_schema_extra=right('write from "1s" to "10m"'),
    )
    settle: DurationMs = Field(
        default=30_000,
        ge=0,
        le=600_000,
        description="how long after the start nobody is stopped for what they use of GPUs",
        json_schema_extra=right('write from "0s" to "10m"'),
    )
    protect: tuple[str, ...] = Field(
        default=(),
        max_length=PATTERNS_MAX,
        strict=False,
        description="programs that are never signalled, beyond the built-in ones",
        json_schema_extra=right('write regular expressions, such as ["my-server"]'),
    )
    other_users: bool = Field(
        default=False,
        description="whether a process may be signalled that runs as another user than its job",
        json_schema_extra=right("write true or false"),
    )
    signal_containers: bool = Field(
        default=False,
        description="whether processes of containers are signalled",
        json_schema_extra=right("write true or false"),
    )
    max_incidents_per_account: int = Field(
        default=3,
        ge=1,
        le=1_000,
        description="how many times in 10 min an account is stopped for what it uses of GPUs",
        json_schema_extra=right("write an integer from 1 to 1_000"),
    )
    max_incidents: int = Field(
        default=10,
        ge=1,
        le=1_000,
        description="the same, for all accounts together",
        json_schema_extra=right("write an integer from 1 to 1_000"),
    )
    containers: tuple[ContainerConfig, ...] = Field(
        default=(),
        max_length=PATTERNS_MAX,
        strict=False,
        description="what maps containers to accounts; the first that fits counts",
        json_schema_extra=right("write at most 100 [[watchdog.containers]] tables"),
    )

    @field_validator("protect")
    @classmethod
    def _protect(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            _checked_pattern(pattern)
        return value

    def to_settings(self) -> Settings:
        """The same as plain values."""
        return Settings(
            enforce=self.mode == "enforce",
            period_ms=self.period,
            term_grace_ms=self.term_grace,
            vram_patience_ms=self.vram_patience,
            verify_ms=self.verify_timeout,
            unkillable_ms=self.unkillable_after,
            settle_ms=self.settle,
            gpu_time=self.gpu_time,
            protect=self.protect,
            other_users=self.other_users,
            signal_containers=self.signal_containers,
            containers=tuple(
                ContainerRule(re.compile(one.pattern), one.account) for one in self.containers
            ),
            incidents_per_account=self.max_incidents_per_account,
            incidents_per_host=self.max_incidents,
        )
