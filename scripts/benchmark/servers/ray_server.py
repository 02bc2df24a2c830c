"""add_sub in Ray Serve: raw bytes in and out, one replica, batches of up to 8."""

from __future__ import annotations

import os
import signal
import tempfile
from typing import Any

import numpy as np

from .arguments import BATCH, LENGTH, add_sub, arguments, session

told = arguments()
words = told.variant.split("-")
# these are read when Ray is imported
if "throughput" in words:
    os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
if "haproxy" in words:
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
scratch = tempfile.gettempdir()
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0", "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": scratch}
for name, file in (("CONFIG_FILE_LOC", "haproxy.cfg"), ("SOCKET_PATH", "admin.sock"), ("METRICS_SOCKET_PATH", "metrics.sock")):
    os.environ[f"RAY_SERVE_HAPROXY_{name}"] = f"{scratch}/{file}"
for name, file in (("BASE", ""), ("FILE", "/server-state")):
    os.environ[f"RAY_SERVE_HAPROXY_SERVER_STATE_{name}"] = f"{scratch}/state{file}"

import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.serve.config import HTTPOptions  # noqa: E402
from ray.serve.schema import LoggingConfig  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import Response  # noqa: E402

MAX_ONGOING = 1024
BINARY = "application/octet-stream"


class Single:
    """Body: both inputs, little-endian INT32, one behind the other; the reply has sum and difference in the same form."""

    def __init__(self, model: str) -> None:
        self._model = session(model)

    async def __call__(self, request: Request) -> Response:
        pair = np.frombuffer(await request.body(), np.int32).reshape(1, 2, LENGTH)
        return Response(add_sub(self._model, pair).tobytes(), media_type=BINARY)


class Batching:
    """The same, several requests at once."""

    def __init__(self, model: str) -> None:
        self._model = session(model)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.001 if "wait" in words else 0.0)
    async def run(self, bodies: list[bytes]) -> list[bytes]:
        """Run several requests."""
        pairs = np.frombuffer(b"".join(bodies), np.int32).reshape(-1, 2, LENGTH)
        return [one.tobytes() for one in add_sub(self._model, pairs)]

    async def __call__(self, request: Request) -> Response:
        run: Any = self.run  # the decorator makes it take one body and give one result
        return Response(await run(await request.body()), media_type=BINARY)


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, object_store_memory=256 << 20)
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=told.port), logging_config=quiet)
    deployment = serve.deployment(num_replicas=1, max_ongoing_requests=MAX_ONGOING, logging_config=quiet)
    serve.run(deployment(Batching if "batching" in words else Single).bind(told.model), name="add_sub", route_prefix="/add_sub")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
