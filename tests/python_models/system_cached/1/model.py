"""Doubles X into Y, and says in RUN how many requests it has run. -1 at the start of X is an error.

With the parameter ASK, it asks that model instead, and gives back what that answers.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

FACTOR = 2


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.ask = parameters["ASK"]["string_value"] if "ASK" in parameters else ""
        self.run = 0

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        self.run += 1
        given = pb_utils.get_input_tensor_by_name(request, "X")
        values = given.as_numpy()
        if values.size and values.flat[0] == -1:
            return pb_utils.InferenceResponse([], pb_utils.TritonError("refused by the model"))
        if self.ask:
            response = pb_utils.InferenceRequest(model_name=self.ask, requested_output_names=["Y", "RUN"], inputs=[given]).exec()
            return pb_utils.InferenceResponse([pb_utils.Tensor(one.name(), one.as_numpy()) for one in response.output_tensors()])
        made = {"Y": values * FACTOR, "RUN": np.full((len(values), 1), self.run, np.int32)}
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in made.items() if name in wanted])
