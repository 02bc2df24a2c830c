"""Server reflection: tools such as grpcurl ask what services there are, and for their descriptions.

Source: grpc/reflection/v1/reflection.proto and its older twin v1alpha, whose messages are the same bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from ...workers.contract.status import internal
from ..door.body import Body
from .protocol import HEALTH_SERVICE, SERVICE, Unparsable

if TYPE_CHECKING:
    from .rpc import Rpc

_logger = logging.getLogger(__name__)

REFLECTION_SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


def _library() -> tuple[Any, Any]:
    """What answers, and what a request is; imported only when somebody asks."""
    from grpc_reflection.v1alpha import reflection, reflection_pb2

    return reflection.ReflectionServicer((SERVICE, HEALTH_SERVICE, *REFLECTION_SERVICES)), reflection_pb2.ServerReflectionRequest


class Reflection:
    """Answers the requests of one call, in their order."""

    __slots__ = ("_bodies", "_ended", "_gone", "_rpc", "_task")

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._bodies: deque[Body] = deque()
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._gone = False

    @property
    def idle(self) -> bool:
        """As ``Receiver`` says."""
        return self._task is None

    def message(self, body: Body) -> None:
        """As ``Receiver`` says."""
        self._bodies.append(body)
        self._begin()

    def ended(self) -> None:
        """As ``Receiver`` says."""
        self._ended = True
        self._begin()

    def gone(self) -> None:
        """As ``Receiver`` says."""
        self._gone = True
        if self._task is not None:
            self._task.cancel()
        while self._bodies:
            self._bodies.popleft().release()

    def _begin(self) -> None:
        if self._task is None and not self._gone:
            self._task = asyncio.get_running_loop().create_task(self._answer())

    async def _answer(self) -> None:
        try:
            servicer, request_type = await asyncio.to_thread(_library)
            while self._bodies:
                body = self._bodies.popleft()
                content = bytes(body.view)
                body.release()
                for reply in servicer.ServerReflectionInfo(iter((request_type.FromString(content),)), None):
                    self._rpc.write(reply.SerializeToString())
            if self._ended:
                self._rpc.finish()
        except ValueError:
            # protobuf's DecodeError is one
            self._rpc.fail(Unparsable())
        except Exception:
            _logger.exception("a reflection request failed")
            self._rpc.fail(internal("internal error"))
        finally:
            self._task = None
