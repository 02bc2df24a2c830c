"""Writes the reply to an inference with large tensors in JSON in steps, in pieces that are never put together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from ...shm.datatypes import element_count
from ...workers.contract.messages import Tensor
from ...workers.contract.status import Code, StatusError, internal
from ..dispatch.request import Response
from .exchange import Reply
from .json_tensor import lengths_of, numbers_text, stored_numbers, strings_text
from .turns import Steps

SHORT_BYTE_SIZE = 32 * 1024
"""Tensors up to this size are written at once."""

_PIECE_COUNT = 4096
_PIECE_BYTE_SIZE = 64 * 1024


def unequal(tensor: Tensor) -> StatusError:
    """The error of an output that has another number of elements than its shape says."""
    return internal(f"output tensor shape does not match size of output for '{tensor.name}'")


@dataclass(slots=True)
class LongArray:
    """An output whose elements are still to be written, behind ``head``."""

    head: bytes
    tensor: Tensor
    content: memoryview


@final
class LongReply:
    """A reply that takes long to write: ``lead`` begins it, then come its outputs, of which ``arrays`` are still to be written.

    ``finish`` makes the reply of the pieces of its text.
    """

    __slots__ = ("_arrays", "_finish", "_lead", "_objects", "_response")

    def __init__(
        self,
        lead: bytes,
        objects: Sequence[bytes],
        arrays: Mapping[int, LongArray],
        response: Response,
        finish: Callable[[tuple[bytes, ...]], Reply],
    ) -> None:
        self._lead = lead
        self._objects = objects
        self._arrays = arrays
        self._response = response
        self._finish = finish

    def steps(self) -> Steps[Reply]:
        """Write it. Raises StatusError, and then the response is not released."""
        text: list[bytes] = []
        between = self._lead
        for index, written in enumerate(self._objects):
            text.append(between)
            between = b","
            array = self._arrays.get(index)
            if array is None:
                text.append(written)
                continue
            text.append(array.head)
            for piece in array_pieces(array.content, array.tensor):
                text.append(piece)
                yield
                if self._response.request.cancelled:
                    raise StatusError(Code.CANCELLED, "")
            text.append(b"]}")
        text.append(b"]}")
        return self._finish(tuple(text))


def array_pieces(content: memoryview, tensor: Tensor) -> Generator[bytes, None, None]:
    """A large tensor as one flat JSON array, its last bracket missing, in pieces. Raises StatusError where its size is wrong."""
    return (_strings if tensor.datatype == "BYTES" else _numbers)(content, tensor)


def _numbers(content: memoryview, tensor: Tensor) -> Generator[bytes, None, None]:
    """The elements with ``[`` before the first and commas between them. Raises StatusError where they are not as many as they should."""
    try:
        array = stored_numbers(content, tensor.datatype)
    except ValueError:
        raise unequal(tensor) from None
    if len(array) != element_count(tensor.shape):
        raise unequal(tensor)
    between = b"["
    for start in range(0, len(array), _PIECE_COUNT):
        yield between + numbers_text(array[start : start + _PIECE_COUNT])[1:-1]
        between = b","


def _strings(content: memoryview, tensor: Tensor) -> Generator[bytes, None, None]:
    """The same of a BYTES tensor."""
    between = b"["
    count = 0
    at = 0
    while at < len(content):
        try:
            lengths, stop = lengths_of(content, at, _PIECE_COUNT, _PIECE_BYTE_SIZE)
        except ValueError:
            raise unequal(tensor) from None
        count += len(lengths)
        yield between + strings_text(bytes(content[at:stop]), lengths)
        at = stop
        between = b","
    if count != element_count(tensor.shape):
        raise unequal(tensor)
