"""What the log is told of slow downloads."""

from __future__ import annotations

from tensorfarm.server.repository.cloud_progress import Progress


def test_a_line_every_five_seconds() -> None:
    now = [100.0]
    said: list[str] = []
    progress = Progress("model 'm'", 2, 3_000_000, said.append, lambda: now[0])
    progress.received(0, 500_000)
    now[0] += 4.9
    progress.finished(0, 1_000_000)
    assert said == []
    now[0] += 0.1
    progress.received(1, 500_000)
    progress.received(1, 600_000)
    assert said == ["downloading model 'm': 1 of 2 files, 1.5 of 3.0 MB"]
    now[0] += 60
    progress.finished(1, 2_000_000)
    assert said[1:] == ["downloading model 'm': 2 of 2 files, 3.0 of 3.0 MB"]


def test_another_attempt_counts_from_the_start() -> None:
    now = [0.0]
    said: list[str] = []
    progress = Progress("model 'm'", 1, 2_000_000, said.append, lambda: now[0])
    progress.received(0, 1_500_000)
    now[0] = 5.0
    progress.received(0, 100_000)
    assert said == ["downloading model 'm': 0 of 1 files, 0.1 of 2.0 MB"]
