"""Warm-up: what every instance is asked before anybody else may ask it. An instance that cannot answer fails its load.

Source: ``ModelWarmup`` of Triton's ``model_config.proto``; the texts are those of its core, asked of the real one (release 24.10).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shm.datatypes import DATATYPES, Datatype
from ..shm.placement import Inline, Lease
from .contract.messages import Execute, RequestBody, Result, Tensor, Warmed
from .contract.signature import BY_CONFIG_NAME, Signature, signature_of_members
from .contract.status import invalid, label
from .contract.strings import check_strings
from .contract.validation import checked_byte_size, checked_count, validate
from .named_file import read_named

if TYPE_CHECKING:
    from .backends.backend import ModelSource, Runner
    from .batch import Memory

FOLDER = "warmup"
"""The folder of a model that the files lie in which samples name."""

WARMUP_BATCH = 0
"""The number of a batch that the server knows nothing of."""

MOST_ERRORS = 64
"""So many errors of a sample are told: a sample may have any number of requests."""

_STRING = DATATYPES["BYTES"]
_UNKNOWN = "<invalid>"


@dataclass(frozen=True, slots=True)
class Sample:
    """A batch of ``batch_size`` equal requests for one item, which is to be run ``count`` times."""

    name: str
    request: RequestBody
    batch_size: int
    count: int
    max_batch_size: int


def samples_of(source: ModelSource) -> list[Sample]:
    """What the final configuration of a model wants it to be warmed up with, in order.

    Raises StatusError INVALID_ARG for a sample that no request could be like, INTERNAL for a file that cannot be read.
    """
    config = json.loads(source.document)
    wanted = [sample for sample in config.get("model_warmup", ()) if sample.get("batch_size", 0)]
    if not wanted:
        return []
    signature = signature_of_members(config)
    return [
        Sample(
            name=sample.get("name", ""),
            request=_request(signature, sample.get("inputs", {}), source),
            batch_size=sample["batch_size"],
            count=sample.get("count", 0) or 1,
            max_batch_size=signature.max_batch_size,
        )
        for sample in wanted
    ]


def warm_up(samples: Sequence[Sample], runner: Runner, instance: str) -> list[Warmed]:
    """Run the samples, in the instance's own thread; what it took for the statistics, one entry for each sample.

    Raises StatusError INVALID_ARG with the errors of the first batch that had any.
    """
    return [_run(sample, runner, instance) for sample in samples]


def _run(sample: Sample, runner: Runner, instance: str) -> Warmed:
    size = sample.batch_size
    if size != 1 and size > sample.max_batch_size:
        refused = f"batch size {size} for '{instance}', max allowed is {sample.max_batch_size}"
        raise _failed(sample, [refused] * min(size, MOST_ERRORS))
    message = Execute(WARMUP_BATCH, [sample.request] * size)
    input_ns = infer_ns = output_ns = 0
    for _ in range(sample.count):
        done, errors = runner.rehearse(message)
        if errors:
            raise _failed(sample, errors)
        input_ns += done.input_end_ns - done.compute_start_ns
        infer_ns += done.output_start_ns - done.input_end_ns
        output_ns += done.compute_end_ns - done.output_start_ns
    return Warmed(size, sample.count, input_ns, infer_ns, output_ns)


def _failed(sample: Sample, errors: Sequence[str]) -> Exception:
    return invalid(f"failed to run warmup sample '{sample.name}': " + "".join(f"{error}; " for error in errors[:MOST_ERRORS]))


def discard(results: Sequence[Result | None], memory: Memory) -> list[str]:
    """Throw results away: what they have in the worker's arena is given back, which is where all leases of a warm-up lie.

    Returns their errors.
    """
    errors = []
    for result in results:
        if result is None:
            continue
        for tensor in result.outputs:
            if type(tensor.place) is Lease:
                memory.free(tensor.place)
        if result.fault is not None:
            errors.append(result.fault.message)
    return errors


def _request(signature: Signature, inputs: Mapping[str, Mapping[str, Any]], source: ModelSource) -> RequestBody:
    """The request of a sample, checked as a client's would be. Inputs that the model does not list are left as they are."""
    tensors = [_tensor(name, wanted, signature, source) for name, wanted in inputs.items()]
    listed = [tensor for tensor in tensors if tensor.name in signature.inputs]
    checked = validate(signature, RequestBody("", 1, listed, [], {}))
    overrides = [tensor for tensor in tensors if tensor.name not in signature.inputs]
    for tensor in overrides:
        if tensor.datatype == _UNKNOWN:
            raise invalid(f"{label('')}warmup setting expects input '{tensor.name}' to have data_type set")
        count = checked_count(tensor.name, tensor.shape, "")
        if tensor.datatype == _STRING.name:
            check_strings(tensor.name, signature.model, tensor.place.content, count, "")  # type: ignore[union-attr]
    return RequestBody("", 1, [*checked.inputs, *overrides], [], {})


def _tensor(name: str, wanted: Mapping[str, Any], signature: Signature, source: ModelSource) -> Tensor:
    dims = tuple(wanted.get("dims", ()))
    if any(dim < 0 for dim in dims):
        raise invalid(f"warmup setting expects all variable-size dimensions are specified for input '{name}'")
    datatype = BY_CONFIG_NAME.get(wanted.get("data_type", ""))
    content = _content(name, wanted, datatype, dims, source, signature.model)
    shape = (1, *dims) if signature.batching else dims
    return Tensor(name, _UNKNOWN if datatype is None else datatype.name, shape, Inline(memoryview(content)))


def _content(
    name: str, wanted: Mapping[str, Any], datatype: Datatype | None, dims: tuple[int, ...], source: ModelSource, model: str
) -> bytes:
    count = checked_count(name, dims or (1,), "")
    byte_size = 0 if datatype is None else checked_byte_size(name, datatype.name, count, "")
    if "input_data_file" in wanted:
        file = wanted["input_data_file"]
        if datatype is _STRING:
            return read_named(source.directory, FOLDER, file, "input_data_file", model)
        content = read_named(source.directory, FOLDER, file, "input_data_file", model, byte_size)
        if len(content) < byte_size:
            raise invalid(
                f"{label('')}warmup setting expects {byte_size} bytes, but the data provided from {file}only has {len(content)} bytes"
            )
        return content
    # Either is set by being there, whatever its value.
    if "zero_data" not in wanted and "random_data" not in wanted:
        raise invalid(f"{label('')}warmup setting expects input '{name}' to have input_data_type set")
    if datatype is _STRING:
        # As many lengths of nothing.
        return bytes(4 * count)
    return bytes(byte_size) if "zero_data" in wanted else np.random.default_rng().bytes(byte_size)
