"""Sounds to try a voice detector on, made on the spot: 16 kHz, FP32, -1 to 1.

The speech is synthetic: a buzz like that of the vocal cords, through four resonances per vowel, with breath between the
syllables. A voice detector takes it for a voice; a person hears a robot.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
WINDOW, CONTEXT = 512, 64

Sound = NDArray[np.float32]
_Signal = NDArray[np.float64]

# the first four resonances in Hz
_VOWELS = {
    "a": (730, 1090, 2440, 3400),
    "e": (530, 1840, 2480, 3500),
    "i": (270, 2290, 3010, 3600),
    "o": (570, 840, 2410, 3300),
    "u": (300, 870, 2240, 3300),
}
_BANDWIDTHS_HZ = (80, 90, 120, 150)


def silence(seconds: float) -> Sound:
    """Almost nothing: the hiss of a microphone."""
    return _hiss(seconds, 0.001)


def noise(seconds: float) -> Sound:
    """A waterfall."""
    return _hiss(seconds, 0.1)


def speech(vowels: str = "aieoueaio") -> Sound:
    """Nonsense syllables, 0.3 s each."""
    generator = np.random.default_rng(1)
    parts: list[_Signal] = []
    for place, vowel in enumerate(vowels):
        pitch_hz = 118 + 12 * np.cos(2.4 * place)
        parts += [_breath(0.07, generator), _vowel(_VOWELS[vowel], 0.2, pitch_hz, generator), np.zeros(int(0.03 * RATE_HZ))]
    return np.concatenate(parts).astype(np.float32)


def windows(sound: Sound) -> Iterator[Sound]:
    """The sound as the detector takes it: [1,576] each, 64 samples of the past, then 512 new ones."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), sound])
    for start in range(0, len(sound) - WINDOW + 1, WINDOW):
        yield np.ascontiguousarray(padded[np.newaxis, start : start + CONTEXT + WINDOW])


def pcm(sound: Sound) -> bytes:
    """The sound as bare samples of 16 bits, little-endian."""
    return np.round(sound * 32767).clip(-32768, 32767).astype("<i2").tobytes()


def from_pcm(samples: bytes) -> Sound:
    """Bare samples of 16 bits as a sound."""
    return (np.frombuffer(samples, "<i2") / 32768).astype(np.float32)


def wav(sound: Sound) -> bytes:
    """The sound as a WAV file."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(pcm(sound))
    return content.getvalue()


def _hiss(seconds: float, loudness: float) -> Sound:
    generator = np.random.default_rng(1)
    return (loudness * generator.standard_normal(int(seconds * RATE_HZ))).astype(np.float32)


def _breath(seconds: float, generator: np.random.Generator) -> _Signal:
    length = int(seconds * RATE_HZ)
    signal = np.diff(generator.standard_normal(length), prepend=0)
    return _loud(signal, 0.12) * np.hanning(length)


def _vowel(resonances_hz: tuple[int, ...], seconds: float, pitch_hz: float, generator: np.random.Generator) -> _Signal:
    length = int(seconds * RATE_HZ)
    time = np.arange(length) / RATE_HZ
    melody = pitch_hz * (1 + 0.08 * np.sin(2 * np.pi * 2.3 * time)) * np.linspace(1.08, 0.9, length)
    pulses = np.diff(np.floor(np.cumsum(melody) / RATE_HZ), prepend=0)
    signal = np.diff(np.convolve(pulses, np.hanning(24))[:length], prepend=0) + 0.01 * generator.standard_normal(length)
    for frequency_hz, bandwidth_hz in zip(resonances_hz, _BANDWIDTHS_HZ, strict=True):
        signal = _resonance(signal, frequency_hz, bandwidth_hz)
    ramp = np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.03 * RATE_HZ)
    return _loud(signal, 0.5) * np.minimum(1, ramp)


def _loud(signal: _Signal, peak: float) -> _Signal:
    return signal * (peak / float(np.abs(signal).max()))


def _resonance(signal: _Signal, frequency_hz: float, bandwidth_hz: float) -> _Signal:
    """A two-pole resonator of gain 1 at 0 Hz."""
    radius = np.exp(-np.pi * bandwidth_hz / RATE_HZ)
    first, second = 2 * radius * np.cos(2 * np.pi * frequency_hz / RATE_HZ), -radius * radius
    gain = 1 - first - second
    out = np.zeros_like(signal)
    before, before_that = 0.0, 0.0
    for index, value in enumerate(signal):
        before, before_that = gain * value + first * before + second * before_that, before
        out[index] = before
    return out
