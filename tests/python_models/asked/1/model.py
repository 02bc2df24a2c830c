"""Answers what a request says of itself; PARAMETERS is their text as the model gets it."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


def said(request):
    before = request.flags()
    request.set_flags(3)
    names = request.requested_output_names()
    missing = pb_utils.get_input_tensor_by_name(request, "NOSUCH")
    return {
        "id": request.request_id(),
        "correlation id": request.correlation_id(),
        "flags": [before, request.flags()],
        "timeout": request.timeout(),
        "inputs": [tensor.name() for tensor in request.inputs()],
        "the same inputs": request.inputs()[0] is request.inputs()[0],
        "outputs": sorted(names),
        "types": [type(value).__name__ for value in (request.inputs(), names, request.parameters(), missing)],
        "cancelled": request.is_cancelled(),
        "trace": request.trace().get_context(),
    }


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            texts = {"SAID": json.dumps(said(request)), "PARAMETERS": request.parameters()}
            outputs = [pb_utils.Tensor(name, np.array([text.encode()], np.object_)) for name, text in texts.items()]
            outputs.append(pb_utils.Tensor("OTHER", pb_utils.get_input_tensor_by_name(request, "FIRST").as_numpy()))
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
