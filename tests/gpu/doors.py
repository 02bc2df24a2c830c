"""The stock clients of both protocols behind one face: tensors in the message or in regions, on either side."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gevent
import ml_dtypes
import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from ..servers import Server
from .regions import Part, Region

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.object_,
}
"""numpy's type of every wire datatype."""

_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def content_of(array: Array) -> bytes:
    """A tensor's bytes as they go over the wire."""
    return bytes(serialize_byte_tensor(array).item()) if array.dtype == np.object_ else array.tobytes()


@dataclass(frozen=True)
class Given:
    """An input: in the message, or in a part of a region."""

    array: Array
    part: Part | None = None


@dataclass(frozen=True)
class Door:
    """A client and the module that it is of."""

    name: str
    client: Any
    module: Any

    def ask(
        self, model: str, inputs: Mapping[str, Array | Given], outputs: Mapping[str, Part | None] | None = None, **options: Any
    ) -> dict[str, Array]:
        """One inference. Inputs of regions are written there first; outputs are read where they are said to be put: None, the message.

        Raises InferenceServerException.
        """
        wanted = [self.wanted(name, part) for name, part in (outputs or {}).items()]
        result = self.client.infer(model, [self._input(name, given) for name, given in inputs.items()], outputs=wanted or None, **options)
        parts = {name: part for name, part in (outputs or {}).items() if part is not None}
        names = outputs or [_member(output, "name") for output in _member(result.get_response(), "outputs")]
        return {name: self._read(result.get_output(name), parts[name]) if name in parts else result.as_numpy(name) for name in names}

    def _input(self, name: str, given: Array | Given) -> Any:
        array, part = (given.array, given.part) if isinstance(given, Given) else (given, None)
        if part is not None:
            part.region.write(content_of(array), part.offset)
        return self.given(name, Given(array, part))

    def given(self, name: str, given: Given) -> Any:
        """An input for the client, of a tensor that has been written to its place."""
        array, part = given.array, given.part
        made = self.module.InferInput(name, list(array.shape), _NAMES[array.dtype])
        if part is None:
            made.set_data_from_numpy(array)
        else:
            made.set_shared_memory(part.region.name, part.byte_size or len(content_of(array)), part.offset)
        return made

    def wanted(self, name: str, part: Part | None) -> Any:
        """An output for the client to ask for, and where it is to go."""
        made = self.module.InferRequestedOutput(name)
        if part is not None:
            made.set_shared_memory(part.region.name, part.byte_size or part.region.byte_size - part.offset, part.offset)
        return made

    def _read(self, output: Any, part: Part) -> Array:
        shape = list(map(int, _member(output, "shape")))
        datatype = _member(output, "datatype")
        if datatype == "BYTES":
            content = part.region.read(part.byte_size or part.region.byte_size - part.offset, part.offset)
            count = int(np.prod(shape))
            return np.array(_first_elements(content, count), np.object_).reshape(shape)
        dtype = np.dtype(DTYPES[datatype])
        return np.frombuffer(part.region.read(int(np.prod(shape)) * dtype.itemsize, part.offset), dtype).reshape(shape)

    @contextlib.contextmanager
    def registered(self, *regions: Region) -> Iterator[None]:
        """The server knows these regions in the block. They are freed in its end, once it has forgotten them."""
        known: list[Region] = []
        try:
            for region in regions:
                region.register(self.client)
                known.append(region)
            yield
        finally:
            for region in known:
                region.unregister(self.client)
            for region in regions:
                region.close()

    def cuda_regions(self) -> dict[str, tuple[int, int]]:
        """The CUDA regions that the server knows: device and bytes by name."""
        status = self.client.get_cuda_shared_memory_status()
        listed = status if isinstance(status, list) else status.regions.values()
        return {_member(one, "name"): (int(_member(one, "device_id")), int(_member(one, "byte_size"))) for one in listed}


def _first_elements(content: bytes, count: int) -> list[bytes]:
    """The first elements of length-prefixed BYTES, behind which there may be anything."""
    end = 0
    for _ in range(count):
        end += 4 + int.from_bytes(content[end : end + 4], "little")
    return list(deserialize_bytes_tensor(content[:end]))


def _member(answer: Any, name: str) -> Any:
    return answer[name] if isinstance(answer, dict) else getattr(answer, name)


@contextlib.contextmanager
def open_door(name: str, server: Server) -> Iterator[Door]:
    """The stock client of ``http`` or ``grpc``, for the thread that opens it."""
    module: Any = tritonclient.http if name == "http" else tritonclient.grpc
    port = server.http_port if name == "http" else server.grpc_port
    options = {"network_timeout": 120.0, "connection_timeout": 120.0} if name == "http" else {}
    with contextlib.closing(module.InferenceServerClient(f"127.0.0.1:{port}", **options)) as client:
        yield Door(name, client, module)
    if name == "http" and threading.current_thread() is not threading.main_thread():
        # The client's event loop is this thread's, and would outlive it.
        gevent.get_hub().destroy(destroy_loop=True)
