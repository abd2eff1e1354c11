"""What the settings' classes say of themselves, as `config.example.toml` and as the page docs/settings.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from edge_recorder.settings import ENV_PREFIX, SECRETS, Section, Settings

MADE = "Made from edge_recorder/settings.py by `make generate`"
SAMPLES = {
    ("node", "data_dir"): "/var/lib/edge-recorder",
    ("store", "url"): "s3://bucket/prefix",
    ("central", "dsn"): "postgresql://user:password@host:5432/database",
}


def toml(data_dir: Path | None = None) -> str:
    """Return a settings file that sets `data_dir` alone, and shows every other key with its default."""
    head = f"# Settings of edge-recorder. A line without # is set; the others show the defaults.\n# {MADE}.\n"
    return head + "".join(_section(name, kind, data_dir) for name, kind in sections())


def page() -> str:
    """Return docs/settings.md."""
    head = f"""<!-- {MADE}: do not edit. -->
# Settings

One TOML file: `--config FILE`, else the first of `./config.toml`, `$XDG_CONFIG_HOME/edge-recorder/config.toml` and
`/etc/edge-recorder/config.toml`. A variable `{ENV_PREFIX}<SECTION>__<KEY>` overrides a key of it
(`{ENV_PREFIX}STORE__URL`); for a secret, `{ENV_PREFIX}CENTRAL__DSN_FILE` names a file that holds it. An unknown
section, key or variable is an error. A recorder needs `[node]` alone; the other sections are required only by the
commands that use them. `edge-recorder init` writes a file that shows all of this.
"""
    return head + "".join(_page_section(name, kind) for name, kind in sections())


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Yield each section's name and class."""
    for name, field in Settings.model_fields.items():
        (kind,) = [each for each in (get_args(field.annotation) or (field.annotation,)) if each is not type(None)]
        yield name, kind


def _section(name: str, kind: type[Section], data_dir: Path | None) -> str:
    required = Settings.model_fields[name].is_required()
    lines = [f"\n# {kind.__doc__}", f"[{name}]" if required else f"# [{name}]"]
    for key, field in kind.model_fields.items():
        here = str(data_dir) if data_dir is not None and (name, key) == ("node", "data_dir") else None
        value = json.dumps(here or SAMPLES.get((name, key)) or _default(field), ensure_ascii=False)
        is_set = required and field.is_required()
        lines.append(f"{'' if is_set else '# '}{key} = {value}  # {field.description}")
    return "\n".join(lines) + "\n"


def _page_section(name: str, kind: type[Section]) -> str:
    rows = [
        f"| `{key}` | {_shown(name, key, field)} | {field.description} |" for key, field in kind.model_fields.items()
    ]
    return (
        f"\n## [{name}]\n\n{kind.__doc__}\n\n| key | default | what it says |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _shown(name: str, key: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required; a secret" if (name, key) in SECRETS else "required"
    return "-" if field.default is None else f"`{json.dumps(field.default)}`"


def _default(field: FieldInfo) -> Any:
    return "" if field.default in (None, PydanticUndefined) else field.default
