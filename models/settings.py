"""Settings from flags, the environment, `nocturne.toml` and defaults, and the errors for wrong ones."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from models.config_file import ConfigFileProblem, config_path, read_config_file, read_value
from models.database.deadlines import Deadlines
from models.engine_options import EngineOptions
from models.model_name import canonical_model
from models.redacted import check_url

DEFAULT_MODEL = "Qwen/Qwen2-0.5B"
DEFAULT_CONCURRENCY = 32
ENVIRONMENT_PREFIX = "NOCTURNE_"

#: Separates the URL of a broker from those of its alternates.
SEVERAL_BROKERS = re.compile(r";(?=[a-z+]+://)")

#: The settings that may hold passwords.
URLS = frozenset({"database", "read_database", "broker"})

#: Variables of the compose file, which are no settings and are spelled nearly like one.
OTHER_VARIABLES = frozenset({"DATA"})

#: The options whose names are not their settings'.
OPTION_OF = {"grace_seconds": "grace", "worker_name": "name"}


class Settings(EngineOptions, BaseSettings):
    """The settings of producer and worker, one field for each.

    A flag wins over the environment variable `NOCTURNE_<FIELD>`, that over the file that `NOCTURNE_<FIELD>_FILE` names,
    that over `nocturne.toml` in the working directory, that over the default.
    """

    #: An empty variable counts as none, as shells and compose files mean it.
    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    model: str = DEFAULT_MODEL  # hub id or folder
    database: str | None = None  # SQLAlchemy URL; None: <home>/nocturne.db
    read_database: str | None = None  # the URL that commands read by; None: that of the database
    broker: str | None = None  # Redis URL; None: the embedded server
    home: Path = Path(".nocturne")  # folder of the embedded database and broker

    worker_name: str | None = None  # None: host name and device
    concurrency: int = Field(default=DEFAULT_CONCURRENCY, ge=1)  # chunks in flight at once

    max_attempts: int = Field(default=3, ge=1)  # processes that may die with a job before it runs alone
    engine_timeout: float = Field(
        default=300.0,
        gt=0,
        description="an engine without a step, or without the text of an answer, for so many seconds is killed",
    )
    load_timeout: float | None = Field(
        default=None,
        gt=0,
        description="a load that stands still for so many seconds is ended; default: never",
    )
    lease_seconds: float = Field(default=30.0, gt=0)  # a worker silent for this long loses its jobs
    visibility_timeout: float = Field(default=3600.0, gt=0)  # Redis redelivers an unacknowledged message after it
    heartbeat_seconds: float = Field(default=2.0, gt=0)  # between two heartbeats of a worker
    parent_pid: int | None = None  # the `producer run` that started this worker, which ends with it
    grace_seconds: float = Field(default=30.0, ge=0, description="seconds for running jobs to end after SIGTERM")

    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="port of an endpoint for Prometheus, each further device the next one; default: none",
    )
    metrics_host: str = Field(default="127.0.0.1", description="address of that endpoint; default: 127.0.0.1")
    log_format: Literal["text", "json"] = Field(
        default="text", description="text, or json: one object per line; default: text"
    )

    connect_timeout: float = Field(default=10.0, gt=0)  # seconds to reach the database or Redis
    redis_timeout: float = Field(default=10.0, gt=0)  # seconds without an answer of Redis
    claim_timeout: float = Field(default=30.0, gt=0)  # seconds without an answer to a claim
    commit_timeout: float = Field(default=60.0, gt=0)  # … to a statement that commits results
    copy_timeout: float = Field(default=60.0, gt=0)  # … to a part of a COPY
    query_timeout: float = Field(default=30.0, gt=0)  # … to any other statement of a worker
    command_timeout: float = Field(default=600.0, gt=0)  # … to a statement of a producer's command
    lock_timeout: float = Field(default=15.0, gt=0)  # seconds that a worker's statement waits for a lock

    @field_validator("home", mode="before")
    @classmethod
    def _check_path(cls, home: Any) -> Any:
        if not isinstance(home, str | Path) or home == "":  # the latter would be the working directory
            raise ValueError("must be a path")
        return home

    @field_validator("home")
    @classmethod
    def _check_home(cls, home: Path) -> Path:
        try:
            str(home).encode()
        except UnicodeEncodeError as error:
            raise ValueError("must be a path in UTF-8") from error
        return home

    @field_validator("database", "read_database")
    @classmethod
    def _check_database(cls, url: str | None) -> str | None:
        if url == "":  # of a script's unset variable; the default would be another database than is meant
            check_url(url, "sqlite:///nocturne.db")
        return url

    @field_validator("broker")
    @classmethod
    def _check_broker(cls, url: str | None) -> str | None:
        for each in () if url is None else SEVERAL_BROKERS.split(url):
            check_url(each, "redis://host:6379/0")
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources in the order of their precedence."""
        secrets, file = InitSettingsSource(settings_cls, _secrets()), InitSettingsSource(settings_cls, _file_values())
        return init_settings, env_settings, secrets, file

    @property
    def origins(self) -> dict[str, str]:
        """By setting: the option, the environment variable or the file that its value comes from; none for defaults."""
        return self._origins

    @property
    def engine_options(self) -> EngineOptions:
        """The part that an engine process is started with."""
        given = self.model_dump(include=set(EngineOptions.model_fields))
        return EngineOptions(**{**given, "model": canonical_model(self.model)})

    def name_of_worker(self, process_id: int) -> str:
        """The name of the worker in that process: the given one, or one of its own."""
        return self.worker_name or f"{platform.node()}-{self.device}-{process_id}"

    @property
    def deadlines(self) -> Deadlines:
        """The deadlines of calls to the database."""
        return Deadlines(**{each.name: getattr(self, f"{each.name}_timeout") for each in fields(Deadlines)})

    @property
    def is_embedded(self) -> bool:
        """Whether neither a broker nor a database is named: all is in the home folder."""
        return self.broker is None and self.database is None and self.read_database is None

    @property
    def embedded_database(self) -> Path:
        """The SQLite file in the home folder."""
        return self.home / "nocturne.db"

    @property
    def database_url(self) -> str:
        """The URL of the database: the given one, or that of the embedded one."""
        from sqlalchemy import URL

        path = str(self.embedded_database.absolute())
        return self.database or URL.create("sqlite", database=path).render_as_string(hide_password=False)


def option_of(setting: str) -> str:
    """The name of the option that sets it, without dashes in front."""
    return OPTION_OF.get(setting, setting).replace("_", "-")


def help_of(setting: str) -> str:
    """The help of the option that sets it."""
    return Settings.model_fields[setting].description or ""


def bounds_of(setting: str) -> dict[str, Any]:
    """The least and the largest value of its option; a bound that is itself excluded is checked with the settings."""
    found = {"min": "ge", "max": "le"}
    metadata = Settings.model_fields[setting].metadata
    return {name: getattr(each, key) for name, key in found.items() for each in metadata if hasattr(each, key)}


class InvalidSettings(Exception):
    """A setting has a wrong value; the text names the setting and where its value comes from."""


def read_settings(**flags: Any) -> Settings:
    """Settings with the given flags on top of the environment and the file. Raises `InvalidSettings`."""
    given = {name: value for name, value in flags.items() if value is not None}
    _check_variables()
    try:
        settings = Settings(**given)
        settings._origins.update((name, _origin(name, given)) for name in settings.model_fields_set)
    except ConfigFileProblem as problem:
        raise InvalidSettings(str(problem)) from problem
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        said = first["msg"].removeprefix("Value error, ")
        origin = _origin(name, given)
        place = f"{name} in {origin}" if origin == str(config_path()) else origin
        if name in URLS:  # their own checks word the problem without the value
            raise InvalidSettings(f"{place}: {said}") from error
        raise InvalidSettings(f"{place}: {said.lower()}, got {first['input']!r}") from error
    return settings


def _origin(name: str, flags: dict[str, Any]) -> str:
    """The place of a setting's value, as a person finds it."""
    if name in flags:
        return f"--{option_of(name)}"
    variable = f"{ENVIRONMENT_PREFIX}{name.upper()}"
    for each in (variable, f"{variable}_FILE"):
        if any(given.upper() == each and value for given, value in os.environ.items()):
            return f"{each} of the environment"
    return str(config_path())


def _check_variables() -> None:
    """Raises `InvalidSettings` for a variable that is nearly a setting's: a night would go by without it."""
    known = {name.upper() for name in Settings.model_fields}
    for variable, value in os.environ.items():
        name = variable.upper().removeprefix(ENVIRONMENT_PREFIX)
        if not value or name == variable.upper() or name.removesuffix("_FILE") in known | OTHER_VARIABLES:
            continue
        for near in get_close_matches(name.removesuffix("_FILE"), known, n=1, cutoff=0.8):
            meant = f"{ENVIRONMENT_PREFIX}{near}" + "_FILE" * name.endswith("_FILE")
            raise InvalidSettings(f"{variable} of the environment is not a setting; did you mean {meant}?")


def _secrets() -> dict[str, Any]:
    """The settings in files that the environment names. Raises `ConfigFileProblem`."""
    variables = {name: f"{ENVIRONMENT_PREFIX}{name.upper()}_FILE" for name in Settings.model_fields}
    return {name: read_value(each, os.environ[each]) for name, each in variables.items() if os.environ.get(each)}


def _file_values() -> dict[str, Any]:
    """The file's settings. Raises `ConfigFileProblem`, for an unknown one too."""
    given = read_config_file()
    for name in given:
        if name not in Settings.model_fields:
            near = get_close_matches(name, Settings.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(Settings.model_fields)}"
            raise ConfigFileProblem(f"{config_path()}: {name} is not a setting; {hint}")
        # To Python a bool is an int too.
        if isinstance(given[name], bool) and Settings.model_fields[name].annotation is not bool:
            raise ConfigFileProblem(f"{config_path()}: {name} is {str(given[name]).lower()}, and takes another value")
    return given
