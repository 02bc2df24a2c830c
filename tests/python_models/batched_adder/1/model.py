"""Adds one to batches of up to two."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        sums = [pb_utils.get_input_tensor_by_name(request, "X").as_numpy() + 1 for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SUM", sum)]) for sum in sums]
