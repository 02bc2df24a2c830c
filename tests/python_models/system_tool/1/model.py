"""Does what its input VERB says, with files in the folder that its parameter FOLDER names."""

import json
import os
import sys
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

PATIENCE_S = 15


def until(condition):
    """Wait for something that another process does."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.005)


class TritonPythonModel:
    def initialize(self, args):
        self.folder = json.loads(args["model_config"])["parameters"]["FOLDER"]["string_value"]
        self.name = args["model_instance_name"]

    def execute(self, requests):
        responses = []
        for request in requests:
            verb = pb_utils.get_input_tensor_by_name(request, "VERB").as_numpy()[0].decode()
            said = np.array([str(getattr(self, verb)(request)).encode()], np.object_)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SAID", said)]))
        return responses

    def touch(self, name):
        with open(os.path.join(self.folder, name), "w"):
            pass

    def meet(self, request):
        """Wait for another instance that is here at the same time."""
        self.touch(f"met-{self.name}")
        until(lambda: sum(name.startswith("met-") for name in os.listdir(self.folder)) >= 2)
        return self.name

    def wait(self, request):
        """Until the client has gone."""
        self.touch("waiting")
        until(request.is_cancelled)
        self.touch("cancelled")
        return ""

    def speak(self, request):
        print("out: one\nout: two")
        print("err: three", file=sys.stderr)
        pb_utils.Logger.log_warn("log: four")
        pb_utils.Logger.log_info("log: odd \udcff")
        sys.stdout.flush()
        return ""

    def thread(self, request):
        """A thread of the model's own that fails is the model's own business."""
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        return "alive"

    def odd(self, request):
        raise ValueError("odd \udcff")

    def pid(self, request):
        return os.getpid()

    def is_ready(self):
        path = os.path.join(self.folder, "ready")
        says = open(path).read() if os.path.exists(path) else "true"
        if says == "later":
            return self.later()
        if says == "raise":
            raise ValueError("not just now")
        return {"true": True, "false": False, "number": 1}[says]

    async def later(self):
        return False

    def finalize(self):
        pb_utils.Logger.log_info(f"finalized {self.name}")
