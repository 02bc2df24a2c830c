"""Server reflection: tools such as grpcurl ask what services there are, and for their descriptions.

Source: gRPC's server-reflection.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError

from ...workers.contract.status import unavailable
from ..door.body import Body
from .protocol import SERVICE, Unparsable
from .standard_files import HEALTH, OLD_REFLECTION, POOL, REFLECTION, message_class
from .status import INVALID_ARGUMENT, NOT_FOUND

if TYPE_CHECKING:
    from .rpc import Rpc

REFLECTION_SERVICES = (f"{REFLECTION}.ServerReflection", f"{OLD_REFLECTION}.ServerReflection")
"""The two names of the service, whose messages are the same bytes."""

_SERVICES = (SERVICE, f"{HEALTH}.Health", *REFLECTION_SERVICES)
_UNSENT_BYTE_SIZE = 1024 * 1024
_Request: Any = message_class(f"{REFLECTION}.ServerReflectionRequest")
_Response: Any = message_class(f"{REFLECTION}.ServerReflectionResponse")


class Reflection:
    """Answers the requests of one call, each at once."""

    __slots__ = ("_rpc",)
    idle = True

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    def message(self, body: Body) -> None:
        """As ``Receiver`` says."""
        content = bytes(body.view)
        body.release()
        try:
            request = _Request.FromString(content)
        except DecodeError:
            self._rpc.fail(Unparsable())
        else:
            if self._rpc.unsent_byte_size > _UNSENT_BYTE_SIZE:
                self._rpc.fail(unavailable("take what you have asked for first"))
            else:
                self._rpc.write(answer(request).SerializeToString())

    def ended(self) -> None:
        """As ``Receiver`` says."""
        self._rpc.finish()

    def gone(self) -> None:
        """As ``Receiver`` says: there is nothing to cancel."""


def answer(request: Any) -> Any:
    """The answer to one request: a ``ServerReflectionResponse``."""
    response = _Response(valid_host=request.host, original_request=request)
    asked = request.WhichOneof("message_request")
    if asked == "list_services":
        for name in _SERVICES:
            response.list_services_response.service.add(name=name)
        return response
    try:
        if asked == "file_by_filename":
            file = _found("FindFileByName", request.file_by_filename)
        elif asked == "file_containing_symbol":
            file = _found("FindFileContainingSymbol", request.file_containing_symbol)
        elif asked == "all_extension_numbers_of_type":
            name = _found("FindMessageTypeByName", request.all_extension_numbers_of_type).full_name
            response.all_extension_numbers_response.base_type_name = name
            return response
        elif asked == "file_containing_extension":
            # The messages of this server have none.
            raise KeyError
        else:
            response.error_response.error_code = INVALID_ARGUMENT
            response.error_response.error_message = "a reflection request asks for something"
            return response
    except KeyError:
        response.error_response.error_code = NOT_FOUND
        response.error_response.error_message = "not found"
        return response
    response.file_descriptor_response.file_descriptor_proto.extend(_with_dependencies(file, {}).values())
    return response


def _found(method: str, name: str) -> Any:
    """What a pool's method finds in the standard files or in the others. Raises KeyError."""
    try:
        return getattr(POOL, method)(name)
    except KeyError:
        return getattr(descriptor_pool.Default(), method)(name)


def _with_dependencies(file: Any, found: dict[str, bytes]) -> dict[str, bytes]:
    """A file and all that it needs, serialised, by name."""
    if file.name not in found:
        found[file.name] = file.serialized_pb
        for dependency in file.dependencies:
            _with_dependencies(dependency, found)
    return found
