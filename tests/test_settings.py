"""The settings: every wrong input is one clear error, and no secret is ever shown."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from edge_recorder.errors import Exit, SettingsError
from edge_recorder.settings import Settings, search_path

SECRET = "hunter2-correct-horse"
DSN = f"postgresql://node:{SECRET}@centre:5432/calls"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def load(file: Path, text: str, **variables: str) -> Settings:
    file.write_text(text)
    return Settings.load(file, environ={f"EDGE_RECORDER_{name}": value for name, value in variables.items()})


NODE = '[node]\ndata_dir = "/var/calls"\n'


def test_data_dir_alone_is_enough(file: Path) -> None:
    """A recorder needs nothing but its data_dir; what the agent needs is absent, and asked for by name."""
    settings = load(file, NODE)
    assert settings.node.data_dir == Path("/var/calls")
    assert (settings.store, settings.central) == (None, None)
    with pytest.raises(SettingsError, match=r"store\.url"):
        settings.require_store()
    with pytest.raises(SettingsError, match=r"central\.dsn"):
        settings.require_central()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "node.data_dir is missing"),
        ("node = 5", "node.data_dir"),
        ("[node]\n", "node.data_dir is missing"),
        ("[node]\ndata_dir = 5", "node.data_dir"),
        (NODE + "[nods]\nlabel = 'x'", "nods"),
        (NODE + "[capture]\nflush_intervall = 0.1", "capture.flush_intervall"),
        (NODE + "[capture]\nflush_interval = 'soon'", "capture.flush_interval"),
        (NODE + "[capture]\nflush_interval = 0", "capture.flush_interval"),
        (NODE + "[capture]\nflush_interval = nan", "capture.flush_interval"),
        (NODE + "[capture]\nsegment_seconds = 1.5", "capture.segment_seconds"),
        (NODE + "capture = 3", "node.capture"),
        (NODE + "[disk]\nlow_water = -1", "disk.low_water"),
        (NODE + "[store]\nregion = 'x'", "store.url"),
        (NODE + "[store]\nurl = 'http://bucket'", "store.url"),
        (NODE + "[store]\nurl = 's3:///prefix'", "store.url"),
        (NODE + "[store]\nurl = 's3://['", "store.url"),
        (NODE + "[store]\nurl = 'file://host/directory'", "store.url"),
        (NODE + "[store]\nurl = 'file:relative'", "store.url"),
        (NODE + "[store]\nurl = 'file:///'", "store.url"),
        (NODE + "[store]\nurl = '/just/a/path'", "store.url"),
        (NODE + "[store]\nurl = 's3://b'\nformat = 'mp3'", "store.format"),
        (NODE + "[central]\nbatch_rows = 5", "central.dsn"),
        (NODE + "[central]\ndsn = 7", "central.dsn"),
        (NODE + "[central]\ndsn = 'x'\nbatch_rows = 1001", "central.batch_rows"),
        (NODE + "[log]\nlevel = 'loud'", "log.level"),
        ("[node\n", "not TOML"),
    ],
)
def test_wrong_setting_is_named(file: Path, text: str, named: str) -> None:
    """An unknown, missing or wrong key ends in one sentence that names file and key, and says what to do."""
    with pytest.raises(SettingsError) as caught:
        load(file, text)
    assert named in str(caught.value)
    assert str(file) in str(caught.value)
    assert caught.value.fix
    assert caught.value.exit_code == Exit.USAGE


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("NODE__DATADIR", "/x", "node.datadir"),
        ("NODES__DATA_DIR", "/x", "nodes"),
        ("CONFIG", "/x", "EDGE_RECORDER_CONFIG"),
        ("NODE__", "/x", "EDGE_RECORDER_NODE__"),
        ("CAPTURE__FLUSH_INTERVAL", "soon", "capture.flush_interval"),
        ("NODE__LABEL_FILE", "/etc/hostname", "node.label_file"),
    ],
)
def test_wrong_variable_is_named(file: Path, variable: str, value: str, named: str) -> None:
    """A variable that fits no key, or does not hold what its key wants, is refused like a key of the file."""
    with pytest.raises(SettingsError) as caught:
        load(file, NODE, **{variable: value})
    assert named in str(caught.value)
    assert "environment" in str(caught.value) or "variable" in str(caught.value)
    assert caught.value.exit_code == Exit.USAGE


def test_variable_for_a_section_that_is_none_is_refused(file: Path) -> None:
    """A file whose section is a number is refused as such, also when a variable sets a key of it."""
    with pytest.raises(SettingsError, match="sync"):
        load(file, "sync = 5\n" + NODE, SYNC__INTERVAL="3")


def test_variables_override_the_file(file: Path) -> None:
    """A variable wins over the file, key by key, and other programs' variables are none of ours."""
    text = NODE + "[capture]\nflush_interval = 0.1\nlate_window = 1\n"
    settings = load(file, text, CAPTURE__FLUSH_INTERVAL="0.3", STORE__URL="s3://calls/eu/")
    assert (settings.capture.flush_interval, settings.capture.late_window) == (0.3, 1)
    assert settings.require_store().url == "s3://calls/eu"
    file.write_text(NODE)
    assert Settings.load(file, environ={"EDGE_RECORD": "x", "PATH": "/bin"}).node.data_dir == Path("/var/calls")


def test_environment_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file, variables can say all that is needed."""
    monkeypatch.chdir(tmp_path)
    environ = {"HOME": str(tmp_path), "EDGE_RECORDER_NODE__DATA_DIR": "/var/calls"}
    assert Settings.load(environ=environ).node.data_dir == Path("/var/calls")


def test_first_file_found_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`./config.toml` comes before the XDG place, which comes before /etc."""
    monkeypatch.chdir(tmp_path)
    environ = {"HOME": str(tmp_path)}
    there = tmp_path / ".config" / "edge-recorder"
    there.mkdir(parents=True)
    (there / "config.toml").write_text('[node]\ndata_dir = "/xdg"')
    assert Settings.load(environ=environ).node.data_dir == Path("/xdg")
    (tmp_path / "config.toml").write_text('[node]\ndata_dir = "/here"')
    assert Settings.load(environ=environ).node.data_dir == Path("/here")
    assert search_path({"XDG_CONFIG_HOME": "/elsewhere"})[1] == Path("/elsewhere/edge-recorder/config.toml")


def test_named_file_must_be_there(tmp_path: Path) -> None:
    """A file that was named and is not there, or is a directory, is an error that names it."""
    with pytest.raises(SettingsError, match=r"gone\.toml: No such file"):
        Settings.load(tmp_path / "gone.toml", environ={})
    with pytest.raises(SettingsError, match="Is a directory"):
        Settings.load(tmp_path, environ={})


def test_file_that_is_not_text_is_refused(file: Path) -> None:
    """A file in another encoding is said not to be TOML."""
    file.write_bytes(b"[node]\nlabel = '\xff\xfe'")
    with pytest.raises(SettingsError, match="not TOML"):
        Settings.load(file, environ={})


def test_secret_may_be_in_a_file(file: Path, tmp_path: Path) -> None:
    """A secret's variable that ends in _FILE names the file that holds it; its line end is not part of it."""
    (tmp_path / "dsn").write_text(DSN + "\n")
    settings = load(file, NODE, CENTRAL__DSN_FILE=str(tmp_path / "dsn"))
    assert settings.require_central().dsn.get_secret_value() == DSN


def test_secret_file_that_cannot_be_read_is_named(file: Path, tmp_path: Path) -> None:
    """A secret's file that is not there, or is not text, is an error that names variable and path."""
    with pytest.raises(SettingsError, match=r"EDGE_RECORDER_CENTRAL__DSN_FILE: cannot read .*gone"):
        load(file, NODE, CENTRAL__DSN_FILE=str(tmp_path / "gone"))
    (tmp_path / "dsn").write_bytes(b"\xff\xfe" + SECRET.encode())
    with pytest.raises(SettingsError, match="not text"):
        load(file, NODE, CENTRAL__DSN_FILE=str(tmp_path / "dsn"))


def test_secret_is_never_shown(file: Path) -> None:
    """Neither the settings' repr nor their JSON holds the secret."""
    settings = load(file, NODE + f'[central]\ndsn = "{DSN}"')
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)
    assert SECRET not in settings.model_dump_json()


@pytest.mark.parametrize(
    "text",
    [
        f'[central]\ndsn = ["{DSN}"]',
        f'[central]\ndsn = "{DSN}"\nbatch_rows = "many"',
        f'[central]\ndsn = "{DSN}"\ndns = "{DSN}"',
        f'central = "{DSN}"\n[sync]',
        f'[centrals]\ndsn = "{DSN}"',
    ],
)
def test_secret_is_in_no_error(file: Path, text: str) -> None:
    """When something beside a secret, or the secret itself, is wrong, the error's text and traceback do not show it."""
    with pytest.raises(SettingsError) as caught:
        load(file, f"{text}\n{NODE}")
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in shown.replace(text, "")


def test_settings_do_not_change(file: Path) -> None:
    """Settings are frozen: what was checked is what is used."""
    settings = load(file, NODE)
    with pytest.raises(ValueError, match="frozen"):
        settings.node.label = "other"
