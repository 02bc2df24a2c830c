"""Opens the sounds that people send: WAV files of any rate, and bare samples."""

import io
import wave

import numpy as np

RATE_HZ = 16_000
LONGEST_S = 600


class SoundError(Exception):
    """Bytes are not a sound that can be used; the text says why."""


def opened(content):
    """The samples, FP32, -1 to 1, 16 kHz, the channels mixed. Raises SoundError."""
    if content[:4] == b"RIFF":
        samples, rate_hz = wav(content)
    elif len(content) % 2:
        raise SoundError("neither a WAV file nor 16-bit samples: the number of bytes is odd")
    else:
        samples, rate_hz = np.frombuffer(content, "<i2") / np.float32(32768), RATE_HZ
    if len(samples) > LONGEST_S * rate_hz:
        raise SoundError(f"longer than {LONGEST_S} s")
    return samples.astype(np.float32) if rate_hz == RATE_HZ else resampled(samples, rate_hz)


def wav(content):
    """The mixed samples of a WAV file, and their rate in Hz."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            width, channels, rate_hz = file.getsampwidth(), file.getnchannels(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise SoundError(f"a WAV file that cannot be read: {str(error) or 'it is cut short'}") from error
    if width not in (1, 2, 4) or not 1000 <= rate_hz <= 384_000:
        raise SoundError(f"samples of {8 * width} bits at {rate_hz} Hz are not read")
    frames = frames[: len(frames) // (width * channels) * width * channels]
    if width == 1:  # the one width that has no sign
        samples = (np.frombuffer(frames, np.uint8).astype(np.float32) - 128) / 128
    else:
        samples = np.frombuffer(frames, f"<i{width}").astype(np.float32) / 2.0 ** (8 * width - 1)
    return samples.reshape(-1, channels).mean(axis=1), rate_hz


def resampled(samples, rate_hz):
    """The same sound at 16 kHz: its spectrum, cut off or continued with nothing."""
    count = len(samples) * RATE_HZ // rate_hz
    if not count:
        return np.zeros(0, np.float32)
    spectrum = np.fft.rfft(samples)[: count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (count / len(samples))).astype(np.float32)
