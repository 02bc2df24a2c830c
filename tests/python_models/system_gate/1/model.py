"""Holds the requests whose id says so, and writes down what becomes of each, in a file of the folder that its parameter FOLDER names.

`held…` waits for a file of its name or the client's going, `deaf…` for the file alone, `talks…` is like `held…` and sends responses all
the while; `calls…` asks the model that its parameter NEXT names. Everything else is answered at once, and all of it where the parameter
PASSES is set. Where it is decoupled, what waits has sent a response first.
"""

import json
import os
import time

import triton_python_backend_utils as pb_utils

PATIENCE_S = 30
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.folder = parameters["FOLDER"]
        self.next = parameters.get("NEXT")
        self.passes = "PASSES" in parameters
        self.decoupled = config.get("model_transaction_policy", {}).get("decoupled", False)
        self.notes = open(os.path.join(self.folder, f"{config['name']}.notes"), "a", buffering=1)

    def execute(self, requests):
        responses = [self.answer(request) for request in requests]
        return None if self.decoupled else responses

    def answer(self, request):
        name = request.request_id()
        self.note(request, "begun")
        x = pb_utils.get_input_tensor_by_name(request, "X")
        response = pb_utils.InferenceResponse([pb_utils.Tensor("Y", x.as_numpy())])
        sender = request.get_response_sender() if self.decoupled else None
        if sender is not None:
            sender.send(response)
        self.wait(name, request, lambda: sender.send(response))
        if name.startswith("calls"):
            called = pb_utils.InferenceRequest(
                model_name=self.next, requested_output_names=["Y"], inputs=[x], request_id=f"deaf-{name}"
            ).exec()
            self.note(request, f"heard {called.error().message() if called.has_error() else 'an answer'}")
        self.note(request, "ended")
        if sender is None:
            return response
        return sender.send(flags=FINAL)

    def wait(self, name, request, say):
        if self.passes or not name.startswith(("held", "deaf", "talks")):
            return
        end = time.monotonic() + PATIENCE_S
        while not os.path.exists(os.path.join(self.folder, name)):
            if not name.startswith("deaf") and request.is_cancelled():
                return
            if name.startswith("talks"):
                say()
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.002)

    def note(self, request, what):
        self.notes.write(f"{request.request_id()} {what}{', given up' if request.is_cancelled() else ''}\n")
