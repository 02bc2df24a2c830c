"""What is kept of a JSON part that was read once: the next request with the same one, byte for byte, is not decoded again."""

from __future__ import annotations

from dataclasses import replace

from msgspec import UNSET

from ...shm.placement import Inline, Placement, Span
from ...workers.contract.messages import RequestBody, Tensor, WantedOutput
from ...workers.contract.signature import Signature
from ...workers.contract.validation import batch_size_of
from ..door.body import Body
from ..door.fitting import Fitting
from ..door.scratch import Regions
from .infer_call import InferCall
from .infer_envelope import Envelope, InputParameters, OutputParameters

_NOTHING = memoryview(b"")

PLANNED_BYTE_SIZE = 4096
"""Larger JSON parts than this are not kept."""

PLAN_COUNT = 2048
"""How many JSON parts are kept; one more, and all are forgotten."""

PLANNED_ITEM_COUNT = 64
"""JSON parts with more inputs, dims, outputs and parameters together are not kept: as objects they are many times as large."""


class Plan:
    """What a JSON part says that has no tensor in it; ``end`` is where the last binary one behind it ends.

    ``inputs`` are name, datatype and shape, then the region's name or None, and from where to where in the body, or
    offset and byte size in the region. ``spans`` are the regions of outputs likewise, by place in the list; a region
    may be another one each time, so it is looked up each time. ``terms`` is the request without its tensors.
    """

    __slots__ = ("_fitting", "_inputs", "_spans", "end", "terms", "uses_regions")

    def __init__(
        self,
        inputs: list[tuple[str, str, tuple[int, ...], str | None, int, int]],
        spans: dict[int, tuple[str, int, int]],
        call: InferCall,
        end: int,
    ) -> None:
        self._inputs = inputs
        self._spans = spans
        # Without the first request's tensors: they would keep that request's whole body.
        self.terms = replace(call, body=RequestBody("", 1, [], call.body.outputs, call.body.parameters, call.body.context))
        self.end = end
        self.uses_regions = bool(spans) or any([region is not None for _, _, _, region, _, _ in inputs])
        self._fitting = Fitting()

    def request_body(self, body: Body, signature: Signature, regions: Regions) -> RequestBody:
        """The request with the tensors of ``body``. Raises StatusError for regions that are gone or other than they were."""
        place = body.place
        tensors = [
            Tensor(name, datatype, shape, place(at, to) if region is None and at < to else _elsewhere(region, at, to, regions))
            for name, datatype, shape, region, at, to in self._inputs
        ]
        planned = self.terms.body
        outputs = planned.outputs
        if self._spans:
            outputs = outputs.copy()
            for index, span in self._spans.items():
                outputs[index] = WantedOutput(outputs[index].name, regions.span(*span))
        return RequestBody("", batch_size_of(tensors, signature), tensors, outputs, planned.parameters, planned.context)

    def always_fits(self, signature: Signature, body: RequestBody) -> bool:
        """Does every request of this plan pass the checks of ``signature`` as it is, because ``body``, which is one of them, does?"""
        return not self.uses_regions and self._fitting.always(signature, body)


PLANS: dict[bytes, Plan] = {}


def known_plan(view: memoryview, json_byte_size: int) -> Plan | None:
    """The plan of a body whose first ``json_byte_size`` bytes were read before."""
    if not 0 < json_byte_size <= PLANNED_BYTE_SIZE:
        return None
    plan = PLANS.get(bytes(view[:json_byte_size]))
    return plan if plan is not None and plan.end == len(view) else None


def keep_plan(text: bytes, envelope: Envelope, call: InferCall, end: int) -> None:
    """Keep what ``text`` says, where every request with it says the same: no id, no tensor in JSON."""
    if envelope.id is not UNSET:
        return
    body = call.body
    if len(body.parameters) + len(body.outputs) + sum([1 + len(tensor.shape) for tensor in body.inputs]) > PLANNED_ITEM_COUNT:
        return
    inputs: list[tuple[str, str, tuple[int, ...], str | None, int, int]] = []
    at = len(text)
    for item, tensor in zip(envelope.inputs, body.inputs, strict=True):
        if item.data is not UNSET or item.parameters is UNSET:
            return
        if isinstance(tensor.place, Span):
            inputs.append((tensor.name, tensor.datatype, tensor.shape, *_region_part(item.parameters)))
        else:
            stop = at + int(item.parameters.binary_data_size or 0)
            inputs.append((tensor.name, tensor.datatype, tensor.shape, None, at, stop))
            at = stop
    spans = {
        index: _region_part(output.parameters)
        for index, output in enumerate(envelope.outputs or ())
        if output.parameters is not UNSET and output.parameters.shared_memory_region is not UNSET
    }
    if len(PLANS) >= PLAN_COUNT:
        PLANS.clear()
    PLANS[text] = Plan(inputs, spans, call, end)


def _elsewhere(region: str | None, at: int, to: int, regions: Regions) -> Placement:
    """The place of a tensor that is not in the body: in a region, or nowhere because it is empty. Raises StatusError."""
    return Inline(_NOTHING) if region is None else regions.span(region, at, to)


def _region_part(parameters: InputParameters | OutputParameters) -> tuple[str, int, int]:
    """Region, offset and byte size, as a request gives them that has been read."""
    return (
        str(parameters.shared_memory_region),
        int(parameters.shared_memory_offset or 0),
        int(parameters.shared_memory_byte_size or 0),
    )
