"""Clients on every GPU that register, ask and unregister side by side, while the workers of the GPUs are killed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from ..ensembles import write_ensembles
from ..model_repository import SIMPLE, Flavour, write_repository
from ..servers import Server, tensorfarm, wait_until
from . import nvml
from .doors import Door, Given, open_door
from .models import CHAIN, LARGE, on_cpu, on_gpu
from .presence import on_standin
from .processes import with_gpus
from .regions import CudaRegion, Part

pytestmark = pytest.mark.gpu

STORM_S = float(os.environ.get("TENSORFARM_STORM_S", "1.5" if on_standin() else "10"))
"""How long it lasts."""

CLIENTS = 6
SIZE = 4096

_client_memory = threading.Lock()
"""Held while this process works with its own GPU memory: what is tested is the server."""


class Client:
    """One client with two regions of its own, each on any GPU."""

    def __init__(self, number: int, server: Server, said: Counter[str]) -> None:
        self.number = number
        self.said = said
        self._server = server
        self._random = random.Random(number)

    def run(self, until: float) -> None:
        """Go on until a time of ``time.monotonic``."""
        with open_door(self._random.choice(["http", "grpc"]), self._server) as door:
            while time.monotonic() < until:
                with _client_memory:
                    regions = [CudaRegion(f"{name}{self.number}", SIZE, self._random.randrange(len(nvml.handles()))) for name in "ab"]
                if all([self._try("register", partial(region.register, door.client)) for region in regions]):
                    for _ in range(self._random.randint(1, 5)):
                        self._ask(door, *regions)
                for region in regions:
                    # It is told to be forgotten whatever became of it, and must be before it is freed.
                    region.unregister(door.client)
                with _client_memory:
                    for region in regions:
                        region.close()

    def _try(self, what: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except InferenceServerException as error:
            self.said[f"{what} refused"] += 1
            # A worker that is not there just now, and nothing else.
            assert "worker" in str(error), error
            return False
        self.said[f"{what} done"] += 1
        return True

    def _ask(self, door: Door, source: CudaRegion, target: CudaRegion) -> None:
        array = np.array([self._random.sample(range(1 << 20), 16)], np.int32)
        model = self._random.choice(["simple", "simple_cpu", "chain"])
        if model == "chain":
            inputs = {"IN": Given(array.view(np.float32)[0], Part(source, 256))}
            outputs, expected = {"OUT": Part(target, 512, 64)}, array
        else:
            inputs = {"INPUT0": Given(array, Part(source)), "INPUT1": Given(array, Part(source, 256))}
            outputs, expected = {"OUTPUT0": Part(target, 512, 64)}, array * 2

        def ask() -> None:
            asked = {name: door.given(name, given) for name, given in inputs.items()}
            door.client.infer(model, list(asked.values()), outputs=[door.wanted(name, part) for name, part in outputs.items()])

        with _client_memory:
            for given in inputs.values():
                assert given.part is not None
                source.write(given.array.tobytes(), given.part.offset)
        if self._try(model, ask):
            with _client_memory:
                content = target.read(64, 512)
            assert content == expected.tobytes(), f"{model} answered wrongly"


def test_nothing_is_wrong_and_nothing_is_left(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "models", (on_gpu(SIMPLE), on_cpu(SIMPLE), on_gpu(LARGE)), Flavour.ONNX)
    write_ensembles(repository, (CHAIN,))
    said: Counter[str] = Counter()
    failures: list[BaseException] = []
    with tensorfarm(repository, folder=tmp_path / "run", grpc=True) as server:
        until = time.monotonic() + STORM_S

        def run(client: Client) -> None:
            try:
                client.run(until)
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=run, args=(Client(number, server, said),)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            wait_until(lambda: len(with_gpus(server)) >= len(nvml.handles()), "the workers to be there")
            os.kill(random.choice(with_gpus(server)), signal.SIGKILL)
            time.sleep(STORM_S / 3)
        for thread in threads:
            thread.join()
        assert not failures
        assert all(said[f"{what} done"] for what in ("register", "simple", "simple_cpu", "chain")), said
        with open_door("http", server) as door:
            assert door.cuda_regions() == {}
            wait_until(lambda: server.ready(), "the workers to be back")
