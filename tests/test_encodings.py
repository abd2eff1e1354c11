"""The encodings that callers may hand over: G.711 as it is published, floats held at full scale, and int16 as it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_recorder.encodings import Encoding, frame_bytes, from_float32, to_pcm16
from edge_recorder.errors import InvalidAudio

# What G.711 gives for the codes 0x80 to 0xFF, as 16 bits; the codes below are the same, negative. Written out, so that
# the formula is not its own judge. sox and ffmpeg agree.
MULAW = """
    32124 31100 30076 29052 28028 27004 25980 24956 23932 22908 21884 20860 19836 18812 17788 16764
    15996 15484 14972 14460 13948 13436 12924 12412 11900 11388 10876 10364  9852  9340  8828  8316
     7932  7676  7420  7164  6908  6652  6396  6140  5884  5628  5372  5116  4860  4604  4348  4092
     3900  3772  3644  3516  3388  3260  3132  3004  2876  2748  2620  2492  2364  2236  2108  1980
     1884  1820  1756  1692  1628  1564  1500  1436  1372  1308  1244  1180  1116  1052   988   924
      876   844   812   780   748   716   684   652   620   588   556   524   492   460   428   396
      372   356   340   324   308   292   276   260   244   228   212   196   180   164   148   132
      120   112   104    96    88    80    72    64    56    48    40    32    24    16     8     0
"""
ALAW = """
     5504  5248  6016  5760  4480  4224  4992  4736  7552  7296  8064  7808  6528  6272  7040  6784
     2752  2624  3008  2880  2240  2112  2496  2368  3776  3648  4032  3904  3264  3136  3520  3392
    22016 20992 24064 23040 17920 16896 19968 18944 30208 29184 32256 31232 26112 25088 28160 27136
    11008 10496 12032 11520  8960  8448  9984  9472 15104 14592 16128 15616 13056 12544 14080 13568
      344   328   376   360   280   264   312   296   472   456   504   488   408   392   440   424
       88    72   120   104    24     8    56    40   216   200   248   232   152   136   184   168
     1376  1312  1504  1440  1120  1056  1248  1184  1888  1824  2016  1952  1632  1568  1760  1696
      688   656   752   720   560   528   624   592   944   912  1008   976   816   784   880   848
"""


def published(upper: str) -> NDArray[np.int16]:
    values = np.array(upper.split(), np.int16)
    return np.concatenate((-values, values))


def decoded(data: bytes, encoding: str) -> NDArray[np.int16]:
    return np.frombuffer(to_pcm16(data, encoding), "<i2")


def nearest(samples: NDArray[np.int16], values: NDArray[np.int16]) -> bytes:
    """Encode by looking for the code whose value is nearest."""
    distance = np.abs(samples[:, None].astype(int) - values[None, :].astype(int))
    return distance.argmin(axis=1).astype(np.uint8).tobytes()


@pytest.mark.parametrize(("encoding", "upper"), [("mulaw", MULAW), ("alaw", ALAW)])
def test_each_code_is_as_published(encoding: str, upper: str) -> None:
    """All 256 codes of G.711 give the published values."""
    assert decoded(bytes(range(256)), encoding).tolist() == published(upper).tolist()


@pytest.mark.parametrize(("encoding", "upper", "error"), [("mulaw", MULAW, 644), ("alaw", ALAW, 512)])
def test_companded_audio_comes_back(encoding: str, upper: str, error: int) -> None:
    """Audio encoded with the nearest code comes back within half a step, and encoded again is the same."""
    samples = np.arange(-32_768, 32_768, 37, dtype=np.int16)
    once = decoded(nearest(samples, published(upper)), encoding)
    assert np.abs(once.astype(int) - samples).max() <= error
    assert np.array_equal(decoded(nearest(once, published(upper)), encoding), once)


@pytest.mark.parametrize(("encoding", "quietest"), [("mulaw", 0), ("alaw", 8)])
def test_silence_on_the_line_is_quiet(encoding: str, quietest: int) -> None:
    """The code that a quiet line sends, 0xFF or 0xD5, is the smallest positive value that there is."""
    line = {"mulaw": b"\xff", "alaw": b"\xd5"}[encoding]
    assert decoded(line, encoding).tolist() == [quietest]


def test_pcm16_is_what_it_was() -> None:
    """int16 goes through byte for byte."""
    data = bytes(range(256))
    assert to_pcm16(data, "pcm16") == data


def test_floats_of_every_sample_come_back() -> None:
    """Each of the 65,536 samples is itself again after a way through float32."""
    samples = np.arange(-32_768, 32_768).astype("<i2")
    assert np.array_equal(decoded((samples / 32_767).astype("<f4").tobytes(), "float32"), samples)


def test_floats_are_held_at_full_scale() -> None:
    """What is louder than full scale is held there, and what is no number is silence."""
    floats = np.array([0, 1, -1, 1.5, -1.5, np.inf, -np.inf, 3e38, -3e38, np.nan, 0.5], "<f4")
    expected = [0, 32_767, -32_767, 32_767, -32_768, 32_767, -32_768, 32_767, -32_768, 0, 16_384]
    assert decoded(floats.tobytes(), "float32").tolist() == expected


@example(b"\x01\x00\x80\x7f" * 8)  # signalling NaNs, which trap where they are computed with
@given(st.binary(max_size=64).map(lambda data: data[: len(data) // 4 * 4]))
def test_any_bytes_are_floats(data: bytes) -> None:
    """Whatever the bits, floats give samples without a warning: as scaled in double precision, within rounding."""
    floats = np.nan_to_num(np.frombuffer(data, "<f4"), posinf=2, neginf=-2).astype(np.float64)
    exact = np.clip(floats * 32_767, -32_768, 32_767)
    assert (np.abs(decoded(data, "float32") - exact) <= 0.502).all()


def test_arrays_of_floats_are_the_same() -> None:
    """An array gives what its bytes give, and is left as it was."""
    floats = np.linspace(-1.2, 1.2, 999, dtype=np.float32)
    before = floats.copy()
    assert from_float32(floats).tobytes() == to_pcm16(floats.tobytes(), "float32")
    assert np.array_equal(floats, before)


@pytest.mark.parametrize("encoding", Encoding)
def test_nothing_is_nothing(encoding: Encoding) -> None:
    """No bytes give no samples in any encoding."""
    assert to_pcm16(b"", encoding) == b""


@pytest.mark.parametrize(("encoding", "size"), [("pcm16", 2), ("float32", 4), ("mulaw", 1), ("alaw", 1)])
def test_bytes_of_a_sample(encoding: str, size: int) -> None:
    """Each encoding says how many bytes a sample has, and its samples become as many int16."""
    assert frame_bytes(encoding) == size
    assert len(to_pcm16(bytes(12), encoding)) == 12 // size * 2


@pytest.mark.parametrize(("encoding", "data"), [("pcm16", b"123"), ("float32", b"123456")])
def test_torn_sample_is_refused(encoding: str, data: bytes) -> None:
    """Bytes that end within a sample are the caller's mistake, and the error says what to give."""
    with pytest.raises(InvalidAudio, match=f"{len(data)} bytes are not whole {encoding} samples"):
        to_pcm16(data, encoding)


@pytest.mark.parametrize("encoding", ["opus", "", "MULAW", None])
def test_unknown_encoding_is_refused(encoding: str) -> None:
    """An encoding that is not known is refused, with those that are."""
    with pytest.raises(InvalidAudio, match="pcm16, float32, mulaw, alaw"):
        to_pcm16(b"", encoding)
    with pytest.raises(InvalidAudio, match="is not an encoding"):
        frame_bytes(encoding)
