"""Settings from flags, the environment, `nocturne.toml` and defaults, and the errors for wrong ones."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from models.engine_options import EngineOptions
from models.model_name import canonical_model

DEFAULT_MODEL = "Qwen/Qwen2-0.5B"
DEFAULT_PRIORITY = 5
DEFAULT_CONCURRENCY = 32
NUM_PRIORITIES = 10  # 0 … 9, 9 goes first
CONFIG_FILE = "nocturne.toml"  # in the working directory

#: The options whose names are not their settings'.
OPTION_OF = {"grace_seconds": "grace", "worker_name": "name"}


class Settings(EngineOptions, BaseSettings):
    """The settings of producer and worker, one field for each.

    A flag wins over the environment variable `NOCTURNE_<FIELD>`, that over `nocturne.toml` in the working directory,
    that over the default.
    """

    model_config = SettingsConfigDict(env_prefix="NOCTURNE_", extra="ignore", toml_file=CONFIG_FILE)

    model: str = DEFAULT_MODEL  # hub id or folder
    database: str | None = None  # SQLAlchemy URL; None: <home>/nocturne.db
    broker: str | None = None  # Redis URL; None: the embedded server
    home: Path = Path(".nocturne")  # folder of the embedded database and broker

    worker_name: str | None = None  # None: host name and device
    concurrency: int = Field(default=DEFAULT_CONCURRENCY, ge=1)  # chunks in flight at once

    max_attempts: int = Field(default=3, ge=1)  # processes that may die with a job before it runs alone
    engine_timeout: float = Field(default=300.0, gt=0)  # an engine without a step for so long is killed
    lease_seconds: float = Field(default=30.0, gt=0)  # a worker silent for this long loses its jobs
    visibility_timeout: float = Field(default=3600.0, gt=0)  # Redis redelivers an unacknowledged message after it
    heartbeat_seconds: float = Field(default=2.0, gt=0)  # between two heartbeats of a worker
    parent_pid: int | None = None  # the `producer run` that started this worker, which ends with it
    grace_seconds: float = Field(default=30.0, ge=0)  # time for running sequences to finish after SIGTERM

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
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def engine_options(self) -> EngineOptions:
        """The part that an engine process is started with."""
        given = self.model_dump(include=set(EngineOptions.model_fields))
        return EngineOptions(**{**given, "model": canonical_model(self.model)})

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


class InvalidSettings(Exception):
    """A setting has a wrong value; the text names the setting and where its value comes from."""


def read_settings(**flags: Any) -> Settings:
    """Settings with the given flags on top of the environment and the file. Raises `InvalidSettings`."""
    _check_config_file()
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        source = f"NOCTURNE_{name.upper()} (or {name} in {CONFIG_FILE})"
        if flags.get(name) is not None:
            source = f"--{option_of(name)}"
        problem = first["msg"].lower().removeprefix("value error, ")
        raise InvalidSettings(f"{source}: {problem}, got {first['input']!r}") from error


def _check_config_file() -> None:
    """Raises `InvalidSettings` for a file that is not TOML or names an unknown setting."""
    path = Path(CONFIG_FILE)
    if not path.is_file():
        return
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path} is not TOML: {error}") from error
    for name in given:
        if name not in Settings.model_fields:
            near = get_close_matches(name, Settings.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(Settings.model_fields)}"
            raise InvalidSettings(f"{path}: {name} is no setting; {hint}")
