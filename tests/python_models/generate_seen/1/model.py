"""Answers what it was asked: each input as text, the request's parameters, its id. All inputs are optional."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


def text_of(value):
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value.item() if hasattr(value, "item") else value


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            seen = []
            for tensor in sorted(request.inputs(), key=lambda tensor: tensor.name()):
                array = tensor.as_numpy()
                values = [repr(text_of(value)) for value in array.reshape(-1)]
                seen.append(f"{tensor.name()} {array.dtype} {list(array.shape)} {values}")
            parameters = json.loads(request.parameters())
            texts = [f"{name}={value!r}" for name, value in sorted(parameters.items())]
            outputs = [
                pb_utils.Tensor("SEEN", np.array(seen, np.object_)),
                pb_utils.Tensor("PARAMETERS", np.array(texts, np.object_)),
                pb_utils.Tensor("ID", np.array([request.request_id()], np.object_)),
            ]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
