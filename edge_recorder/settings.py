"""
The settings: one TOML file, overridden by `EDGE_RECORDER_<SECTION>__<KEY>` variables.

A section is required only by the commands that use it, so a recorder runs with nothing but `node.data_dir`. An unknown
section, key or variable is an error: a misspelt setting that is silently ignored loses recordings.
`config.example.toml` is generated from this file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from edge_recorder.errors import SettingsError

ENV_PREFIX = "EDGE_RECORDER_"
SECRETS = frozenset({("central", "dsn")})  # may be given as the path of a file, in a variable that ends in _FILE
MIB = 1024 * 1024
LOWEST_RATE = 1000  # Hz


def _store_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        return url.rstrip("/")
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/") and parts.path.strip("/"):
        return url.rstrip("/")
    raise ValueError('expected "s3://bucket/prefix" or "file:///directory"')


def _home_expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None


def _mixed_rate(rate: int) -> int:
    if 0 < rate < LOWEST_RATE:
        raise ValueError(f"expected 0, or {LOWEST_RATE} Hz and more")
    return rate


class Section(BaseModel):
    """What all sections share: frozen, and no unknown key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Node(Section):
    """This node: where it keeps what it records, and what it is called."""

    data_dir: Annotated[Path, AfterValidator(_home_expanded)] = Field(
        description="where recordings and the catalog are kept; on a local file system"
    )
    label: str = Field(default="", description="a name for people; empty: the host's name")
    tenant: str | None = Field(default=None, description="the tenant of calls that name none")


class Capture(Section):
    """How audio is taken to disk."""

    flush_interval: float = Field(default=0.4, gt=0, le=0.5, description="seconds until audio survives SIGKILL")
    fsync_interval: float = Field(default=1.0, gt=0, le=60, description="seconds until audio survives power loss")
    late_window: float = Field(
        default=2.0, ge=0.1, le=60, description="seconds after its cut that a segment stays open"
    )
    segmentation: Literal["interval", "turn"] = Field(
        default="interval", description="where segments are cut: by the clock, or where turns begin and end"
    )
    segment_seconds: int = Field(default=30, ge=1, le=300, description="seconds of audio in one segment, at most")
    mixed_rate: Annotated[int, AfterValidator(_mixed_rate)] = Field(
        default=0, ge=0, le=192_000, description="Hz of the mixed track; 0: the highest of its tracks"
    )
    queue_seconds: float = Field(default=30.0, gt=0, description="seconds of audio a call may queue before it is a gap")
    queue_bytes: int = Field(default=256 * MIB, gt=0, description="bytes all calls of a process may queue")


class Disk(Section):
    """What to do as the disk fills."""

    low_water: int = Field(
        default=512 * MIB, ge=0, description="free bytes below which new calls keep facts, not audio"
    )


class Store(Section):
    """Where audio goes: S3, or a directory (a NAS, an air-gapped site)."""

    url: Annotated[str, AfterValidator(_store_url)] = Field(description='"s3://bucket/prefix" or "file:///directory"')
    endpoint_url: str | None = Field(default=None, description="of an S3 other than AWS")
    region: str | None = Field(default=None, description="the bucket's region")
    addressing_style: Literal["auto", "path", "virtual"] = Field(default="auto", description="how the bucket is named")
    ca_bundle: Path | None = Field(default=None, description="a file of certificates to trust instead of the system's")
    format: Literal["flac", "wav"] = Field(default="flac", description="how audio is stored")
    concurrency: int = Field(default=4, ge=1, le=64, description="uploads at once")
    timeout: float = Field(default=60.0, gt=0, description="seconds that one request may take in all")


class Central(Section):
    """The central Postgres."""

    dsn: SecretStr = Field(description="a libpq connection string of a login made by `central add-fleet`")
    batch_rows: int = Field(default=500, ge=1, le=1000, description="changes pushed in one transaction")
    timeout: float = Field(default=30.0, gt=0, description="seconds that one statement may take in all")


class Sync(Section):
    """The agent's rhythm."""

    interval: float = Field(
        default=5.0, gt=0, description="seconds between passes of `sync --watch` when nothing wakes it"
    )
    scan_interval: float = Field(
        default=60.0, gt=0, description="seconds between scans of the spool for what the watcher missed"
    )
    max_backoff: float = Field(
        default=900.0, gt=0, description="the longest wait in seconds before a destination is tried again"
    )
    heartbeat: float = Field(default=60.0, gt=0, description="seconds between reports of health to the centre")


class Log(Section):
    """What the commands log, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least severe line shown"
    )


class Settings(Section):
    """All sections. `store` and `central` are None until they are set."""

    node: Node
    capture: Capture = Capture()
    disk: Disk = Disk()
    store: Store | None = None
    central: Central | None = None
    sync: Sync = Sync()
    log: Log = Log()

    @classmethod
    def load(cls, path: str | Path | None = None, *, environ: Mapping[str, str] = os.environ) -> Self:
        """Read `path` (default: the first of `search_path()` that exists; none needed if the variables say enough).

        Raises:
            SettingsError: The file cannot be read, or a key or variable is unknown, missing or wrong.
        """
        file = Path(path) if path is not None else next((each for each in search_path(environ) if each.exists()), None)
        tables = _read(file) if file is not None else {}
        sources = [str(file)] if file is not None else []
        for section, key, value in _variables(environ):
            table = tables.setdefault(section, {})
            if isinstance(table, dict):  # what is not is refused below
                table[key] = value
            sources = [*sources[:1], "the environment"] if file is not None else ["the environment"]
        return cls.of(tables, source=" and ".join(sources) or "the environment")

    @classmethod
    def of(cls, tables: Mapping[str, Any], *, source: str = "settings") -> Self:
        """Check `tables` (section -> key -> value) and return them as settings.

        Raises:
            SettingsError: A key is unknown, missing or wrong.
        """
        if not isinstance(tables.get("node", {}), Mapping) or not tables.get("node", {}).get("data_dir"):
            raise SettingsError(
                f"{source}: node.data_dir is missing",
                fix="Run `edge-recorder init`, pass --config FILE, or set EDGE_RECORDER_NODE__DATA_DIR",
            )
        try:
            return cls.model_validate(tables)
        except ValidationError as error:
            raise SettingsError(f"{source}: {_explain(error)}", fix="See config.example.toml for every key") from None

    def require_store(self) -> Store:
        if self.store is None:
            raise SettingsError(
                "store.url is not set", fix='Add `[store]` with `url = "s3://bucket/prefix"` or "file:///dir"'
            )
        return self.store

    def require_central(self) -> Central:
        if self.central is None:
            raise SettingsError(
                "central.dsn is not set", fix="Add `[central]` with the DSN that `central add-fleet` printed"
            )
        return self.central


def search_path(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return where a settings file is looked for, first match first."""
    config_home = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME", "/"), ".config")  # noqa: PTH118 (no expansion wanted)
    return [
        Path("config.toml"),
        Path(config_home, "edge-recorder", "config.toml"),
        Path("/etc/edge-recorder/config.toml"),
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}", fix="Pass --config FILE") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}", fix="Correct that line") from None


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (section, key, value) for each of our variables. One that fits no section is kept: it is refused."""
    for name, value in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX):
            continue
        section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if key.endswith("_file") and (section, key.removesuffix("_file")) in SECRETS:
            yield section, key.removesuffix("_file"), _secret(name, value)
        elif not key:
            raise SettingsError(f"unknown variable {name}", fix="Variables are EDGE_RECORDER_<SECTION>__<KEY>")
        else:
            yield section, key, value


def _secret(name: str, path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise SettingsError(
            f"{name}: cannot read {path}: {error.strerror}", fix="Check the path and its permissions"
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{name}: {path} is not text", fix="Write the secret into it as one line") from None


def _explain(error: ValidationError) -> str:
    """Name each wrong key and what is wrong with it; never its value, which may be a secret."""
    return "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg'].lower()}" for each in error.errors())
