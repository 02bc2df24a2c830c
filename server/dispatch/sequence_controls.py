"""The control tensors of a sequence model: what tells it where in which sequence a request stands.

Source: ``ModelSequenceBatching.ControlInput``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from ...shm.datatypes import BY_NUMBER, serialize_bytes
from ...shm.placement import Inline
from ...workers.contract.messages import Tensor
from ...workers.contract.status import StatusError, invalid

START, END = 1, 2
"""The flags of ``RequestContext``."""

_VALUE_FIELDS = (("int32_false_true", "INT32", "<i"), ("fp32_false_true", "FP32", "<f"), ("bool_false_true", "BOOL", "<?"))
_BITS = {"UINT64": 64, "INT64": 64, "UINT32": 32, "INT32": 32}


@dataclass(frozen=True, slots=True)
class CorrelationControl:
    """The control tensor that holds the correlation id: ``datatype`` is an integer type or BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def mismatch(self, correlation_id: int | str, model: str) -> StatusError | None:
        """Why an id cannot be told to the model, None where it can."""
        given = "BYTES" if isinstance(correlation_id, str) else "UINT64"
        if (given == "BYTES") == (self.datatype == "BYTES"):
            return None
        return invalid(f"sequence batching control '{self.name}' data-type is '{given}', but model '{model}' expects '{self.datatype}'")

    def tensor(self, correlation_id: int | str) -> Tensor:
        """The tensor for an id; one that is too large for its type is cut to its low bits, as the original does."""
        if self.datatype == "BYTES":
            content = bytes(serialize_bytes([str(correlation_id or "").encode()]))
        else:
            bits = _BITS[self.datatype]
            content = ((correlation_id if isinstance(correlation_id, int) else 0) & ((1 << bits) - 1)).to_bytes(bits // 8, "little")
        return Tensor(self.name, self.datatype, self.shape, Inline(memoryview(content)))


@dataclass(frozen=True, slots=True)
class Controls:
    """Every control of a model. A pair is the tensor for false and the one for true, () where the model has no such control."""

    start: tuple[Tensor, ...] = ()
    end: tuple[Tensor, ...] = ()
    ready: tuple[Tensor, ...] = ()
    correlation: CorrelationControl | None = None

    def tensors(self, flags: int, ready: bool, correlation_id: int | str) -> list[Tensor]:
        """The control tensors of one place of a batch."""
        tensors = []
        if self.start:
            tensors.append(self.start[bool(flags & START)])
        if self.end:
            tensors.append(self.end[bool(flags & END)])
        if self.ready:
            tensors.append(self.ready[ready])
        if self.correlation is not None:
            tensors.append(self.correlation.tensor(correlation_id))
        return tensors


def controls_of(config: Any) -> Controls:
    """The controls of a validated configuration with sequence batching."""
    shape = (1, 1) if config.max_batch_size else (1,)
    pairs: dict[str, tuple[Tensor, ...]] = {}
    correlation = None
    for tensor in config.sequence_batching.control_input:
        # A request has one tensor of a name, whatever kinds a configuration gives it.
        for control in tensor.control[:1]:
            kind = control.Kind.Name(control.kind)
            if kind == "CONTROL_SEQUENCE_CORRID":
                correlation = CorrelationControl(tensor.name, BY_NUMBER[control.data_type].name, shape)
            else:
                pairs[kind] = _pair(tensor.name, control, shape)
    return Controls(
        pairs.get("CONTROL_SEQUENCE_START", ()),
        pairs.get("CONTROL_SEQUENCE_END", ()),
        pairs.get("CONTROL_SEQUENCE_READY", ()),
        correlation,
    )


def _pair(name: str, control: Any, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    for field, datatype, code in _VALUE_FIELDS:
        values = getattr(control, field)
        if values:
            return tuple([Tensor(name, datatype, shape, Inline(memoryview(struct.pack(code, value)))) for value in values])
    return ()
