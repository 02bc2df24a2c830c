"""One response per request: TEXT is its input; "error:WHY" is answered with an error, "raise:WHY" raises, "nothing" has no outputs."""

import numpy as np
import triton_python_backend_utils as pb_utils


def response_to(values):
    first = values[0].decode() if len(values) else ""
    if first.startswith("raise:"):
        raise RuntimeError(first[6:])
    if first.startswith("error:"):
        return pb_utils.InferenceResponse([], error=pb_utils.TritonError(first[6:], pb_utils.TritonError.NOT_FOUND))
    if first == "nothing":
        return pb_utils.InferenceResponse([])
    second = pb_utils.Tensor("COUNT", np.array([len(values)], np.int32))
    return pb_utils.InferenceResponse([pb_utils.Tensor("TEXT", values), second])


class TritonPythonModel:
    def execute(self, requests):
        return [response_to(pb_utils.get_input_tensor_by_name(request, "TEXT_IN").as_numpy()) for request in requests]
