"""Adds one, and says what it was asked. An X that begins with 404 is answered by an error, one with 500 raises."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        array = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
        first = array.reshape(-1)[0] if array.size else 0
        if first == 500:
            raise ValueError("as asked")
        if first == 404:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("nothing here", pb_utils.TritonError.INTERNAL))
        said = [request.request_id(), request.correlation_id(), request.flags(), request.timeout(), request.parameters()]
        said.append(sorted(request.requested_output_names()))
        text = np.array([json.dumps(said).encode()], np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("SUM", array + 1), pb_utils.Tensor("SAID", text)])
