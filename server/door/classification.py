"""The classification extension: an output answered as the texts of its best classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...shm.arrays import np
from ...shm.datatypes import DATATYPES, serialize_bytes
from ...workers.contract.status import invalid

MAX_CLASSES = 1_000_000
"""Elements that one batch item of a classified output may have."""

_UNSORTABLE = frozenset(("BOOL", "FP16", "BF16", "BYTES"))
_SELECT_FROM = 4096


def classify(
    content: memoryview, datatype: str, shape: Sequence[int], batching: bool, count: int, labels: Sequence[str]
) -> tuple[bytes, tuple[int, ...]]:
    """The ``count`` largest elements of each batch item as ``value:index`` or ``value:index:label``, largest first.

    ``shape`` includes the batch dim where the model batches; ``labels`` has a text per index, empty
    for none, and may be shorter than the item. Elements that are equal come in order of their index,
    NaN last. Returns a serialised BYTES tensor and its shape, ``[batch,] min(count, elements)``. Raises
    StatusError INVALID_ARG for datatypes without order and for items that are too large.
    """
    if datatype in _UNSORTABLE:
        raise invalid(f"class result not available for output due to unsupported type '{datatype}'")
    values = np.frombuffer(content, DATATYPES[datatype].dtype)
    batch_size = shape[0] if batching and shape else 1
    item_size = len(values) // batch_size if batch_size else 0
    if item_size > MAX_CLASSES:
        raise invalid("classification output tensor too large")
    count = min(count, item_size)
    form = "%f:%d" if values.dtype.kind == "f" else "%d:%d"
    texts: list[bytes] = []
    for item in values.reshape(batch_size, item_size):
        for index in _largest(item, count).tolist():
            text = form % (item[index], index)
            if index < len(labels) and labels[index]:
                text = f"{text}:{labels[index]}"
            texts.append(text.encode("utf-8", "surrogateescape"))
    return serialize_bytes(texts), (batch_size, count) if batching else (count,)


def _largest(item: np.ndarray[Any, np.dtype[Any]], count: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """The indices of the ``count`` largest elements, largest first."""
    size = len(item)
    candidates = np.arange(size)
    if size > _SELECT_FROM and count * 4 < size and not (item.dtype.kind == "f" and np.isnan(item).any()):
        candidates = np.flatnonzero(item >= np.partition(item, size - count)[size - count])
    # sorting downwards what lies backwards keeps equal ones in order; NaN sorts as the largest, so it goes first here
    chosen = item[candidates][::-1]
    order = np.argsort(chosen, kind="stable")[::-1]
    if chosen.dtype.kind == "f":
        nan = np.isnan(chosen[order])
        order = np.concatenate((order[~nan], order[nan]))
    return candidates[::-1][order][:count]
