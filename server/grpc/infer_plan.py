"""What is kept of a request that was read once: the next one that differs from it in its id and its tensors' bytes alone is not parsed."""

from __future__ import annotations

from collections.abc import Sequence

from ...workers.contract.messages import RequestBody, Tensor
from ...workers.contract.signature import Signature
from ...workers.contract.validation import batch_size_of
from ..door.body import Body
from ..door.fitting import Fitting
from .infer_call import InferCall
from .infer_message import InferMessage

PLANNED_BYTE_SIZE = 4096
"""Longer messages, without their ids and tensors, are not kept."""

PLAN_COUNT = 2048
"""How many are kept; one more, and all are forgotten."""

PLANNED_ITEM_COUNT = 64
"""Those with more inputs, dims, outputs and parameters together are not kept: as objects they are many times as large."""


class Plan:
    """What a request says that has all its tensors in ``raw_input_contents`` and uses no regions."""

    __slots__ = ("_inputs", "_terms", "fitting", "model", "version")

    def __init__(self, message: InferMessage, call: InferCall) -> None:
        self.model = message.model
        self.version = message.version
        self.fitting = Fitting()
        self._inputs = [(tensor.name, tensor.datatype, tensor.shape) for tensor in call.body.inputs]
        # Without this request's tensors: they would keep its whole body.
        self._terms = InferCall(
            RequestBody("", 1, [], call.body.outputs, call.body.parameters, call.body.context),
            call.priority,
            call.timeout_us,
            call.classes,
            call.empty_final,
        )

    def call(self, message: InferMessage, signature: Signature) -> InferCall:
        """The request with the id and the tensors of ``message``."""
        terms = self._terms
        planned = terms.body
        tensors = [Tensor(name, datatype, shape, message.place(index)) for index, (name, datatype, shape) in enumerate(self._inputs)]
        body = RequestBody(message.id, batch_size_of(tensors, signature), tensors, planned.outputs, planned.parameters, planned.context)
        return InferCall(body, terms.priority, terms.timeout_us, terms.classes, terms.empty_final)


Key = tuple[bytes, tuple[int, ...]]
"""A message without its id and its tensors, and their sizes in bytes."""

PLANS: dict[Key, Plan] = {}


def received(body: Body) -> InferMessage:
    """A request, with what is known of others like it. Takes ``body`` over. Raises Unparsable where it is none."""
    message = InferMessage(body)
    message.plan = PLANS.get((message.rest, message.sizes))
    if message.plan is None:
        message.parse()
    return message


def keep_plan(message: InferMessage, call: InferCall) -> None:
    """Keep what a request says that was read, where every request with its rest and sizes says the same."""
    key = (message.rest, message.sizes)
    body = call.body
    inputs: Sequence[Tensor] = body.inputs
    if len(key[0]) > PLANNED_BYTE_SIZE or len(inputs) != len(key[1]) or any([output.span is not None for output in body.outputs]):
        return
    if any([item.parameters for item in message.envelope.inputs]):
        return
    if len(body.parameters) + len(body.outputs) + sum([1 + len(tensor.shape) for tensor in inputs]) > PLANNED_ITEM_COUNT:
        return
    if len(PLANS) >= PLAN_COUNT:
        PLANS.clear()
    PLANS[key] = Plan(message, call)
