"""Raw inference requests: a body that is the data of the model's only input, nothing else."""

from __future__ import annotations

from ...shm.placement import Inline, Placement
from ...workers.contract.messages import RequestBody, RequestContext, Tensor
from ...workers.contract.signature import Signature
from ...workers.contract.status import invalid, label
from ...workers.contract.validation import size_mismatch
from ..door.body import ArenaBody, Body
from ..door.scratch import Scratch
from .infer_call import IN_BINARY, InferCall


def read_raw(body: Body, signature: Signature, scratch: Scratch, max_input_size: int) -> InferCall:
    """Read a raw request: its input's shape follows from the byte count; every output is answered in binary.

    The batch size is 1; of a BYTES input the whole body is the one element. Raises StatusError INVALID_ARG.
    """
    prefix = label("")
    model = signature.model
    if len(signature.inputs) != 1:
        raise invalid(
            f"{prefix}Raw request must only have 1 input (found 1) to be deduced but got {len(signature.inputs)} inputs in '{model}' "
            "model configuration"
        )
    byte_size = len(body.view)
    if byte_size > max_input_size:
        raise invalid(
            f"Raw input has a byte_size ({byte_size} bytes) that exceeds the maximum allowed value of {max_input_size} bytes. "
            "Use --http-max-input-size to increase the limit."
        )
    (spec,) = signature.inputs.values()
    if spec.datatype.name == "BYTES":
        if spec.dims != (1,):
            raise invalid(f"{prefix}For BYTE datatype raw input '{spec.name}', the model must have input shape [1]")
        dims: tuple[int, ...] = spec.dims
        place: Placement = scratch.place(byte_size.to_bytes(4, "little") + bytes(body.view))
    else:
        if spec.dims.count(-1) > 1:
            raise invalid(
                f"{prefix}The shape of the raw input '{spec.name}' can not be deduced because there are more than "
                "one variable-sized dimension"
            )
        item_size = spec.datatype.byte_size
        for dim in spec.dims:
            item_size *= dim if dim != -1 else 1
        dims = tuple(byte_size // item_size if dim == -1 and item_size else max(dim, 0) for dim in spec.dims)
        expected = spec.datatype.byte_size if dims else 0
        for dim in dims:
            expected *= dim
        if expected != byte_size:
            raise invalid(size_mismatch("raw_input", model, expected, byte_size, ""))
        place = body.place(0, byte_size) if byte_size else Inline(memoryview(b""))
    shape = (1, *dims) if signature.batching else dims
    tensor = Tensor(spec.name, spec.datatype.name, shape, place)
    context = RequestContext(lends=True) if type(body) is ArenaBody else None
    return InferCall(RequestBody("", 1, [tensor], [], {}, context), form=IN_BINARY)
