"""Requests end by reference counting alone: whatever they leave in cycles costs every later request the collector's time."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from typing import Any

from tensorfarm.server.dispatch.request import Request
from tensorfarm.server.http.exchange import Answer, Cancel, HttpRequest
from tensorfarm.server.http.inference import infer_guarded

from .doors import a_client, a_door, run
from .echo_service import EchoService, echo_signature, spec

BODY = b'{"inputs":[{"name":"IN","datatype":"INT8","shape":[2],"data":[1,2]}]}'
POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class LateService(EchoService):
    """Answers in a later turn of the loop, as the real one does."""

    def submit(self, version: Any, request: Request) -> None:
        asyncio.get_running_loop().call_soon(partial(super().submit, version, request))
        self.submitted.clear()


def test_a_request_leaves_no_cycle() -> None:
    service = LateService({"m": echo_signature("m", [spec("IN", "INT8", -1)])})

    def handle(request: HttpRequest, answer: Answer) -> Cancel | None:
        return infer_guarded(service, "m", "", request, answer)  # type: ignore[arg-type]

    async def scenario() -> int:
        async with a_door(handle) as door, a_client(door) as client:
            for warm in (True, False):
                if not warm:
                    gc.collect()
                    gc.disable()
                for _ in range(100):
                    await client.send(POST)
                    assert (await client.reply())[0] == 200
            return gc.collect()

    try:
        found = run(scenario)
    finally:
        gc.enable()
    assert found < 50, f"100 requests left {found} objects in cycles"
