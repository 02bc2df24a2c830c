"""Reads a PyTorch checkpoint of the format before 1.6 into numpy arrays, without torch and without running what is in it.

The format: three pickles (magic number, protocol number, machine facts), the pickled state dict, the pickled list of
storage keys, then each storage as an int64 element count and its raw elements.

Why this may read a pickle at all: a pickle runs code only through the callables that ``find_class`` gives it. Ours gives
out three names, all of which end in this file or in ``OrderedDict``, and refuses every other one; ``persistent_load``
turns storages into records. The product itself (server, workers, shm) never reads pickles.
"""

from __future__ import annotations

import io
import pickle  # noqa: TID251 - the allow-listed reader below, see the module's first lines
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_STORAGES = {"FloatStorage": np.float32, "HalfStorage": np.float16, "IntStorage": np.int32, "LongStorage": np.int64}


@dataclass(slots=True)
class _Storage:
    """A flat run of elements that tensors are cut from; its bytes follow after the pickles."""

    dtype: np.dtype[Any]
    count: int


@dataclass(slots=True)
class _Cut:
    """A tensor as the checkpoint describes it: a strided view of a storage, offset and strides in elements."""

    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Reader(pickle.Unpickler):
    """Unpickles plain containers, numbers, strings, and the records above; anything else is an error."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _cut
        if module == "torch" and name in _STORAGES:
            return name
        raise pickle.UnpicklingError(f"a checkpoint of weights has no use for {module}.{name}")

    def persistent_load(self, pid: Any) -> str:
        _, storage, key, _, count, _ = pid
        self.storages[key] = _Storage(np.dtype(_STORAGES[storage]), int(count))
        return str(key)


def _cut(key: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> _Cut:
    return _Cut(key, offset, tuple(shape), tuple(strides))


def state_dict(content: bytes) -> dict[str, NDArray[Any]]:
    """Every tensor of the checkpoint ``content`` by name.

    Raises ValueError where it is not such a checkpoint, or holds anything but tensors.
    """
    stream = io.BytesIO(content)
    try:
        if (_Reader(stream).load(), _Reader(stream).load()) != (_MAGIC, _PROTOCOL):
            raise ValueError("not a PyTorch checkpoint of the format before 1.6")
        _Reader(stream).load()
        reader = _Reader(stream)
        cuts = reader.load()
        keys = _Reader(stream).load()
    except pickle.UnpicklingError as error:
        raise ValueError(str(error)) from error

    flats: dict[str, NDArray[Any]] = {}
    for key in keys:
        storage = reader.storages[key]
        (count,) = struct.unpack("<q", stream.read(8))
        if count != storage.count:
            raise ValueError(f"storage {key} has {count} elements, expected {storage.count}")
        flats[key] = np.frombuffer(stream.read(count * storage.dtype.itemsize), storage.dtype, count)

    tensors = {}
    for name, cut in cuts.items():
        if not isinstance(cut, _Cut):
            raise ValueError(f"{name} is not a tensor")
        tensors[name] = _array(flats[cut.key], cut)
    return tensors


def _array(flat: NDArray[Any], cut: _Cut) -> NDArray[Any]:
    last = cut.offset + sum((size - 1) * stride for size, stride in zip(cut.shape, cut.strides, strict=True))
    if cut.offset < 0 or last >= len(flat) or min((*cut.shape, *cut.strides, 0)) < 0:
        raise ValueError("a tensor lies outside its storage")
    steps = tuple(stride * flat.itemsize for stride in cut.strides)
    return np.lib.stride_tricks.as_strided(flat[cut.offset :], cut.shape, steps).copy()
