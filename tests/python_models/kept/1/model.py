"""Writes into its input, and keeps the array, the tensor and the request of every call for good: answers all it has kept."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.arrays, self.tensors, self.requests = [], [], []

    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "X")
            array = tensor.as_numpy()
            array += 1
            self.arrays.append(array)
            self.tensors.append(tensor)
            self.requests.append(request)
            kept = [*self.arrays, *(tensor.as_numpy() for tensor in self.tensors), *(one.inputs()[0].as_numpy() for one in self.requests)]
            responses.append(
                pb_utils.InferenceResponse([pb_utils.Tensor("X_CHANGED", array), pb_utils.Tensor("EARLIER", np.concatenate(kept))])
            )
        return responses
