"""The checks of a request against its model that every protocol shares, and what a worker asks of a model to warm it up.

Source: the texts and their order are those of Triton's core; tests/parity asks the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...shm.datatypes import DATATYPES, MAX_COUNT, shape_text
from ...shm.placement import Inline, Lease
from .messages import RequestBody, Tensor
from .signature import Signature, TensorSpec, reshaped
from .status import invalid, label
from .strings import check_strings

Read = Callable[[Lease], memoryview]
"""The bytes of a lease of the server's own arena."""

_BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try "
    "setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


def validate(signature: Signature, body: RequestBody, read: Read | None = None) -> RequestBody:
    """Check a request against its model; returns the body to run.

    That is ``body`` itself where nothing had to change, else a copy with ``batch_size`` set and the
    shapes of inputs with a ``reshape`` as the model takes them. Inputs stay in the order given; their
    names must be unique, which whoever parsed the request has seen to. A client's region is never read
    here: of a fixed-size type its byte count is checked, of BYTES the worker checks the content. The
    content of BYTES inputs in the server's arena is checked through ``read``.

    Raises StatusError INVALID_ARG.
    """
    batch_size = plain_batch_size(signature, body)
    if not batch_size:
        batch_size = _checked_batch_size(signature, body, read)
    if signature.reshapes_inputs:
        inputs = [_as_model_takes_it(tensor, signature.inputs[tensor.name], signature.batching) for tensor in body.inputs]
        return RequestBody(body.id, batch_size, inputs, body.outputs, body.parameters, body.context)
    if batch_size != body.batch_size:
        return RequestBody(body.id, batch_size, body.inputs, body.outputs, body.parameters, body.context)
    return body


def batch_size_of(tensors: list[Tensor], signature: Signature) -> int:
    """The batch size that the first input's shape tells, 1 where the model does not batch."""
    return tensors[0].shape[0] if signature.batching and tensors and tensors[0].shape else 1


def plain_batch_size(signature: Signature, body: RequestBody) -> int:
    """The batch size of a request that has every input, fixed-size and exact; 0 where it must be looked at closely."""
    inputs = body.inputs
    specs = signature.inputs
    if len(inputs) != len(specs) or not inputs:
        return 0
    batching = signature.batching
    batch_size = 1
    if batching:
        shape = inputs[0].shape
        batch_size = shape[0] if shape else 0
        if not 0 < batch_size <= signature.max_batch_size:
            return 0
    for tensor in inputs:
        spec = specs.get(tensor.name)
        if spec is None or tensor.datatype != spec.datatype.name or tensor.place.byte_size != spec.item_byte_size * batch_size:
            return 0
        shape = tensor.shape
        if batching:
            if not shape or shape[0] != batch_size or shape[1:] != spec.dims:
                return 0
        elif shape != spec.dims:
            return 0
    known = signature.outputs
    for output in body.outputs:
        if output.name not in known:
            return 0
    return batch_size


def _checked_batch_size(signature: Signature, body: RequestBody, read: Read | None) -> int:
    """Every check, in the order that decides which of several faults is reported; returns the batch size."""
    model = signature.model
    for output in body.outputs:
        if output.name not in signature.outputs:
            raise invalid(f"unexpected inference output '{output.name}' for model '{model}'")
    _check_count(signature, body)
    # the last input given is looked at first, as the original's hash table does with two inputs
    backwards = body.inputs[::-1]
    for tensor in backwards:
        if tensor.name not in signature.inputs:
            raise invalid(f"unexpected inference input '{tensor.name}' for model '{model}'")
    batch_size = _batch_size(signature, body.id, backwards) if signature.batching else 1
    for tensor in backwards:
        _check_tensor(signature, signature.inputs[tensor.name], tensor, body.id, read)
    if batch_size < 1:
        raise invalid(f"{label(body.id)}inference request batch-size must be >= 1 for '{model}'")
    return batch_size


def _check_count(signature: Signature, body: RequestBody) -> None:
    most = len(signature.inputs)
    least = signature.required_inputs
    count = len(body.inputs)
    if least <= count <= most:
        return
    given = {tensor.name for tensor in body.inputs}
    missing = [name for name, spec in signature.inputs.items() if not spec.optional and name not in given]
    expected = f"{most} inputs" if least == most else f"number of inputs between {least} and {most}"
    raise invalid(
        f"{label(body.id)}expected {expected} but got {count} inputs for model '{signature.model}'. "
        f"Got input(s) [{_names(given)}], but missing required input(s) {'[' if missing else ''}{_names(missing)}]. "
        "Please provide all required input(s)."
    )


def _names(names: Iterable[str]) -> str:
    return ",".join(f"'{name}'" for name in sorted(names))


def _batch_size(signature: Signature, request_id: str, inputs: list[Tensor]) -> int:
    batch_size = None
    for tensor in inputs:
        if not tensor.shape:
            raise invalid(
                f"{label(request_id)}input '{tensor.name}' has no shape but model requires batch dimension for '{signature.model}'"
            )
        if batch_size is None:
            batch_size = tensor.shape[0]
        elif tensor.shape[0] != batch_size:
            raise invalid(f"{label(request_id)}input '{tensor.name}' batch size does not match other inputs for '{signature.model}'")
    if batch_size is None:
        return 1
    # a negative one is a huge one to the original, which counts without a sign
    if not 0 <= batch_size <= signature.max_batch_size:
        raise invalid(f"{label(request_id)}inference request batch-size must be <= {signature.max_batch_size} for '{signature.model}'")
    return batch_size


def _check_tensor(signature: Signature, spec: TensorSpec, tensor: Tensor, request_id: str, read: Read | None) -> None:
    name = tensor.name
    model = signature.model
    if tensor.datatype != spec.datatype.name:
        raise invalid(
            f"{label(request_id)}inference input '{name}' data-type is '{tensor.datatype}', but model '{model}' "
            f"expects '{spec.datatype.name}'"
        )
    shape = tensor.shape
    item = shape[1:] if signature.batching else shape
    matches = len(item) == len(spec.dims)
    for dim, expected in zip(item, spec.dims, strict=False) if matches else ():
        if dim == -1:
            raise invalid(
                f"{label(request_id)}All input dimensions should be specified for input '{name}' for model '{model}', "
                f"got {shape_text(shape)}"
            )
        if expected not in (-1, dim):
            matches = False
            break
    if not matches:
        raise invalid(
            f"{label(request_id)}unexpected shape for input '{name}' for model '{model}'. "
            f"Expected {shape_text(spec.shape)}, got {shape_text(shape)}. {_BATCH_NOTE if signature.batching else ''}"
        )
    # a batch of nothing is measured as a batch of one
    count = checked_count(name, (max(shape[0], 1), *item) if signature.batching else shape, request_id)
    if spec.datatype.byte_size:
        expected_size = checked_byte_size(name, tensor.datatype, count, request_id)
        if tensor.place.byte_size != expected_size:
            raise invalid(size_mismatch(name, model, expected_size, tensor.place.byte_size, request_id))
    else:
        view = _bytes_content(tensor, read)
        if view is not None:
            check_strings(name, model, view, count, request_id)


def size_mismatch(name: str, model: str, expected: int, got: int, request_id: str) -> str:
    """The message about an input whose byte count is not what its shape says."""
    return f"{label(request_id)}input byte size mismatch for input '{name}' for model '{model}'. Expected {expected}, got {got}"


def checked_count(name: str, shape: tuple[int, ...], request_id: str) -> int:
    """The element count of a specified shape, 0 for the empty one. Raises StatusError INVALID_ARG: negative dims, overflow."""
    if not shape:
        return 0
    count = 1
    for dim in shape:
        if dim < 0:
            raise invalid(f"{label(request_id)}tensor '{name}' contains an invalid dimension in shape {shape_text(shape)}")
        count *= dim
        if count > MAX_COUNT or dim > MAX_COUNT:
            raise invalid(f"{label(request_id)}element count for tensor '{name}' exceeds maximum size of {MAX_COUNT}")
    return count


def checked_byte_size(name: str, datatype: str, count: int, request_id: str) -> int:
    """The byte size of ``count`` elements. Raises StatusError INVALID_ARG where it does not fit."""
    byte_size = count * DATATYPES[datatype].byte_size
    if byte_size > MAX_COUNT:
        raise invalid(f"{label(request_id)}byte size for tensor '{name}' exceeds maximum size of {MAX_COUNT}")
    return byte_size


def _bytes_content(tensor: Tensor, read: Read | None) -> memoryview | None:
    place = tensor.place
    if type(place) is Inline:
        return place.content
    # In another arena lies what a worker has written, element by element: walking a long one takes the loop's time for nothing.
    if type(place) is Lease and not place.arena and read is not None:
        return read(place)
    return None


def _as_model_takes_it(tensor: Tensor, spec: TensorSpec, batching: bool) -> Tensor:
    if spec.reshape is None:
        return tensor
    return Tensor(tensor.name, tensor.datatype, reshaped(tensor.shape, spec.dims, spec.reshape, batching), tensor.place)
