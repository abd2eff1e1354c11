"""
From written to safe: what of one call waits for which fsync, and what follows from it.

    the journal's first line     synced before any audio file is made
    a finished segment           synced, then renamed
    a renamed one                its directory synced, then its fact is written to the journal
    a fact in the journal        synced, then it may become a row
Each round of fsyncs takes everything one step further. A call that ends takes as many rounds as it needs, at once.
    crash before the rename      leaves a `.part` that salvage finishes
    before the fact              leaves a file without a fact: recovery adopts it
    before the row               leaves a fact without a row: recovery replays it
Where the call's directory is removed under us, it is made again: what was in it is lost, and what comes is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edge_recorder import durable, model, spool
from edge_recorder.journal import Journal, Start
from edge_recorder.model import Fact, Span
from edge_recorder.segment import OpenSegment
from edge_recorder.wav import Tag


@dataclass(slots=True)
class _Round:
    """What a round of fsyncs is for."""

    segments: list[tuple[int, OpenSegment]] = field(default_factory=list)
    named: list[OpenSegment] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    notes: int = 0
    journal: int = -1
    directories: list[int] = field(default_factory=list)


class Keeping:
    """What of one call is on its way to being safe."""

    def __init__(self, directory: Path, start: Start, *, clock: Callable[[], model.Instant]) -> None:
        self.is_open = False  # the journal's first line is safe: audio files may be made
        self.sealed = 0  # segments
        self.safe: list[Fact] = []  # for whoever makes rows of them to take
        self.removed: list[OpenSegment] = []  # their files went away under us, or cannot be read
        self._directory = directory
        self._journal_path = directory / spool.JOURNAL
        self._start = start
        self._clock = clock
        self._journal: Journal | None = None
        self._said: list[Fact] = []  # to be written to the journal
        self._written: list[Fact] = []  # in it, not synced
        self._begun: dict[str, Span] = {}  # that are not over, by id
        self._unnoted: list[Span] = []  # of them, those that the journal does not have
        self._notes = self._synced_notes = 0  # lines that are no facts, written to the journal
        self._finished: list[OpenSegment] = []
        self._named: list[OpenSegment] = []
        self._names_unsynced = False  # the directory's fsync failed
        self._round: _Round | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for a round."""
        return not (self._said or self._written or self._finished or self._named or self._round)

    @property
    def sealing(self) -> list[OpenSegment]:
        """The segments that are finished, but not sealed."""
        return [*self._finished, *self._named]

    def say(self, fact: Fact) -> None:
        """Take a fact on its way."""
        self._said.append(fact)
        if isinstance(fact, Span):
            self._begun.pop(fact.span_id, None)

    def began(self, span: Span) -> None:
        """Note a span that is not over yet: it is said when it ends, or by recovery."""
        self._begun[span.span_id] = span
        self._unnoted.append(span)

    def seal(self, segments: Iterable[OpenSegment]) -> None:
        """Take finished segments on their way."""
        self._finished += segments

    def write(self) -> None:
        """Write to the journal what was said: it survives SIGKILL then.

        Raises:
            OSError: The disk refused; the next call tries again.
        """
        if self._journal is None:
            durable.make_dirs(self._directory.parent)
            with suppress(FileExistsError):
                self._directory.mkdir(mode=durable.DIRECTORY_MODE)
            self._journal = Journal(self._journal_path, self._start)
        for span in self._unnoted:
            self._journal.began(span)
            self._notes += 1
        self._unnoted = []
        if self._said:
            self._journal.append(self._said)
            self._written += self._said
            self._said = []

    def begin(self, segments: Sequence[OpenSegment]) -> list[int]:
        """Begin a round, with all of the open `segments` in it, and return the descriptors that are to be fsynced.

        Raises:
            OSError: The disk refused; there is no round.
        """
        self._drop_round()  # one that was never ended counts for nothing
        self._look_after_journal()
        synced = [*segments, *self._finished]
        try:
            self.write()
            self._note_files(each.tag for each in synced if each.is_fresh and each.needs_sync)
        except OSError:
            if not self.is_open:
                raise  # else a full disk may still sync what it took before
        self._round = this = _Round(facts=list(self._written), named=list(self._named))
        try:
            for directory in self._directories_to_sync(synced):
                this.directories.append(durable.open_dir(directory))
        except OSError:
            self._drop_round()
            raise
        if self._journal is not None and (self._written or self._notes != self._synced_notes or not self.is_open):
            this.journal = self._journal.fd
            this.notes = self._notes
        this.segments = [(each.begin_sync(), each) for each in synced if each.needs_sync]
        return [*(fd for fd, _ in this.segments), *this.directories, *([this.journal] if this.journal >= 0 else [])]

    def end(self, failures: Mapping[int, OSError]) -> None:
        """End the round, of which the fsyncs in `failures` failed.

        Raises:
            OSError: The disk refused what was to follow; it is tried again in the next round.
        """
        this = self._drop_round()
        if this is None:
            return
        if this.directories:
            self._names_unsynced = any(fd in failures for fd in this.directories)
        if not self.is_open:
            self._end_opening(failed=this.journal in failures or self._names_unsynced)
        self._end_facts(this, failed=this.journal in failures or not self.is_open)
        self._end_segments(this, failures)
        if not self._names_unsynced:
            self._end_names(this.named)
        self._name_finished()

    def close(self) -> None:
        """Let go of the files; what is unfinished is recovery's."""
        self._drop_round()
        for segment in self.sealing:
            segment.close()
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _look_after_journal(self) -> None:
        """Begin the journal again where it, or all of the call's directory, was removed under us."""
        if self._journal is None or spool.is_at(self._journal.fd, self._journal_path):
            return
        self._journal.close()
        self._journal, self.is_open = None, False
        self._said, self._written = self._written + self._said, []
        self._unnoted = list(self._begun.values())

    def _note_files(self, tags: Iterable[Tag]) -> None:
        """Note in the journal what each new file is, should power loss take its header."""
        made = list(tags)
        if made and self._journal is not None:
            self._journal.opened(made)
            self._notes += 1

    def _directories_to_sync(self, segments: Sequence[OpenSegment]) -> list[Path]:
        if not self.is_open:
            return [self._directory.parent, self._directory]
        if self._names_unsynced or self._named or any(each.is_fresh for each in segments):
            return [self._directory]
        return []

    def _drop_round(self) -> _Round | None:
        this, self._round = self._round, None
        for fd in this.directories if this is not None else ():
            os.close(fd)
        return this

    def _end_opening(self, *, failed: bool) -> None:
        self.is_open = not failed
        if failed and self._journal is not None:
            self._journal.close()
            self._journal = None  # its first line is written anew

    def _end_facts(self, this: _Round, *, failed: bool) -> None:
        if this.journal < 0:
            return
        rest = self._written[len(this.facts) :]
        if failed:  # it is never believed again about these: they are written anew
            self._said, self._written = this.facts + rest + self._said, []
            self._unnoted = list(self._begun.values())
            if self._journal is not None:
                self._journal.distrust()
            return
        self._written, self._synced_notes = rest, this.notes
        self.safe += this.facts

    def _end_segments(self, this: _Round, failures: Mapping[int, OSError]) -> None:
        for fd, segment in this.segments:
            if fd in failures:
                segment.failed()
            elif not (segment.is_fresh and self._names_unsynced):  # data without a name is lost with the power
                segment.synced()
                segment.is_fresh = False

    def _end_names(self, named: list[OpenSegment]) -> None:
        for segment in named:
            self._named.remove(segment)
            try:
                self._said.append(segment.fact(now=self._clock()))
            except OSError:
                self.removed.append(segment)
            else:
                self.sealed += 1
            segment.close()

    def _name_finished(self) -> None:
        """Give their names to the finished segments that are synced.

        Raises:
            OSError: The disk refused one; it is tried again in the next round.
        """
        refused = []
        for segment in [each for each in self._finished if not (each.is_dirty or each.suspect)]:
            try:
                segment.name()
            except FileNotFoundError:
                self.removed.append(segment)
            except OSError as error:
                refused.append(error)
                continue
            else:
                self._named.append(segment)
            self._finished.remove(segment)
        if refused:
            raise refused[0]
