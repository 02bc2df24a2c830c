"""Writes down what every execution is given, in a file with the model's name in the folder that its parameter FOLDER names.

The words of a request's id say what becomes of it: `hold` waits until there is a file there, named after the model and the id,
`reschedule` asks for the request once more, `fault` raises, `refuse` is answered with an error; all else is answered with X. Iterative
models come to a request X times, and answer in each round where they are decoupled; `late` raises in the second round, `kept` returns a
response where none belongs. A state S grows by X, where there is one.
"""

import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils

PATIENCE_S = 30
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
AGAIN = pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE


def plain(array):
    return [one.decode("latin-1") if isinstance(one, bytes) else one for one in array.ravel().tolist()]


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        sequences = config.get("sequence_batching", {})
        self.iterative = sequences.get("iterative_sequence", False)
        self.stateful = bool(sequences.get("state"))
        self.decoupled = config.get("model_transaction_policy", {}).get("decoupled", False)
        self.folder = config["parameters"]["FOLDER"]["string_value"]
        self.instance = int(args["model_instance_name"].rsplit("_", 1)[1])
        self.rounds = {}
        self.name = config["name"]
        self.notes = open(os.path.join(self.folder, self.name), "ab", buffering=0)

    def execute(self, requests):
        seen = [
            {
                "id": request.request_id(),
                "correlation_id": request.correlation_id(),
                "flags": request.flags(),
                "inputs": {tensor.name(): self.described(tensor) for tensor in request.inputs()},
            }
            for request in requests
        ]
        self.notes.write(json.dumps({"instance": self.instance, "requests": seen}).encode() + b"\n")
        for request in requests:
            self.wait(request.request_id())
        responses = [self.answer(request) for request in requests]
        return None if self.decoupled else responses

    def described(self, tensor):
        array = tensor.as_numpy()
        return [str(array.dtype), list(array.shape), plain(array)]

    def wait(self, name):
        end = time.monotonic() + PATIENCE_S
        while "hold" in name and not os.path.exists(os.path.join(self.folder, f"{self.name} {name}")):
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.002)

    def answer(self, request):
        name = request.request_id()
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        x = inputs["X"] if "X" in inputs else inputs["A"]
        if "fault" in name:
            raise ValueError("so it was asked")
        if "refuse" in name:
            return self.respond(request, pb_utils.InferenceResponse(error=pb_utils.TritonError("refused as asked")))
        if self.iterative:
            return self.round(request, name, x)
        if "reschedule" in name:
            request.set_release_flags(AGAIN)
            return None
        outputs = [pb_utils.Tensor("Y", x)]
        if self.stateful:
            outputs.append(pb_utils.Tensor("S_OUT", inputs["S"] + x))
        return self.respond(request, pb_utils.InferenceResponse(outputs))

    def respond(self, request, response, flags=FINAL):
        if not self.decoupled:
            return response
        return request.get_response_sender().send(response, flags)

    def round(self, request, name, x):
        done = self.rounds.get(name, 0) + 1
        last = done >= int(x.flat[0])
        self.rounds[name] = 0 if last else done
        response = pb_utils.InferenceResponse([pb_utils.Tensor("Y", np.full_like(x, done))])
        if last:
            return self.respond(request, response)
        request.set_release_flags(AGAIN)
        if "late" in name and done == 2:
            raise ValueError("so it was asked")
        if "kept" in name:
            return response
        if self.decoupled:
            self.respond(request, response, 0)
        return None
