"""Writing without waiting: pipes nobody reads, readers that are gone, full disks, terminals."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorfarm.server.sink import Sink


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    open_ends = {reader, writer}
    yield reader, writer
    for end in open_ends:
        try:
            os.close(end)
        except OSError:
            assert end == reader  # the test closed it itself


def read_until(reader: int, ending: bytes) -> bytes:
    found = b""
    while not found.endswith(ending):
        more = os.read(reader, 65536)
        assert more
        found += more
    return found


def test_a_pipe_takes_records_at_once(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    assert sink.write(b"one\n")
    assert sink.write(b"two\n")
    assert os.read(reader, 100) == b"one\ntwo\n"
    sink.close()
    assert os.get_blocking(writer)  # shared with other processes: not ours to change


def test_a_full_pipe_keeps_records_waiting_and_loses_none(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    records = [b"%06d" % number + b"x" * 4000 + b"\n" for number in range(100)]
    for record in records:  # 400 kB into a pipe of 64 kB that nobody reads yet
        assert sink.write(record)
    assert not sink.flush(0.05)
    assert read_until(reader, records[-1]) == b"".join(records)
    assert sink.flush(5)
    assert sink.write(b"end\n")
    assert os.read(reader, 100) == b"end\n"
    assert sink.dropped == 0
    sink.close()


def test_beyond_the_backlog_records_are_dropped_whole(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer, backlog_limit=10_000)
    outcomes = [sink.write(b"%03d" % number + b"x" * 996 + b"\n") for number in range(200)]
    assert sink.dropped == outcomes.count(False) > 100
    kept = outcomes.count(True)
    received = b""
    while received.count(b"\n") < kept:
        received += os.read(reader, 65536)
    assert [int(line[:3]) for line in received.splitlines()] == [number for number, written in enumerate(outcomes) if written]
    sink.close()


def test_a_reader_that_left_costs_the_record(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    os.close(reader)
    assert not sink.write(b"one\n")
    assert not sink.write(b"two\n")
    assert sink.dropped == 2
    sink.close()


def test_a_reader_that_leaves_a_backlog_costs_the_backlog(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    for _ in range(40):
        sink.write(b"x" * 4096)
    os.close(reader)
    assert sink.flush(5)
    assert sink.dropped > 0
    sink.close()


def test_a_full_disk_costs_the_record() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    sink = Sink(descriptor, owned=True)
    assert not sink.write(b"one\n")
    assert sink.dropped == 1
    sink.close()


def test_a_closed_descriptor_costs_the_record(pipe: tuple[int, int]) -> None:
    sink = Sink(9999)
    assert not sink.write(b"one\n")
    assert sink.dropped == 1
    sink.close()


def test_a_file_gets_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    sink = Sink(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), owned=True)
    assert sink.write(b"x" * 1_000_000 + b"\n")
    sink.close()
    assert path.stat().st_size == 1_000_001
    assert not sink.write(b"late\n")


def test_a_terminal_that_stands_still_does_not_hold_the_writer() -> None:
    master, slave = os.openpty()
    try:
        sink = Sink(slave)
        finished = threading.Event()

        def write_much() -> None:
            for _ in range(200):
                sink.write(b"x" * 999 + b"\n")
            finished.set()

        writer = threading.Thread(target=write_much)
        writer.start()
        assert finished.wait(20)
        writer.join()
        assert not sink.flush(0.05)
        sink.close(0.05)
        assert sink.dropped > 0
    finally:
        os.close(master)
        os.close(slave)


def test_nothing_stays_open(pipe: tuple[int, int]) -> None:
    before = set(os.listdir("/proc/self/fd"))
    sink = Sink(pipe[1])
    sink.write(b"x")
    sink.close()
    sink.close()
    assert set(os.listdir("/proc/self/fd")) == before
