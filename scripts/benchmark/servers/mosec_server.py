"""add_sub in mosec: one worker behind its Rust front, which forms batches."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from mosec import Server, Worker
from mosec.mixin import MsgpackMixin

from .arguments import LENGTH, Tensor, add_sub, arguments, session

# mosec reads the command line too: its settings come by its environment variables
MODEL = "BENCH_MODEL"


class RawAddSub(Worker):
    """Body: both inputs, little-endian INT32, one behind the other; the reply has sum and difference in the same form."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._model = session(os.environ[MODEL])

    def deserialize(self, data: bytes) -> Tensor:
        return np.frombuffer(data, np.int32).reshape(2, LENGTH)

    def forward(self, data: Any) -> Any:
        if self.max_batch_size == 1:  # then it is the tensor itself, not a list
            return add_sub(self._model, data[np.newaxis])[0]
        return list(add_sub(self._model, np.stack(data)))

    def serialize(self, data: Tensor) -> bytes:
        return data.tobytes()


class MsgpackAddSub(MsgpackMixin, Worker):
    """Body: a msgpack map with each input's bytes; the reply likewise."""

    def __init__(self) -> None:
        super().__init__()
        self._model = session(os.environ[MODEL])

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, bytes]]:
        pairs = np.stack([np.frombuffer(one["INPUT0"] + one["INPUT1"], np.int32).reshape(2, LENGTH) for one in data])
        return [{"OUTPUT0": one[0].tobytes(), "OUTPUT1": one[1].tobytes()} for one in add_sub(self._model, pairs)]


if __name__ == "__main__":
    told = arguments()
    os.environ |= {MODEL: told.model, "MOSEC_PORT": str(told.port), "MOSEC_ADDRESS": "127.0.0.1", "MOSEC_LOG_LEVEL": "warning"}
    del sys.argv[1:]
    body, batch, wait_ms = told.variant.split("-")
    server = Server()
    server.append_worker({"raw": RawAddSub, "msgpack": MsgpackAddSub}[body], max_batch_size=int(batch), max_wait_time=int(wait_ms))
    server.run()
