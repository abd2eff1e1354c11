"""From a segment's file to stored bytes and back, bit for bit, or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import struct
import wave
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_recorder.errors import IntegrityMismatch
from sync.encoding import DamagedAudio, Encoded, decode, encode
from sync.retry import ErrorClass, SyncError

Samples = npt.NDArray[np.int16]
FORMATS = ["flac", "wav"]
HEADER_BYTES = 512


def segment(path: Path, samples: Samples, rate: int, *, channels: int = 1, bits: int = 16) -> Path:
    """Write a WAV as the recorder does: a header of 512 bytes with a chunk of its own before `data`."""
    block = channels * bits // 8
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * block, block, bits)
    own = HEADER_BYTES - 12 - len(form) - 8 - 8
    data = samples.astype("<i2").tobytes()
    head = b"RIFF" + struct.pack("<I", HEADER_BYTES - 8 + len(data)) + b"WAVE" + form
    path.write_bytes(
        head + b"edge" + struct.pack("<I", own) + bytes(own) + b"data" + struct.pack("<I", len(data)) + data
    )
    return path


def encoded(path: Path, samples: Samples, rate: int, stored_as: str) -> Encoded:
    pcm = hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()
    return encode(path, format=stored_as, pcm_sha256=pcm, frames=len(samples), rate=rate)


def tone(rate: int, seconds: float = 0.5) -> Samples:
    return (12_000 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.int16)


@pytest.mark.parametrize("stored_as", FORMATS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=arrays.arrays(np.int16, st.integers(0, 5000), elements=st.integers(-32768, 32767)),
    rate=st.sampled_from([8000, 11025, 16000, 24000, 44100, 48000, 192_000]),
)
def test_round_trip(tmp_path: Path, stored_as: str, samples: Samples, rate: int) -> None:
    """Any samples come back bit for bit, at their rate."""
    done = encoded(segment(tmp_path / "a.wav", samples, rate), samples, rate, stored_as)
    back, back_rate = decode(done.body.data, stored_as)
    assert back.dtype == np.int16
    assert np.array_equal(back, samples)
    assert back_rate == rate
    assert (done.extension, done.content_type) == (stored_as, f"audio/{stored_as}")


@pytest.mark.parametrize("stored_as", FORMATS)
@pytest.mark.parametrize("rate", [8000, 24000, 44100])
@pytest.mark.parametrize("kind", ["tone", "silence", "nothing", "one sample"])
def test_other_readers_agree(tmp_path: Path, stored_as: str, rate: int, kind: str) -> None:
    """What is stored is a plain file of its format, also for silence and a segment of no samples."""
    samples = {
        "tone": tone(rate),
        "silence": np.zeros(rate, np.int16),
        "nothing": tone(rate, 0),
        "one sample": tone(rate)[1:2],
    }
    done = encoded(segment(tmp_path / "a.wav", samples[kind], rate), samples[kind], rate, stored_as)
    with soundfile.SoundFile(io.BytesIO(done.body.data)) as file:
        assert (file.format, file.subtype, file.samplerate, file.channels) == (stored_as.upper(), "PCM_16", rate, 1)
        if len(samples[kind]):  # libsndfile takes a FLAC stream of no frames for one of unknown length
            assert np.array_equal(file.read(dtype="int16"), samples[kind])


def test_wav_is_canonical(tmp_path: Path) -> None:
    """A stored WAV has a header of 44 bytes and nothing of the recorder's own."""
    samples = tone(8000)
    done = encoded(segment(tmp_path / "a.wav", samples, 8000), samples, 8000, "wav")
    assert done.body.data[44:] == samples.tobytes()
    with wave.open(io.BytesIO(done.body.data)) as file:
        assert file.getnframes() == len(samples)


def test_flac_is_smaller(tmp_path: Path) -> None:
    """Silence and tones shrink."""
    samples = tone(24000, 5)
    done = encoded(segment(tmp_path / "a.wav", samples, 24000), samples, 24000, "flac")
    assert len(done.body.data) < samples.nbytes / 2


@pytest.mark.parametrize("byte", [0x00, 0x01, 0x7F, 0x80, 0xFF])
def test_damaged_header(tmp_path: Path, byte: int) -> None:
    """Whatever a damaged byte of the header makes of its chunks, the file is refused, or its samples are whole."""
    samples = tone(8000, 0.01)
    path = segment(tmp_path / "a.wav", samples, 8000)
    whole = path.read_bytes()
    for place in (*range(48), *range(HEADER_BYTES - 8, HEADER_BYTES)):
        path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        with suppress(DamagedAudio):
            done = encoded(path, samples, 8000, "flac")
            assert np.array_equal(decode(done.body.data, "flac")[0], samples)


@pytest.mark.parametrize("stored_as", FORMATS)
@pytest.mark.parametrize("place", [HEADER_BYTES, HEADER_BYTES + 1001, -1])
def test_bit_rot(tmp_path: Path, stored_as: str, place: int) -> None:
    """One changed bit anywhere in the samples stops the segment, and counts against it alone."""
    samples = tone(8000)
    path = segment(tmp_path / "a.wav", samples, 8000)
    rotten = bytearray(path.read_bytes())
    rotten[place] ^= 0x10
    path.write_bytes(rotten)
    with pytest.raises(DamagedAudio) as caught:
        encoded(path, samples, 8000, stored_as)
    assert caught.value.error_class is ErrorClass.ITEM
    assert isinstance(caught.value, IntegrityMismatch)
    assert isinstance(caught.value, SyncError)
    assert caught.value.fix


@pytest.mark.parametrize("keep", [0, 11, 40, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 999])
def test_file_cut_short(tmp_path: Path, keep: int) -> None:
    """A file cut anywhere is damaged, whatever its header still says."""
    samples = tone(8000)
    path = segment(tmp_path / "a.wav", samples, 8000)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedAudio):
        encoded(path, samples, 8000, "flac")


@pytest.mark.parametrize("shape", [{"channels": 2}, {"bits": 8}, {"bits": 24}])
def test_not_our_kind_of_wav(tmp_path: Path, shape: dict[str, int]) -> None:
    """A WAV that is not mono with 16 bits is refused."""
    samples = tone(8000)[:600]
    with pytest.raises(DamagedAudio):
        encoded(segment(tmp_path / "a.wav", samples, 8000, **shape), samples, 8000, "flac")


def test_wrong_rate(tmp_path: Path) -> None:
    """A file whose rate is not its row's would play too fast, and is refused."""
    samples = tone(8000)
    with pytest.raises(DamagedAudio, match="8000 Hz instead of 16000"):
        encoded(segment(tmp_path / "a.wav", samples, 8000), samples, 16000, "flac")


def test_file_that_vanished(tmp_path: Path) -> None:
    """A file that is gone is that item's trouble."""
    with pytest.raises(SyncError) as caught:
        encoded(tmp_path / "gone.wav", tone(8000), 8000, "flac")
    assert caught.value.error_class is ErrorClass.ITEM


def test_no_more_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of this machine is not held against the item."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SyncError) as caught:
        encoded(tmp_path / "a.wav", tone(8000), 8000, "flac")
    assert caught.value.error_class is ErrorClass.LOCAL


def test_encoder_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that loses a sample is caught before anything is sent."""
    real = soundfile.write

    def lossy(file: io.BytesIO, samples: Samples, rate: int, **options: Any) -> None:
        real(file, samples[:-1], rate, **options)

    monkeypatch.setattr(soundfile, "write", lossy)
    samples = tone(8000)
    with pytest.raises(DamagedAudio, match="does not decode"):
        encoded(segment(tmp_path / "a.wav", samples, 8000), samples, 8000, "flac")


@pytest.mark.parametrize("stored_as", FORMATS)
def test_stored_rubbish(stored_as: str) -> None:
    """Stored bytes that are no audio are damaged audio, not a crash."""
    with pytest.raises(DamagedAudio):
        decode(b"<html>not found</html>", stored_as)
