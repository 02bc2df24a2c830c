"""Answers each input as it came, batch dim and all: A as A_OUT, B as B_OUT, and their shapes."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            outputs = []
            shapes = []
            for tensor in request.inputs():
                array = tensor.as_numpy()
                shapes.append(f"{tensor.name()}{list(array.shape)}")
                outputs.append(pb_utils.Tensor(tensor.name() + "_OUT", array))
            outputs.append(pb_utils.Tensor("SHAPES", np.array([[" ".join(sorted(shapes))]] * array.shape[0], np.object_)))
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
