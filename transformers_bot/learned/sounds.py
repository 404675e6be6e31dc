"""Sound files as waves: .wav by the standard library, other files by soundfile where it is installed."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BadOption

SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff")
WIDTHS: dict[int, Any] = {
    1: np.dtype("u1"),
    2: np.dtype("<i2"),
    4: np.dtype("<i4"),
}  # bytes of a sample -> its type; three have none
LOUDEST = 2**31  # samples are shifted to 32 bits


def read_sound(path: Path, rate: int, seconds: float) -> Tensor:
    """The beginning of a file as one channel at `rate` samples a second, between -1 and 1: (sample,).

    Raises:
        BadOption: a file that cannot be read, or holds nothing.
    """
    reader = _read_wav if path.suffix.lower() == ".wav" else _read_with_soundfile
    samples, own_rate = reader(path, seconds)  # (sample, channel)
    if not len(samples):
        raise BadOption(f"{path} holds no sound.")
    return resampled(torch.from_numpy(samples).float().mean(1), own_rate, rate)


def resampled(x: Tensor, before: int, after: int) -> Tensor:
    """A wave at another rate: the same frequencies, without those that the new rate cannot hold.

    >>> resampled(torch.ones(4), 16_000, 8_000)
    tensor([1., 1.])
    """
    count = max(1, round(len(x) * after / before))
    if count == len(x):
        return x
    spectrum = torch.fft.rfft(x)[: count // 2 + 1]
    wave_at_rate: Tensor = torch.fft.irfft(spectrum, count) * (count / len(x))
    return wave_at_rate


def _read_wav(path: Path, seconds: float) -> tuple[Any, int]:
    try:
        with wave.open(str(path), "rb") as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            data = file.readframes(int(seconds * rate))
    except (OSError, EOFError, wave.Error) as error:
        raise BadOption(
            f"{path} cannot be read as a .wav file of whole numbers ({error or 'it ends too early'}). Convert it, for "
            "example with ffmpeg -i FILE -c:a pcm_s16le OUT.wav."
        ) from None
    data = data[: len(data) // (width * channels) * width * channels]  # a file may end within a sample
    if width == 3:
        low = np.frombuffer(data, np.uint8).reshape(-1, 3)
        numbers = np.pad(low, ((0, 0), (1, 0))).reshape(-1).view("<i4").astype(np.int64)
    else:
        offset = 128 if width == 1 else 0  # bytes have no sign
        numbers = (np.frombuffer(data, WIDTHS[width]).astype(np.int64) - offset) << (32 - 8 * width)
    return numbers.reshape(-1, channels) / LOUDEST, rate


def _read_with_soundfile(path: Path, seconds: float) -> tuple[Any, int]:
    try:
        import soundfile  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise BadOption(
            f"{path}: {path.suffix} files are read with soundfile, which is not installed: pip install soundfile, or "
            "convert the file to .wav."
        ) from None
    try:
        with soundfile.SoundFile(path) as file:
            return file.read(int(seconds * file.samplerate), always_2d=True), file.samplerate
    except (OSError, RuntimeError) as error:
        raise BadOption(f"{path} cannot be read as sound: {error}.") from None
