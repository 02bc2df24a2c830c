"""Ends its process where VERB is "die"."""

import os

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        verbs = [pb_utils.get_input_tensor_by_name(request, "VERB").as_numpy() for request in requests]
        if any(verb[0] == b"die" for verb in verbs):
            os._exit(3)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SAID", verb)]) for verb in verbs]
