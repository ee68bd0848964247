"""Settings from flags, the environment, `nocturne.toml` and defaults, and the errors for wrong ones."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from models.states import Quantization

DEFAULT_MODEL = "Qwen/Qwen2-0.5B"
DEFAULT_PRIORITY = 5
NUM_PRIORITIES = 10  # 0 … 9, 9 goes first
CONFIG_FILE = "nocturne.toml"  # in the working directory

#: The options whose names are not their settings'.
OPTION_OF = {"grace_seconds": "grace", "worker_name": "name"}


class Settings(BaseSettings):
    """The settings of producer and worker, one field for each.

    A flag wins over the environment variable `NOCTURNE_<FIELD>`, that over `nocturne.toml` in the working directory,
    that over the default.
    """

    model_config = SettingsConfigDict(env_prefix="NOCTURNE_", extra="ignore", toml_file=CONFIG_FILE)

    model: str = DEFAULT_MODEL  # hub id or folder
    database: str | None = None  # SQLAlchemy URL; None: <home>/nocturne.db
    broker: str | None = None  # Redis URL; None: the embedded server
    home: Path = Path(".nocturne")  # folder of the embedded database and broker

    device: str = "auto"  # auto, cpu, cuda:0 …
    # A description is the help of the option of that name, in `worker start` and in `producer run` alike.
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="bfloat16, float16, float32; default: what the device has"
    )
    quantize: Quantization = Field(
        default="none", description="int8: faster on a CPU, and other answers; default: none"
    )
    max_num_seqs: int = Field(default=64, ge=1, description="sequences that decode side by side")
    kv_memory: float | None = Field(
        default=None, gt=0, description="GiB for the KV cache; default: a share of the free"
    )
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)  # share of a GPU for weights, step and KV cache
    deterministic: bool = Field(default=False, description="batch-invariant answers, on a GPU too; slower there")
    prefill_tokens: int = Field(default=2048, ge=16)  # prompt tokens in one step, at most
    num_threads: int | None = Field(default=None, ge=1)  # CPU threads of the engine; None: torch's choice
    worker_name: str | None = None  # None: host name and device
    concurrency: int = Field(default=32, ge=1)  # chunks in flight at once

    max_attempts: int = Field(default=3, ge=1)  # processes a job may take down before it fails
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
    def database_url(self) -> str:
        """The URL of the database: the given one, or SQLite in the home folder."""
        return self.database or f"sqlite:///{(self.home / 'nocturne.db').absolute()}"


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
            source = f"--{OPTION_OF.get(name, name).replace('_', '-')}"
        raise InvalidSettings(f"{source}: {first['msg'].lower()}, got {first['input']!r}") from error


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
