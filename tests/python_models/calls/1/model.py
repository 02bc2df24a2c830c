"""Calls other models in the way that its input VERB names, and answers one JSON text for each response it got."""

import asyncio
import json
import threading

import numpy as np
import triton_python_backend_utils as pb_utils


def numbers(*values, name="X", dtype=np.int32):
    return pb_utils.Tensor(name, np.array(values, dtype))


def add(*values, **named):
    """A request to `adder`, or to another model where `model_name` says so."""
    settings = {"model_name": "adder", "requested_output_names": ["SUM", "SAID"], "inputs": [numbers(*(values or (1, 2)))], **named}
    return pb_utils.InferenceRequest(**settings)


def repeat(times, **named):
    return pb_utils.InferenceRequest(
        model_name="repeater", requested_output_names=["NUMBER"], inputs=[numbers(times, name="TIMES"), *named.get("more", [])]
    )


def show(response):
    if response.has_error():
        error = response.error()
        return ["error", int(error.code()), error.message()]
    outputs = response.output_tensors()
    rows = [[tensor.name(), tensor.shape(), repr(tensor.as_numpy().tolist()), tensor.is_cpu()] for tensor in outputs]
    return ["good", response.error(), rows, [bool(tensor.as_numpy().flags.writeable) for tensor in outputs]]


def attempt(function, *positional, **named):
    """What a call gives, or what it raises; of errors that are Python's own, the class alone."""
    try:
        made = function(*positional, **named)
    except pb_utils.TritonModelException as error:
        return ["TritonModelException", str(error)]
    except (TypeError, RuntimeError) as error:
        return [type(error).__name__]
    return [made.request_id(), made.correlation_id(), made.flags(), made.timeout(), json.loads(made.parameters())] + [
        sorted(made.requested_output_names()),
        [tensor.name() for tensor in made.inputs()],
    ]


def in_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results


async def together(count):
    return await asyncio.gather(*(add(number).async_exec() for number in range(count)))


async def awaited(request, **named):
    return await request.async_exec(**named)


def some_twice(times):
    responses = repeat(times).exec(decoupled=True)
    return [*responses, *responses]


def stepped():
    """By next(), as a caller that does not write a loop does it."""
    responses = iter(repeat(2).exec(decoupled=True))
    return [next(responses), next(responses), next(responses), *responses]


def changed():
    """An output of one call, written to and passed on."""
    array = pb_utils.get_output_tensor_by_name(add(1, 2).exec(), "SUM").as_numpy()
    array += 100
    passed = add(inputs=[pb_utils.Tensor("X", array)]).exec()
    return [passed, pb_utils.InferenceResponse([pb_utils.Tensor("KEPT", array)])]


def passed_on():
    """A tensor that one model made goes into the next call as it is."""
    made = add(5, 6).exec().output_tensors()[0]
    return [pb_utils.InferenceResponse([made]), add(inputs=[pb_utils.Tensor("X", made.as_numpy())]).exec()]


def large():
    """More than a page, and what came back is checked here."""
    array = pb_utils.get_output_tensor_by_name(add(inputs=[numbers(*range(200_000))]).exec(), "SUM").as_numpy()
    return [pb_utils.InferenceResponse([numbers(int(array.sum()), array.size, dtype=np.int64)])]


def twice():
    request = add()
    return [request.exec(), request.exec()]


CALLS = {
    "plain": lambda: [add().exec()],
    "everything said": lambda: [
        add(request_id="an id", correlation_id=9, flags=3, timeout=1000, parameters={"n": 1, "s": "x", "b": True}).exec()
    ],
    "correlation id as text": lambda: [add(correlation_id="nine").exec()],
    "version": lambda: [add(model_version=1).exec()],
    "unknown version": lambda: [add(model_version=9).exec(), add(model_version=0).exec(), add(model_version=-2).exec()],
    "unknown model": lambda: [add(model_name="nosuch").exec(), add(model_name="nosuch", model_version=3).exec()],
    "unknown model decoupled": lambda: list(add(model_name="nosuch").exec(decoupled=True)),
    "no outputs asked": lambda: [add(requested_output_names=[]).exec()],
    "one output asked": lambda: [add(requested_output_names=["SAID"]).exec()],
    "outputs asked in reverse": lambda: [add(requested_output_names=["SAID", "SUM"]).exec()],
    "output asked twice": lambda: [add(requested_output_names=["SUM", "SUM"]).exec()],
    "unknown output": lambda: [add(requested_output_names=["SUM", "NOSUCH"]).exec()],
    "no inputs": lambda: [add(inputs=[]).exec()],
    "unknown input": lambda: [add(inputs=[numbers(1, name="NOSUCH")]).exec()],
    "input twice": lambda: [add(inputs=[numbers(1), numbers(2)]).exec()],
    "other datatype": lambda: [add(request_id="seven", inputs=[numbers(1, dtype=np.float32)]).exec()],
    "texts for numbers": lambda: [add(inputs=[pb_utils.Tensor("X", np.array([b"x"], np.object_))]).exec()],
    "other rank": lambda: [add(inputs=[numbers([1, 2])]).exec()],
    "empty input": lambda: [add(inputs=[numbers()]).exec()],
    "batch": lambda: [add(model_name="batched_adder", requested_output_names=["SUM"], inputs=[numbers([1, 2], [3, 4])]).exec()],
    "batch too big": lambda: [
        add(model_name="batched_adder", requested_output_names=["SUM"], inputs=[numbers([1, 2], [3, 4], [5, 6])]).exec()
    ],
    "no batch dim": lambda: [add(model_name="batched_adder", requested_output_names=["SUM"], inputs=[numbers(1, 2)]).exec()],
    "error": lambda: [add(404).exec(), *add(404).exec(decoupled=True)],
    "raises": lambda: [add(500).exec(), *add(500).exec(decoupled=True)],
    "plain as decoupled": lambda: list(add().exec(decoupled=True)),
    "decoupled by position": lambda: list(add().exec(True)),
    "decoupled as plain": lambda: [repeat(1).exec(), repeat(3).exec(decoupled=False)],
    "decoupled none": lambda: list(repeat(0).exec(decoupled=True)),
    "decoupled one": lambda: list(repeat(1).exec(decoupled=True)),
    "decoupled three": lambda: list(repeat(3).exec(decoupled=True)),
    "decoupled with its end": lambda: list(repeat(3, more=[numbers(False, name="FINAL_APART", dtype=np.bool_)]).exec(decoupled=True)),
    "decoupled raises": lambda: list(repeat(-1).exec(decoupled=True)),
    "decoupled again": lambda: some_twice(2),
    "decoupled by steps": stepped,
    "async": lambda: [asyncio.run(awaited(add()))],
    "async together": lambda: asyncio.run(together(4)),
    "async decoupled": lambda: list(asyncio.run(awaited(repeat(2), decoupled=True))),
    "async decoupled as plain": lambda: [asyncio.run(awaited(repeat(2)))],
    "in a thread": lambda: in_thread(lambda: add().exec()),
    "one request twice": twice,
    "output changed": changed,
    "output passed on": passed_on,
    "large": large,
}

MADE = {
    "all by position": lambda: pb_utils.InferenceRequest("an id", 5, [numbers(1)], ["SUM"], "adder", 1, 2, 3),
    "by default": lambda: add(),
    "empty model name": lambda: add(model_name=""),
    "outputs twice": lambda: add(requested_output_names=["SUM", "SUM"]),
    "memory": lambda: add(preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)),
    "parameters": lambda: add(parameters={"n": 1, "s": "x", "b": True}),
    "no parameters": lambda: add(parameters={}),
    "float parameter": lambda: add(parameters={"a": 1.5}),
    "none parameter": lambda: add(parameters={"a": None}),
    "list parameter": lambda: add(parameters={"a": [1]}),
    "parameter name": lambda: add(parameters={1: 1}),
    "none as input": lambda: add(inputs=[None]),
    "none as input and an id": lambda: add(inputs=[None], request_id="an id"),
    "correlation id float": lambda: add(correlation_id=1.5),
    "correlation id none": lambda: add(correlation_id=None),
    "correlation id list": lambda: add(correlation_id=[1]),
    "no model name": lambda: pb_utils.InferenceRequest(requested_output_names=["SUM"], inputs=[numbers(1)]),
    "no inputs": lambda: pb_utils.InferenceRequest(model_name="adder", requested_output_names=["SUM"]),
    "no output names": lambda: pb_utils.InferenceRequest(model_name="adder", inputs=[numbers(1)]),
    "output names as text": lambda: add(requested_output_names="SUM"),
    "output names as numbers": lambda: add(requested_output_names=[1]),
    "inputs as numbers": lambda: add(inputs=[1]),
    "id as number": lambda: add(request_id=5),
    "model name as number": lambda: add(model_name=5),
    "version as text": lambda: add(model_version="1"),
    "timeout negative": lambda: add(timeout=-1),
    "unknown argument": lambda: add(colour="red"),
}

READINESS = {
    "ready": lambda: pb_utils.is_model_ready("adder"),
    "ready version": lambda: pb_utils.is_model_ready(model_name="adder", model_version="1"),
    "ready unknown version": lambda: pb_utils.is_model_ready("adder", "2"),
    "ready unknown model": lambda: pb_utils.is_model_ready("nosuch"),
    "ready decoupled": lambda: pb_utils.is_model_ready("repeater"),
}


class TritonPythonModel:
    def initialize(self, args):
        """Calls are for execute() only."""
        try:
            response = add().exec()
            self.initialized = show(response)[2]
        except pb_utils.TritonModelException as error:
            self.initialized = str(error)

    def execute(self, requests):
        responses = []
        for request in requests:
            verb = pb_utils.get_input_tensor_by_name(request, "VERB").as_numpy()[0].decode()
            kind, _, name = verb.partition(": ")
            texts = [json.dumps(said).encode() for said in self.said(kind, name)]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SAID", np.array(texts, np.object_))]))
        return responses

    def said(self, kind, name):
        if kind == "call":
            return [show(response) for response in CALLS[name]()]
        if kind == "make":
            return [attempt(MADE[name])]
        if kind == "initialized":
            return [self.initialized]
        return [READINESS[kind]()]
