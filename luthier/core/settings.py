"""The one settings tree, read once at start: `luthier.toml`, then `LUTHIER_SECTION__NAME` variables.

Defaults make `luthier serve` work on an empty machine. Parts of the house receive their own section, never the tree.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from luthier.core.errors import InvalidParameter


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSection(Section):
    host: str = Field(default="127.0.0.1", description="Address to listen on; loopback unless told otherwise.")
    port: int = Field(default=8321, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "luthier",
        description="Folder of everything Luthier keeps on this machine.",
    )
    upload_limit_bytes: int = Field(
        default=512 * 1024 * 1024, ge=1, description="Largest file that one request may upload."
    )
    upload_total_limit_bytes: int = Field(
        default=10 * 1024**3, ge=1, description="Largest file that may be uploaded in parts."
    )
    upload_expires_after_seconds: float = Field(
        default=3600, gt=0, description="An upload in parts that gets no part for so long expires."
    )

    @field_validator("data")
    @classmethod
    def _absolute(cls, data: Path) -> Path:
        return data.expanduser().absolute()


class DatabaseSection(Section):
    url: str | None = Field(default=None, description="SQLAlchemy URL; absent: an SQLite file in the data folder.")


class StorageSection(Section):
    url: str | None = Field(
        default=None, description="file://, s3://, gs:// or az:// URL; absent: a folder in the data folder."
    )


class DataSection(Section):
    image_hosts: tuple[str, ...] = Field(
        default=(),
        description='Hosts that images of rows may be fetched from, as names or *.example.com; "*" is any public one.',
    )
    advised_rows: int | None = Field(
        default=None,
        ge=0,
        description="A file with fewer rows is warned about; absent: 1,000 of chat, 100 of other kinds.",
    )
    check_memory_bytes: int = Field(
        default=4 * 1024**3, ge=256 * 1024**2, description="Address space of a process that works on a file."
    )
    check_seconds: float = Field(
        default=120, gt=0, description="Time that work on a file may take, beside a second for every two megabytes."
    )


class ExecutorSection(Section):
    name: str = Field(default="local", description="Where processes are started: a plugin of luthier.executors.")
    cores: int | None = Field(
        default=None, ge=1, description="Cores to hand out, the first of those that this process may use; absent: all."
    )


class ModelsSection(Section):
    embedded: bool = Field(
        default=True, description="Bring the embedded model when the server starts and has not got it yet."
    )


class TrainingSection(Section):
    python: str | None = Field(
        default=None, description="Interpreter that runs the trainer; absent: the one that runs Luthier."
    )
    attempts: int = Field(
        default=3, ge=1, description="Tries in all at a run that is lost; each goes on from the last checkpoint."
    )


class ServingSection(Section):
    python: str | None = Field(
        default=None, description="Interpreter that runs replicas; absent: the one that runs Luthier."
    )
    backend: str = Field(default="builtin", description="How tokens are made: a plugin of luthier.serving.backends.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of that backend, by name.")
    adapters_per_replica: int = Field(
        default=32, ge=1, description="Adapters kept on a replica; the coldest goes first."
    )
    listen: str = Field(
        default="unix",
        pattern=r"^(unix|tcp://[^/@:\s]+|tcp://\[[0-9a-fA-F:.]+\])$",
        description="How a replica is reached: unix, by a socket of this machine; or tcp://HOST, by a port of that address.",
    )
    cache_bytes: int | None = Field(
        default=None,
        ge=1_000_000,
        description="For the keys and values of all answers of a replica; absent: 1 GiB on a CPU, most of what is free on a GPU.",
    )
    idle_after_seconds: float = Field(default=1800, gt=0, description="A replica unused for so long is stopped.")
    grace_seconds: float = Field(
        default=30, ge=0, description="How long answers may go on when their deployment is deleted."
    )
    ready_within_seconds: float = Field(
        default=120, gt=0, description="How long a request waits for a replica that starts."
    )
    concurrency: int = Field(default=512, ge=1, description="Answers that are made at a time.")
    concurrency_per_project: int = Field(
        default=256, ge=1, description="Answers of one project that are made at a time; more of them wait in line."
    )
    waiting: int = Field(default=4096, ge=0, description="Answers that wait in line; more are refused with status 503.")
    waiting_per_project: int = Field(
        default=1024, ge=0, description="Answers of one project that wait in line; more are refused with status 429."
    )
    answer_within_seconds: float = Field(
        default=600, gt=0, description="How long an answer may take, with its time in line; then it ends in an error."
    )
    stalled_after_seconds: float = Field(
        default=60, gt=0, description="A stream of which nothing is read for so long is ended."
    )


class LogSection(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    json_lines: bool = False


class Settings(BaseSettings):
    """The whole tree. `Settings.read()` is the one way to get it from files and the environment."""

    model_config = SettingsConfigDict(
        env_prefix="LUTHIER_", env_nested_delimiter="__", toml_file="luthier.toml", extra="forbid", frozen=True
    )

    server: ServerSection = Field(default_factory=ServerSection)
    database: DatabaseSection = Field(default_factory=DatabaseSection)
    storage: StorageSection = Field(default_factory=StorageSection)
    data: DataSection = Field(default_factory=DataSection)
    executor: ExecutorSection = Field(default_factory=ExecutorSection)
    models: ModelsSection = Field(default_factory=ModelsSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    serving: ServingSection = Field(default_factory=ServingSection)
    logs: LogSection = Field(default_factory=LogSection)
    bootstrap_key: SecretStr | None = Field(
        None, description="The first API key, as <id>.<secret>; absent: one is made and printed once."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @classmethod
    def read(cls, **flags: Any) -> Settings:
        """Read the tree; `flags` (nested dictionaries, e.g. server={"port": 1}) win over everything.

        Raises InvalidParameter that names every wrong setting.
        """
        try:
            return cls(**flags)
        except tomllib.TOMLDecodeError as wrong:
            raise InvalidParameter("luthier.toml", f"is not TOML: {wrong}") from wrong
        except SettingsError as wrong:  # a variable that should hold a whole section, as JSON, and does not
            raise InvalidParameter("settings", str(wrong), hint="Set one value as LUTHIER_SECTION__NAME.") from wrong
        except ValidationError as wrong:
            faults = [(".".join(str(part) for part in e["loc"]) or "settings", e["msg"]) for e in wrong.errors()]
            raise InvalidParameter(
                faults[0][0],
                "; ".join(f"{message}" if n == 0 else f"{name}: {message}" for n, (name, message) in enumerate(faults)),
                hint="See `luthier config` for every setting and where its value comes from.",
            ) from wrong

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite+aiosqlite:///{self.server.data / 'luthier.db'}"

    @property
    def storage_url(self) -> str:
        return self.storage.url or (self.server.data / "objects").as_uri()

    @property
    def cores(self) -> int:
        return self.executor.cores or len(
            os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        )
