"""Shared-memory regions on a running server: many clients, any offset, ends that come at the wrong moment."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..model_repository import IDENTITIES, PLAIN, SPIN, Flavour, write_repository
from ..servers import SHM, Server, alive, tensorfarm, wait_until
from ..wire import Connection, Reply, compact, exchange, request_bytes
from .spinning import Asked, ask_spin, cpu_s, steps_per_second, wait_running

MIB = 1 << 20


class Object:
    """A POSIX shared-memory object of this process, mapped; unlinked when closed."""

    def __init__(self, name: str, byte_size: int) -> None:
        self.key = f"/tensorfarm-test-{os.getpid()}-{name}"
        self.path = SHM / self.key[1:]
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(self.descriptor, byte_size)
        self.map = mmap(self.descriptor, byte_size)

    def __enter__(self) -> Object:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and unlink."""
        self.map.close()
        os.close(self.descriptor)
        self.path.unlink(missing_ok=True)

    def write(self, offset: int, array: np.ndarray) -> None:
        """Copy an array's bytes in."""
        content = array.tobytes()
        self.map[offset : offset + len(content)] = content

    def read(self, offset: int, count: int, dtype: Any = np.int32) -> np.ndarray:
        """A copy of what lies there."""
        return np.frombuffer(self.map[offset : offset + count * np.dtype(dtype).itemsize], dtype)


def _register(server: Server, name: str, key: str, byte_size: int, offset: int = 0) -> Reply:
    body = {"key": key, "offset": offset, "byte_size": byte_size}
    return server.ask("POST", f"/v2/systemsharedmemory/region/{name}/register", body)


def _unregister(server: Server, name: str) -> Reply:
    return server.ask("POST", f"/v2/systemsharedmemory/region/{name}/unregister")


def _names(server: Server) -> set[str]:
    return {entry["name"] for entry in server.ask("GET", "/v2/systemsharedmemory/status").json}


def _body(shape: list[int], source: tuple[str, int], target: tuple[str, int] | None = None, datatype: str = "INT32") -> dict[str, Any]:
    byte_size = int(np.prod(shape)) * {"INT32": 4, "INT64": 8, "UINT8": 1}[datatype]

    def place(region: tuple[str, int]) -> dict[str, Any]:
        return {"shared_memory_region": region[0], "shared_memory_offset": region[1], "shared_memory_byte_size": byte_size}

    content: dict[str, Any] = {"inputs": [{"name": "INPUT0", "shape": shape, "datatype": datatype, "parameters": place(source)}]}
    if target is not None:
        content["outputs"] = [{"name": "OUTPUT0", "parameters": place(target)}]
    return content


IDENTITY = "/v2/models/identity_int32/infer"


@pytest.mark.parametrize("offset", [0, 1, 3, 4096, 4099, 8191])
def test_any_byte_offset(offset: int, farm: Server) -> None:
    """Of the region in its object, and of the tensor in its region."""
    values = np.arange(100, dtype=np.int32) * 7
    with Object("offsets", 4 * 4096) as memory:
        memory.write(offset + 5, values)
        assert _register(farm, "any", memory.key, 2000, offset).status == 200
        reply = farm.ask("POST", IDENTITY, _body([100], ("any", 5), ("any", 1111)))
        assert reply.status == 200, reply.body
        np.testing.assert_array_equal(memory.read(offset + 1111, 100), values)
        assert _unregister(farm, "any").status == 200


def test_several_clients_share_a_region(farm: Server) -> None:
    """Eight clients at once, each with its own part of one region, a hundred requests each."""
    with Object("shared", 8 * 4096) as memory:
        assert _register(farm, "shared", memory.key, 8 * 4096).status == 200
        wrong: list[str] = []

        def client(number: int) -> None:
            for turn in range(40):
                values = np.full(64, number * 1000 + turn, np.int32)
                memory.write(number * 4096, values)
                reply = farm.ask("POST", IDENTITY, _body([64], ("shared", number * 4096), ("shared", number * 4096 + 2048)))
                if reply.status != 200 or not np.array_equal(memory.read(number * 4096 + 2048, 64), values):
                    wrong.append(f"client {number}, turn {turn}: {reply.body!r}")

        threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not wrong
        assert _unregister(farm, "shared").status == 200


def test_large_tensor(farm: Server) -> None:
    """16 MiB in and out through regions, equal to the byte."""
    values = np.random.default_rng(3).integers(0, 256, 16 * MIB, np.uint8)
    with Object("large", 33 * MIB) as memory:
        memory.write(0, values)
        assert _register(farm, "large", memory.key, 33 * MIB).status == 200
        reply = farm.ask("POST", "/v2/models/identity_uint8/infer", _body([16 * MIB], ("large", 0), ("large", 17 * MIB), "UINT8"))
        assert reply.status == 200, reply.body
        assert memory.map[17 * MIB :] == values.tobytes()
        assert _unregister(farm, "large").status == 200


def test_register_again_after_the_client_s_restart(farm: Server) -> None:
    """A new object under the old key is the new object, once the old region is unregistered."""
    for value in (1, 2):
        with Object("restart", 4096) as memory:
            memory.write(0, np.full(8, value, np.int32))
            assert _register(farm, "restart", memory.key, 4096).status == 200
            reply = farm.ask("POST", IDENTITY, _body([8], ("restart", 0)))
            assert reply.json["outputs"][0]["data"] == [value] * 8
            assert _unregister(farm, "restart").status == 200


def test_object_unlinked_by_its_client(farm: Server) -> None:
    """The region goes on working until it is unregistered."""
    memory = Object("unlinked", 4096)
    memory.write(0, np.full(8, 9, np.int32))
    assert _register(farm, "unlinked", memory.key, 4096).status == 200
    memory.close()
    reply = farm.ask("POST", IDENTITY, _body([8], ("unlinked", 0)))
    assert reply.json["outputs"][0]["data"] == [9] * 8
    assert _names(farm) == {"unlinked"}
    assert _unregister(farm, "unlinked").status == 200
    assert farm.ask("POST", IDENTITY, _body([8], ("unlinked", 0))).status == 404


def test_unregister_while_in_flight(farm: Server, steps: int) -> None:
    """The request that uses the region finishes; the region stays listed until then."""
    (worker,) = farm.workers()
    with Object("in-flight", 4096) as memory:
        memory.write(0, np.array([steps], np.int64))
        assert _register(farm, "in-flight", memory.key, 4096).status == 200
        idle = cpu_s(worker)
        asked = _ask(farm, "/v2/models/spin/infer", _body([1], ("in-flight", 0), ("in-flight", 64), "INT64"))
        wait_running(worker, idle)
        assert _unregister(farm, "in-flight").status == 200
        assert not asked.done
        assert "in-flight" in _names(farm)
        assert asked.result().status == 200
        assert memory.read(64, 1, np.int64)[0] == steps
        wait_until(lambda: "in-flight" not in _names(farm), "the region to go")


def _ask(server: Server, path: str, content: dict[str, Any]) -> Asked:
    return Asked(server, path, compact(content))


def test_storm_of_registrations(farm: Server) -> None:
    """Many clients that register and unregister the same few names end with none registered."""
    with Object("storm", 4096) as memory:
        statuses: list[int] = []

        def client(number: int) -> None:
            for turn in range(25):
                name = f"storm{(number + turn) % 3}"
                statuses.append(_register(farm, name, memory.key, 64).status)
                statuses.append(_unregister(farm, name).status)

        threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert set(statuses) <= {200, 400}
        assert len(statuses) == 400
        assert not {name for name in _names(farm) if name.startswith("storm")}


@pytest.mark.parametrize(("flag", "status"), [("true", 200), ("false", 501), (None, 200)])
def test_allow_client_shm(flag: str | None, status: int, tmp_path: Path) -> None:
    """``true``: allowed; ``false``: refused with the way out; unset: allowed to this host's own clients, which this one is."""
    models = write_repository(tmp_path / "models", (PLAIN,), Flavour.ONNX)
    flags = [] if flag is None else [f"--allow-client-shm={flag}"]
    with tensorfarm(models, *flags, folder=tmp_path / "run") as server, Object("allowed", 4096) as memory:
        reply = _register(server, "r", memory.key, 64)
        assert reply.status == status
        if status == 501:
            message = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
            assert reply.error == message
            assert _unregister(server, "r").error == message
            assert server.ask("GET", "/v2/systemsharedmemory/status").json == []
        else:
            assert _names(server) == {"r"}


@pytest.fixture
def own_farm(tmp_path: Path) -> Iterator[Server]:
    """A server whose worker may die."""
    models = (*(one for one in IDENTITIES if one.name in ("identity_int32", "identity_uint8")), SPIN)
    with tensorfarm(write_repository(tmp_path / "models", models, Flavour.ONNX), folder=tmp_path / "run") as server:
        yield server


def test_truncated_object(own_farm: Server) -> None:
    """A client that shrinks its object under a registered region costs at worst the worker; others go on."""
    with Object("shrunk", 4 * MIB) as memory, Object("sound", 4096) as sound:
        sound.write(0, np.full(8, 5, np.int32))
        assert _register(own_farm, "shrunk", memory.key, 4 * MIB).status == 200
        assert _register(own_farm, "sound", sound.key, 4096).status == 200
        good = _body([8], ("sound", 0))
        assert own_farm.ask("POST", IDENTITY, good).status == 200
        path = "/v2/models/identity_uint8/infer"
        assert own_farm.ask("POST", path, _body([MIB], ("shrunk", 0), ("shrunk", 2 * MIB), "UINT8")).status == 200
        os.ftruncate(memory.descriptor, 0)
        reply = own_farm.ask("POST", path, _body([MIB], ("shrunk", 0), ("shrunk", 2 * MIB), "UINT8"))
        assert reply.status in (400, 500, 503)
        assert reply.error
        assert alive(own_farm.pid)
        wait_until(own_farm.ready, "the server to be ready again")
        assert own_farm.ask("POST", IDENTITY, good).json["outputs"][0]["data"] == [5] * 8
        assert _names(own_farm) == {"shrunk", "sound"}


def test_regions_survive_the_worker(own_farm: Server) -> None:
    """What is registered stays so when the worker that had it mapped is replaced."""
    second = steps_per_second(own_farm)
    (worker,) = own_farm.workers()
    with Object("survivor", 4096) as memory:
        memory.write(0, np.full(8, 6, np.int32))
        assert _register(own_farm, "survivor", memory.key, 4096).status == 200
        assert own_farm.ask("POST", IDENTITY, _body([8], ("survivor", 0))).status == 200
        idle = cpu_s(worker)
        lost = ask_spin(own_farm, 20 * second)
        wait_running(worker, idle)
        os.kill(worker, 9)
        assert lost.result().status == 503
        wait_until(own_farm.ready, "the server to be ready again")
        reply = own_farm.ask("POST", IDENTITY, _body([8], ("survivor", 0), ("survivor", 64)))
        assert reply.status == 200, reply.body
        np.testing.assert_array_equal(memory.read(64, 8), np.full(8, 6, np.int32))


def test_output_of_a_client_that_left(own_farm: Server) -> None:
    """A client that closes its connection while its request runs harms nobody; its region can be unregistered."""
    second = steps_per_second(own_farm)
    (worker,) = own_farm.workers()
    with Object("left", 4096) as memory:
        memory.write(0, np.array([second // 2], np.int64))
        assert _register(own_farm, "left", memory.key, 4096).status == 200
        idle = cpu_s(worker)
        connection = Connection(own_farm.http_port)
        connection.send(request_bytes("POST", "/v2/models/spin/infer", compact(_body([1], ("left", 0), ("left", 64), "INT64"))))
        wait_running(worker, idle)
        connection.abort()
        assert exchange(own_farm.http_port, "GET", "/v2/health/live").status == 200
        assert _unregister(own_farm, "left").status == 200
        wait_until(lambda: "left" not in _names(own_farm), "the region to go")
        assert own_farm.workers() == [worker]
