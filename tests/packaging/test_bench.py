"""scripts/bench: the load generator against servers that misbehave, the keeper, tables, pictures and the document, and a short run."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ..servers import alive, wait_until
from .tree import ROOT

SCRIPTS = ROOT / "scripts"
REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"
OK = "HTTP/1.1 200 OK\r\n"

Import = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Import:
    """Imports modules of scripts/."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def plain(body: bytes, *headers: str, status: str = OK) -> bytes:
    head = [*headers, f"Content-Length: {len(body)}", "\r\n"]
    return (status + "\r\n".join(head)).encode() + body


def halves(reply: bytes) -> list[bytes]:
    return [reply[:30], reply[30:]]


def chunked(*pieces: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))
    return f"{OK}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks


@contextmanager
def answering(reply: Callable[[int], list[bytes] | None]) -> Iterator[tuple[str, int]]:
    """A server that sends the pieces ``reply(n)`` as its n-th answer, counted over all connections, or closes where that is None."""
    lock = threading.Lock()
    answered = 0

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            nonlocal answered
            received = b""
            try:
                while piece := self.request.recv(65536):
                    received += piece
                    while len(received) >= len(REQUEST):
                        received = received[len(REQUEST) :]
                        with lock:
                            number, answered = answered, answered + 1
                        pieces = reply(number)
                        if pieces is None:
                            return
                        for one in pieces:
                            self.request.sendall(one)
            except (BrokenPipeError, ConnectionResetError):
                return  # the load generator has seen enough

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield ("127.0.0.1", int(server.server_address[1]))
        finally:
            server.shutdown()
            thread.join()


GOOD: dict[str, Callable[[int], list[bytes] | None]] = {
    "always the same": lambda number: [plain(b"answer")],
    "a date that changes": lambda number: [plain(b"answer", f"Date: {number:08d}")],
    "a header that grows": lambda number: [plain(b"answer", f"Server-Timing: {'9' * (number % 40)}")],
    "in two pieces": lambda number: halves(plain(b"answer")),
    "in two pieces with a header that grows": lambda number: halves(plain(b"answer", f"A: {'9' * (number % 40)}")),
    "in chunks": lambda number: [chunked(b"ans", b"wer")],
    "in chunks that differ": lambda number: [chunked(b"answer"[: number % 5 + 1], b"answer"[number % 5 + 1 :])],
}


@pytest.mark.parametrize("reply", GOOD.values(), ids=GOOD)
def test_right_replies_are_counted_whatever_their_form(load: Import, reply: Callable[[int], list[bytes] | None]) -> None:
    generator = load("benchmark.load")
    with answering(reply) as address:
        result = generator.drive(address, REQUEST, 3, 0.1, generator.Reply(b"", b"answer", 0).sha256)
    assert result.requests >= 3
    assert result.seconds >= 0.1
    assert 0 < result.p50_us <= result.p99_us
    assert result.rate == pytest.approx(result.requests / result.seconds)


WRONG: dict[str, tuple[Callable[[int], list[bytes] | None], str]] = {
    "another body": (lambda number: [plain(b"answer" if number < 20 else b"answor")], "differs"),
    "another status": (lambda number: [plain(b"answer", status=OK if number < 20 else "HTTP/1.1 500 No\r\n")], "differs"),
    "a longer body": (lambda number: [plain(b"answer" if number < 20 else b"answer!")], "differs"),
    "a much longer body": (lambda number: [plain(b"answer" * (1 if number < 20 else 2000))], "differs"),
    "a shorter body": (lambda number: [plain(b"answer" if number < 20 else b"answ")], "differs"),
    "two at once": (lambda number: [plain(b"answer") * (1 if number < 20 else 2)], "differs"),
    "another body in chunks": (lambda number: [chunked(b"ans", b"wer" if number < 20 else b"wor")], "differs"),
    "a chunk of no size": (
        lambda number: [chunked(b"answer") if number < 20 else chunked(b"answer").replace(b"\r\n6\r\n", b"\r\nx\r\n")],
        "chunk's size",
    ),
    "an end": (lambda number: [plain(b"answer")] if number < 20 else None, "closed a connection"),
    "refused from the start": (lambda number: [plain(b"answer", status="HTTP/1.1 404 Not Found\r\n")], "404"),
    "neither length nor chunks": (lambda number: [f"{OK}\r\nanswer".encode()], "neither a content length nor chunks"),
    "not the answer that was checked": (lambda number: [plain(b"onswer")], "not the one that was checked"),
    "something after the first": (lambda number: [plain(b"answer") + b"!"], "follow the reply"),
}


@pytest.mark.parametrize(("reply", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_reply_ends_the_measurement(load: Import, reply: Callable[[int], list[bytes] | None], said: str) -> None:
    generator = load("benchmark.load")
    with answering(reply) as address, pytest.raises(generator.LoadError, match=said):
        generator.drive(address, REQUEST, 2, 20.0, generator.Reply(b"", b"answer", 0).sha256)


def test_the_load_generator_is_a_process_of_its_own(load: Import) -> None:
    measuring, workload, generator = load("benchmark.measuring"), load("benchmark.workload"), load("benchmark.load")
    ask = workload.Ask(REQUEST, lambda reply: None)
    with answering(lambda number: [plain(b"answer")] if number < 200 else [plain(b"another")]) as address:
        sha256 = measuring.checked(address[1], ask)
        assert measuring.measure(address[1], ask, sha256, 1, 0.001).requests >= 1
        with pytest.raises(generator.LoadError, match="differs|checked"):
            measuring.measure(address[1], ask, sha256, 2, 20.0)


def test_checks_know_right_from_wrong(load: Import) -> None:
    workload, generator = load("benchmark.workload"), load("benchmark.load")
    total, difference = np.arange(1, 17, dtype=np.int32), np.arange(-1, 15, dtype=np.int32)
    raw = total.tobytes() + difference.tobytes()
    named = {"OUTPUT0": total.tolist(), "OUTPUT1": difference.tolist()}
    outputs = [{"name": name, "shape": [1, 16], "datatype": "INT32"} for name in named]
    v2_json = json.dumps({"outputs": [output | {"data": named[output["name"]]} for output in outputs]}).encode()
    right = {
        workload.add_sub_raw: raw,
        workload.add_sub_json: json.dumps(named).encode(),
        workload.add_sub_json_to_raw: raw,
        workload.add_sub_msgpack: msgspec.msgpack.encode({"OUTPUT0": total.tobytes(), "OUTPUT1": difference.tobytes()}),
        workload.add_sub_v2_json: v2_json,
        workload.add_sub_v2_binary: json.dumps({"outputs": outputs}).encode() + raw,
        workload.add_sub_v2_binary_asked_once: json.dumps({"outputs": outputs}).encode() + raw,
    }
    for make, body in right.items():
        ask = make("/path")
        assert ask.request.startswith(b"POST /path HTTP/1.1\r\n")
        ask.check(generator.Reply(b"HTTP/1.1 200 OK", body, 0))
        for wrong in (body[:-1] + bytes([body[-1] ^ 1]), body.replace(b"OUTPUT0", b"OUTPUT2"), raw[64:] + raw[:64]):
            if wrong != body:
                with pytest.raises((workload.WrongAnswer, msgspec.DecodeError)):
                    ask.check(generator.Reply(b"HTTP/1.1 200 OK", wrong, 0))


def test_the_keeper_holds_on_to_orphans_and_ends_them(load: Import, tmp_path: Path) -> None:
    processes = load("benchmark.processes")
    orphan = "import os, time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nopen('burnt', 'w').close(); time.sleep(600)"
    middle = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {orphan!r}], start_new_session=True)"
    server = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {middle!r}]); time.sleep(600)"
    command = [sys.executable, "-m", "benchmark.keeper", str(tmp_path), sys.executable, "-c", server]
    keeper = subprocess.Popen(command, cwd=SCRIPTS, start_new_session=True)
    try:
        wait_until(lambda: (tmp_path / "burnt").exists(), "the orphan to use its time", 30)
        found = processes.descendants(keeper.pid)
        assert len(found) == 2
        assert processes.cpu_secs(keeper.pid) >= 0.2
        assert processes.memory_byte_size(keeper.pid) > 1 << 20
        keeper.send_signal(signal.SIGTERM)
        assert keeper.wait(30) == 128 + signal.SIGTERM
        assert not [pid for pid in found if alive(pid)]
    finally:
        if keeper.poll() is None:
            os.killpg(keeper.pid, signal.SIGKILL)
            keeper.wait()


def figures(load: Import, rate: float) -> Any:
    return load("benchmark.results").Figures(rate, 32e6 / rate, 64e6 / rate, 1e6 / rate, [rate])


@pytest.fixture
def results(load: Import) -> Any:
    """Made-up figures of every kind."""
    kept = load("benchmark.results")
    length = kept.Length(3, 2.0)
    rates = {"tensorfarm": 20000.0, "tritonserver": 8000.0, "ray": 150.0}
    http = [kept.HttpRow(name, level, figures(load, rate * level)) for level in (1, 8) for name, rate in rates.items()]
    sizes = [
        kept.SizeRow(name, "binary", size, figures(load, rates[name]))
        for name in ("tensorfarm", "tritonserver")
        for size in (1024, 1 << 20)
    ]
    sizes.append(kept.SizeRow("tensorfarm", "JSON", 1024, figures(load, 100.0)))
    targets = [
        kept.TargetRow("small", "tritonserver", "requests/s", 20000, 8000, 2.0, 3.5),
        kept.TargetRow("small", "tritonserver", "p50 ms", 0.3, 0.6, 1.0, 0.6, True),
        kept.TargetRow("small", "mosec", "requests/s", 90, 100, 1.0),
        kept.TargetRow("small", "tritonserver", "CPU µs/request", 60, 100, 0.5, None, True),
    ]
    return kept.Results(
        facts=kept.Facts("2026-01-01", "a CPU", 2, 8 << 30, "Linux 6", "3.12.1", 0.25, {"tensorfarm": "0.1.0", "Ray Serve": "2.60"}),
        http=kept.Http(length, http, {"tensorfarm": 100 << 20, "ray": 900 << 20}),
        variants=kept.Variants(
            length,
            [
                kept.VariantRow("ray", "one", "this way", 1, figures(load, 10.0)),
                kept.VariantRow("ray", "two", "that way", 32, figures(load, 20.0)),
            ],
        ),
        sizes=kept.Sizes(length, sizes, ["no more JSON"]),
        targets=kept.Targets(length, targets, ["LitServe was not measured"]),
        python=kept.Python(
            length,
            [
                kept.PythonRow(name, work, 2, figures(load, rates[name]))
                for work in ("small", "large")
                for name in ("tensorfarm", "tritonserver")
            ]
            + [kept.PythonRow("tensorfarm", "large", 4, figures(load, 10.0))],
            {"tensorfarm": 100 << 20},
            kept.Targets(length, [kept.TargetRow("large, 2 clients", "tritonserver", "requests/s", 20000, 8000, 3.0)], ["no small calls"]),
        ),
    )


def test_tables_say_what_was_measured(load: Import, results: Any) -> None:
    tables = load("benchmark.tables")
    http = tables.http_grid(results.http)
    assert http.rows[0] == ["1", "tensorfarm", "20,000", "", "1.60", "3.20", "50", "100"]
    assert http.rows[1] == ["1", "tritonserver", "8,000", "2.50 ×", "4.00", "8.00", "125", "-"]
    assert http.rows[2][3] == "133 ×"
    assert http.sections == {2, 5}
    assert [row[-1] for row in tables.targets_grid(results.targets).rows] == ["met", "met, stretch too", "missed", "missed"]
    assert [row[6] for row in tables.targets_grid(results.targets).rows] == ["≥ 2 (stretch 3.5)", "≤ 1 (stretch 0.6)", "≥ 1", "≤ 0.5"]
    sizes = tables.sizes_grid(results.sizes)
    assert sizes.rows[0][:5] == ["binary", "1 KiB", "1.60", "4.00", "0.40"]
    assert sizes.rows[2] == ["JSON", "1 KiB", "320", "-", "-", "10.0", "-"]
    assert tables.variants_grid(results.variants).rows == [
        ["Ray Serve", "this way", "10", "-", "3200.00", "-"],
        ["", "that way", "-", "20", "-", "1600.00"],
    ]
    assert tables.python_grid(results.python).rows == [
        ["small", "2", "20,000", "8,000", "2.50", "1.60", "4.00", "50", "125"],
        ["large", "2", "20,000", "8,000", "2.50", "1.60", "4.00", "50", "125"],
        ["", "4", "10", "-", "-", "3,200", "-", "100,000", "-"],
    ]
    lines = http.markdown().splitlines()
    assert lines[0].endswith("medians of 3 rounds of 2 s, in turns:")
    assert lines[3].startswith("| ---: | --- |")
    assert len(lines) == 4 + len(http.rows)


def test_medians_and_cpu_are_of_the_rounds(load: Import) -> None:
    kept, generator = load("benchmark.results"), load("benchmark.load")
    rounds = [generator.Result(requests, 2.0, p50, 2 * p50) for requests, p50 in ((100, 5.0), (900, 1.0), (200, 3.0))]
    one = kept.Figures.of(rounds, [0.01, 0.09, 0.04])
    assert (one.requests_per_second, one.p50_us, one.p99_us) == (100.0, 3.0, 6.0)
    assert one.cpu_us_per_request == pytest.approx(100.0)
    assert one.rates == [50.0, 450.0, 100.0]


def test_figures_survive_a_file(load: Import, results: Any, tmp_path: Path) -> None:
    kept = load("benchmark.results")
    kept.save(results, tmp_path / "new" / "results.json")
    assert kept.read(tmp_path / "new" / "results.json") == results


def test_pictures_are_drawn(load: Import, results: Any, tmp_path: Path) -> None:
    load("benchmark.results").save(results, tmp_path / "results.json")
    # matplotlib keeps its fonts open, so it works in a process of its own
    program = (
        "import sys; from pathlib import Path; from benchmark import document, results\n"
        "document.draw(results.read(Path(sys.argv[1], 'results.json')), Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=SCRIPTS, check=True, timeout=60)
    for name in ("http.png", "sizes.png", "python.png"):
        picture = (tmp_path / name).read_bytes()
        assert picture.startswith(b"\x89PNG\r\n")
        assert len(picture) > 10_000


def test_only_the_measured_part_of_the_document_is_replaced(load: Import, results: Any) -> None:
    document = load("benchmark.document")
    text = f"before\n{document.BEGIN}\nold\n{document.END}\nafter\n"
    filled = document.fill(text, results, "pictures")
    assert filled.startswith(f"before\n{document.BEGIN}\n") and filled.endswith(f"{document.END}\nafter\n")
    assert "old" not in filled and "pictures/http.png" in filled and "no more JSON" in filled and "LitServe was not measured" in filled
    assert "pictures/python.png" in filled and "no small calls" in filled
    assert document.fill(filled, results, "pictures") == filled
    with pytest.raises(document.DocumentError):
        document.fill("no marks", results, "pictures")


def test_the_document_shows_the_figures_that_are_kept(load: Import) -> None:
    document, kept = load("benchmark.document"), load("benchmark.results")
    text = (ROOT / "BENCHMARKS.md").read_text()
    folder = "scripts/benchmark/figures"
    assert document.fill(text, kept.read(ROOT / folder / "results.json"), folder) == text
    shown = re.findall(rf"\({folder}/(\w+\.png)\)", text)
    assert set(shown) >= {"http.png", "sizes.png"}
    for name in shown:
        assert (ROOT / folder / name).is_file()


def test_what_cannot_be_installed_is_said_and_left_out(load: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installing, frameworks = load("benchmark.installing"), load("benchmark.frameworks")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    missing = frameworks.Framework("none", "None", ("no-such-distribution >= 1",), "/", ())
    steps: list[str] = []
    with pytest.raises(installing.InstallError, match="no-such-distribution"):
        installing.install(missing, steps.append)
    assert steps[0] == "making an environment"
    assert not installing.installed(missing)


def bench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "bench.py"), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env={**os.environ, "XDG_CACHE_HOME": str(cwd)},
    )


def test_a_short_run(load: Import, tmp_path: Path) -> None:
    flags = ("--rounds=1", "--seconds=0.1", "--concurrency=1,2", "--json=http.json", "--plot=http.png")
    done = bench("http", "--against=mosec", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without mosec: it is not installed" in done.stdout
    kept = load("benchmark.results").read(tmp_path / "http.json")
    assert [(row.contender, row.concurrency) for row in kept.http.rows] == [("tensorfarm", 1), ("tensorfarm", 2)]
    assert all(row.figures.requests_per_second > 0 and row.figures.cpu_us_per_request >= 0 for row in kept.http.rows)
    assert kept.http.memory["tensorfarm"] > 10 << 20
    assert (tmp_path / "http.png").stat().st_size > 10_000


def test_a_short_run_of_every_way_to_send(load: Import, tmp_path: Path) -> None:
    done = bench("sizes", "--against=none", "--rounds=1", "--seconds=0.01", "--largest=1", "--json=sizes.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = load("benchmark.results").read(tmp_path / "sizes.json").sizes.rows
    assert {(row.way, row.byte_size) for row in rows} == {
        (way, 1 << power) for way in ("JSON", "binary", "shared memory") for power in range(10, 21, 2)
    }


def test_an_unknown_server_is_a_plain_error(tmp_path: Path) -> None:
    done = bench("http", "--against=torchserve", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith("error: --against: torchserve: not one of tritonserver, mlserver")
