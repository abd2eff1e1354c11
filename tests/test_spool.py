"""The directory tree: names, the node's identity, locks, and the places where it refuses to be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_recorder import durable, model, spool
from edge_recorder.errors import DataDirError, Exit, LockHeld, SettingsError
from edge_recorder.settings import Settings

STARTED = 1_790_000_000_000_000  # 2026-09-21, 14:13 UTC
Child = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def node(data_dir: Path) -> Path:
    spool.prepare(data_dir)
    return data_dir


@pytest.fixture
def child(data_dir: Path) -> Child:
    """Start a Python that runs a script on the data_dir, says `print(...)` when ready and waits for a line."""
    started = []

    def start(script: str) -> subprocess.Popen[str]:
        head = (
            "import os, sys\nfrom pathlib import Path\nfrom edge_recorder import spool\ndata_dir = Path(sys.argv[1])\n"
        )
        command = [sys.executable, "-c", head + script, str(data_dir)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """Wait for the child's next line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


# Names.


@given(track=st.from_regex(r"[a-z0-9_]{1,32}", fullmatch=True), seq=st.integers(1, 10**9), sealed=st.booleans())
def test_names_round_trip(tmp_path_factory: pytest.TempPathFactory, track: str, seq: int, *, sealed: bool) -> None:
    """A segment file's name gives back its track, its number and whether it is sealed."""
    directory = tmp_path_factory.mktemp("call")
    path = spool.segment_path(directory, track, seq)
    path = path if sealed else spool.part_path(path)
    path.touch()
    assert spool.segment_files(directory) == [spool.SegmentFile(path, track, seq, sealed)]


def test_other_files_are_left_out(tmp_path: Path) -> None:
    """What is not named like a segment is not taken for one."""
    for name in ("journal.jsonl", "User-000001.wav", "user-1.wav", "user-000001.wav.tmp", ".user-000001.wav", "x.wav"):
        (tmp_path / name).touch()
    assert spool.segment_files(tmp_path) == []


def test_segments_are_listed_by_track_and_number(tmp_path: Path) -> None:
    """Segments come in the order of their tracks and numbers."""
    for track, seq in (("user", 2), ("assistant", 10), ("user", 1), ("assistant", 9)):
        spool.segment_path(tmp_path, track, seq).touch()
    found = [(each.track, each.seq) for each in spool.segment_files(tmp_path)]
    assert found == [("assistant", 9), ("assistant", 10), ("user", 1), ("user", 2)]


def test_call_is_found_by_its_day(data_dir: Path) -> None:
    """A call lies under the UTC date of its start, and calls are listed oldest day first."""
    ids = [model.new_call_id(STARTED), model.new_call_id(STARTED)]
    later = spool.call_dir(data_dir, ids[0], STARTED + 10 * 3600 * 1_000_000)
    first = spool.call_dir(data_dir, ids[1], STARTED)
    assert first == data_dir / "spool" / "2026" / "09" / "21" / ids[1]
    assert later == data_dir / "spool" / "2026" / "09" / "22" / ids[0]
    for directory in (later, first):
        directory.mkdir(parents=True)
    (data_dir / "spool" / "2026" / "09" / "notes").mkdir()
    assert list(spool.call_dirs(data_dir)) == [first, later]


# The node.


def test_node_keeps_its_identity(data_dir: Path) -> None:
    """A data_dir gets its node_id when it is first opened, and keeps it."""
    made = spool.prepare(data_dir / "new" / "deep")
    assert spool.prepare(data_dir / "new" / "deep") == made
    assert spool.node_id(data_dir / "new" / "deep") == made
    assert spool.prepare(data_dir / "other") != made


def test_processes_at_once_make_one_node(child: Child, data_dir: Path) -> None:
    """Several processes that open a fresh data_dir at the same instant agree on one node_id."""
    children = [child("print('ready', flush=True); input(); print(spool.prepare(data_dir))") for _ in range(4)]
    assert [said(each) for each in children] == ["ready"] * 4
    for each in children:
        each.stdin.write("\n")
        each.stdin.flush()
    assert {said(each) for each in children} == {spool.node_id(data_dir)}
    assert [path.name for path in data_dir.iterdir() if "node" in path.name] == ["node.json"]


def test_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A data_dir of `~/calls` is in the home directory, and not in one called `~`; an unknown user's is refused."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings.of({"node": {"data_dir": "~/calls"}}).node.data_dir == tmp_path / "calls"
    with pytest.raises(SettingsError, match=r"node\.data_dir"):
        Settings.of({"node": {"data_dir": "~no-such-user/calls"}})


def test_directory_without_a_node_is_refused(data_dir: Path) -> None:
    """A directory that was never prepared is not a node, and the error says what to check."""
    with pytest.raises(DataDirError, match="not a recorder's data_dir") as caught:
        spool.node_id(data_dir)
    assert caught.value.fix


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", '{"node": 1}', "\udcff"])
def test_damaged_node_file_is_refused(node: Path, text: str) -> None:
    """A node.json that cannot be read is an error, and is never made anew: it says which node this is."""
    (node / "node.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataDirError, match="cannot be read"):
        spool.prepare(node)
    assert (node / "node.json").read_bytes() == text.encode(errors="surrogateescape")


@pytest.mark.parametrize("place", ["", "spool", "writers"])
def test_file_in_the_place_of_a_directory_is_refused(tmp_path: Path, place: str) -> None:
    """Where a file is in the place of a directory, the error says what to choose."""
    path = tmp_path / "node" / place if place else tmp_path / "node"
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(DataDirError, match="cannot keep recordings in") as caught:
        spool.prepare(tmp_path / "node")
    assert "node.data_dir" in caught.value.fix
    assert caught.value.exit_code == Exit.ACCESS


def test_read_only_file_system_is_refused() -> None:
    """On a file system that takes no files the error says what to choose, whoever we are."""
    with pytest.raises(DataDirError, match="cannot keep recordings in") as caught:
        spool.prepare(Path("/proc/edge-recorder"))  # nobody, not even root, makes directories in there
    assert "node.data_dir" in caught.value.fix


def test_node_that_became_read_only_is_refused(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data_dir that was prepared once and cannot be written now is refused at once, and not at the first call."""
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "writers")  # as on a read-only mount
    with pytest.raises(DataDirError, match="cannot be written"):
        spool.prepare(node)


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "9p", "fuse", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "beegfs", "vboxsf"]
)
def test_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Where SQLite's locks do not hold, nothing is made, and the error names the kind."""
    show_mounts(
        monkeypatch, f"/dev/sda / ext4 rw 0 0\nserver:/x {str(tmp_path).replace(' ', chr(92) + '040')} {kind} rw 0 0\n"
    )
    with pytest.raises(DataDirError, match=rf"network file system \({kind}\)") as caught:
        spool.prepare(tmp_path / "calls")
    assert caught.value.exit_code == Exit.ACCESS
    assert not (tmp_path / "calls" / "node.json").exists()


def test_innermost_mount_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local disk mounted below a network one is local, and a neighbour with a longer name is another place."""
    here = tmp_path / "with space"
    table = f"server:/x {tmp_path} nfs rw 0 0\n/dev/sdb {tmp_path}/with\\040space ext4 rw 0 0\n"
    show_mounts(monkeypatch, table + f"server:/y {tmp_path}/with\\040spa nfs rw 0 0\n")
    assert spool.prepare(here)


def show_mounts(monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, *a, **k: table if str(self) == "/proc/mounts" else real(self, *a, **k)
    )


def test_free_room_is_told(data_dir: Path) -> None:
    """The free bytes are those of the directory's own file system."""
    assert 0 < spool.free_bytes(data_dir) <= os.statvfs(data_dir).f_blocks * os.statvfs(data_dir).f_frsize


# Locks.


def test_second_agent_is_refused(node: Path, child: Child) -> None:
    """While an agent is at work in another process, a second one is refused; afterwards it is not."""
    other = child(
        "with spool.agent_lock(data_dir):\n    print('held', flush=True)\n    input()\nprint('free', flush=True)"
    )
    assert said(other) == "held"
    with pytest.raises(LockHeld, match="another agent") as caught, spool.agent_lock(node):
        pass
    assert caught.value.exit_code == Exit.LOCK_HELD
    other.stdin.write("\n")
    other.stdin.flush()
    assert said(other) == "free"
    with spool.agent_lock(node):
        pass


def test_agent_lock_is_let_go_on_an_error(node: Path) -> None:
    """An agent that fails lets go of its lock."""
    with pytest.raises(ZeroDivisionError), spool.agent_lock(node):
        raise ZeroDivisionError
    with spool.agent_lock(node):
        pass


HOLD = "lock = spool.WriterLock(data_dir)\nprint(lock.name, flush=True)\ninput()"


def test_living_writer_is_left_alone(node: Path, child: Child) -> None:
    """While a recorder lives, nobody takes over what it writes."""
    name = said(child(HOLD))
    with spool.taken_over(node, name) as dead:
        assert not dead
    assert spool.writers(node) == [name]
    assert spool.dead_writers(node) == []


def test_killed_writer_is_taken_over(node: Path, child: Child) -> None:
    """SIGKILL lets go of a writer's lock at once; its file stays, and says that there is something to mend."""
    process = child(HOLD)
    name = said(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert spool.dead_writers(node) == [name]
    with spool.taken_over(node, name) as dead:
        assert dead
        with spool.taken_over(node, name) as second:
            assert not second
        spool.clear_writer(node, name)
    assert spool.writers(node) == []


def test_forked_child_does_not_keep_its_parents_lock(node: Path, child: Child) -> None:
    """A writer that is killed is dead, though a child that it forked lives on."""
    process = child(
        "lock = spool.WriterLock(data_dir)\n"
        "if os.fork() == 0:\n"
        "    os.write(1, b'child\\n')\n"
        "    sys.stdin.readline()\n"
        "    os._exit(0)\n"
        "os.write(1, f'{lock.name}\\n'.encode())\n"
        "os.wait()\n"
    )
    name = next(line for line in (said(process), said(process)) if line != "child")
    with spool.taken_over(node, name) as dead:
        assert not dead
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with spool.taken_over(node, name) as dead:
        assert dead
    process.stdin.write("\n")
    process.stdin.flush()


def test_writer_without_a_lock_file_is_dead(node: Path) -> None:
    """A writer whose lock file is gone closed in order: it may be taken over, and leaves no file for it."""
    with spool.taken_over(node, "abcdef123456-00000000") as dead:
        assert dead
        with spool.taken_over(node, "abcdef123456-00000000") as second:
            assert not second
        assert spool.writers(node) == ["abcdef123456-00000000"]
    assert spool.writers(node) == []


def test_taking_over_leaves_no_file_after_an_error(node: Path) -> None:
    """When mending fails, the lock file that was made for it goes all the same."""
    with pytest.raises(ZeroDivisionError), spool.taken_over(node, "abcdef123456-00000000"):
        raise ZeroDivisionError
    assert spool.writers(node) == []


def test_finished_writer_leaves_no_file(node: Path) -> None:
    """A recorder that finished takes its lock file with it; one that did not leaves it for recovery."""
    first, second = spool.WriterLock(node), spool.WriterLock(node)
    assert first.name != second.name
    first.release(finished=True)
    second.release(finished=False)
    assert spool.dead_writers(node) == [second.name]


def test_one_process_rebuilds(node: Path, child: Child) -> None:
    """While a process rebuilds the catalog no other does; when it dies, another can."""
    process = child("with spool.rebuilding(data_dir) as ours:\n    print(ours, flush=True)\n    input()")
    assert said(process) == "True"
    with spool.rebuilding(node) as ours:
        assert not ours
    process.kill()
    process.wait()
    with spool.rebuilding(node) as ours:
        assert ours


def test_forked_child_keeps_no_lock(node: Path, child: Child) -> None:
    """A child forked within a lock holds none of them when its parent lets go, and closes nothing of its own."""
    process = child(
        "with spool.agent_lock(data_dir), spool.rebuilding(data_dir), spool.taken_over(data_dir, 'noboot-00000000'):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        own = [os.open(data_dir / 'node.json', os.O_RDONLY) for _ in range(9)]\n"
        "if not pid:\n"
        "    print(all(os.fstat(fd) for fd in own), flush=True)\n"
        "    input()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    assert said(process) == "True"
    with spool.agent_lock(node), spool.rebuilding(node) as ours, spool.taken_over(node, "noboot-00000000") as free:
        assert ours
        assert free
    process.stdin.write("\n")
    process.stdin.flush()


# Quarantine.


def test_quarantined_file_keeps_its_bytes_and_says_why(node: Path) -> None:
    """A file set aside is moved, not copied or deleted, with a note beside it."""
    directory = spool.call_dir(node, model.new_call_id(STARTED), STARTED)
    durable.make_dirs(directory)
    path = spool.segment_path(directory, "user", 1)
    path.write_bytes(b"not a segment")
    target = spool.to_quarantine(node, path, "its header is torn")
    assert not path.exists()
    assert target == node / "quarantine" / directory.name / path.name
    assert target.read_bytes() == b"not a segment"
    assert "its header is torn" in target.with_name(target.name + ".txt").read_text()


def test_node_file_names_its_format(node: Path) -> None:
    """node.json has the node's id and its format, for the releases to come."""
    assert json.loads((node / "node.json").read_text()).keys() == {"format", "node_id", "label"}
