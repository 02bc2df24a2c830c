"""Answers that are kept: what a request is called, what is kept of its answer, and a cache of a given size in this process.

No clock and no I/O; a cache that lies elsewhere (``server/redis_cache.py``) is asked through the same ``Store``.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ...shm.placement import Inline, Lease, Span
from ...workers.contract.messages import RequestBody, Tensor

KEY_FORMAT = 1
"""Part of every key: another number for another way to make them."""

ENTRY_OVERHEAD = 512
TENSOR_OVERHEAD = 640
"""What an entry, and each tensor of it, takes beside the content, in bytes: the objects around it and its place in the cache."""

Found = Callable[["Entry | None"], None]
Inserted = Callable[[bool], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """The outputs of an answer, their content in memory that nothing else writes to; ``byte_size`` is what they count for."""

    outputs: tuple[Tensor, ...]
    byte_size: int


class Store(Protocol):
    """Where answers are kept. ``shared``: other servers see them too, so keys must not depend on this one."""

    @property
    def shared(self) -> bool: ...

    @property
    def largest_byte_size(self) -> int:
        """Entries larger than this are not kept."""

    def look_up(self, key: bytes, found: Found) -> None:
        """Call ``found`` on the loop, now or later, with the entry or None."""

    def insert(self, key: bytes, entry: Entry, inserted: Inserted) -> None:
        """Keep an entry; calls ``inserted`` on the loop, now or later. True: there was one already, which stays."""


def entry_byte_size(tensors: Iterable[tuple[Tensor, int]]) -> int:
    """What tensors with contents of so many bytes count for."""
    return ENTRY_OVERHEAD + sum(TENSOR_OVERHEAD + 8 * len(tensor.shape) + size for tensor, size in tensors)


def cacheable(body: RequestBody) -> bool:
    """Can the answer to a request be one that was kept?

    Not where anything of it lies in a client's region, which the client changes as it likes, nor where it belongs to a sequence.
    """
    context = body.context
    if context is not None and (context.correlation_id or context.flags):
        return False
    for output in body.outputs:
        if output.span is not None:
            return False
    for tensor in body.inputs:
        if type(tensor.place) is Span:
            return False
    return True


def contents(body: RequestBody, view: Callable[[Lease], memoryview]) -> list[memoryview]:
    """The bytes of a request's inputs, by their names, where they lie. Raises what ``view`` raises."""
    found = []
    for tensor in sorted(body.inputs, key=_name):
        place = tensor.place
        assert not isinstance(place, Span)
        found.append(place.content if isinstance(place, Inline) else view(place))
    return found


def digest(identity: bytes, output_count: int, body: RequestBody, inputs: Iterable[memoryview]) -> bytes:
    """What a request is called: 32 bytes that no other request has but one that must be answered alike.

    ``identity`` stands for the model, its version and this load of it, which has ``output_count`` outputs: asking for all of them is
    asking for none in particular. The id, the priority, the time-out and the form of the answer do not count, nor does the order of
    inputs and outputs; ``inputs`` are the bytes of the inputs in the order of their names.
    """
    wanted = sorted({output.name for output in body.outputs})
    if len(wanted) == output_count:
        wanted = []
    shapes = [(tensor.name, tensor.datatype, tensor.shape, tensor.place.byte_size) for tensor in sorted(body.inputs, key=_name)]
    # msgpack says of everything what it is and how long, so no two different heads are the same bytes.
    head = (KEY_FORMAT, identity, wanted, sorted(body.parameters.items()), shapes)
    made = hashlib.sha256(msgspec.msgpack.encode(head), usedforsecurity=False)
    for content in inputs:
        made.update(content)
    return made.digest()


def _name(tensor: Tensor) -> str:
    return tensor.name


class LocalCache:
    """A ``Store`` in this process that never takes more than ``byte_size`` bytes: what was used least recently goes first."""

    shared = False

    def __init__(self, byte_size: int) -> None:
        self.byte_size = byte_size
        self.used_byte_size = 0
        self.lookup_count = 0
        self.hit_count = 0
        self.eviction_count = 0
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def largest_byte_size(self) -> int:
        """As ``Store`` says."""
        return self.byte_size

    def look_up(self, key: bytes, found: Found) -> None:
        """As ``Store`` says; at once."""
        entry = self._entries.get(key)
        self.lookup_count += 1
        if entry is not None:
            self.hit_count += 1
            self._entries.move_to_end(key)
        found(entry)

    def insert(self, key: bytes, entry: Entry, inserted: Inserted) -> None:
        """As ``Store`` says; at once."""
        known = key in self._entries
        if not known and entry.byte_size <= self.byte_size:
            while self.used_byte_size + entry.byte_size > self.byte_size:
                _, oldest = self._entries.popitem(last=False)
                self.used_byte_size -= oldest.byte_size
                self.eviction_count += 1
            self._entries[key] = entry
            self.used_byte_size += entry.byte_size
        inserted(known)
