"""A member of ensembles: what it does is the ``verb`` in its configuration's parameters.

``sum``: OUT is the sum of all inputs that came; negative elements are refused.
``tell``: OUT is what the request carries, as JSON in one string of shape [1] (or [batch, 1]).
``repeat``: decoupled; as many responses as IN says, its outputs counting them from 0 (with ``sparse``, only the first output, and
none at all of every other response); after ``fail_after`` of them an error instead.
``tag``: OUT is IN, and the response has the parameters that the configuration's ``tags`` lists as JSON.
``half``: only the first of its outputs is answered.
``none``: an answer without outputs.
``wait``: OUT is IN, once a file named by the configuration's ``gate`` exists.
``fail``: does not load.
"""

import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        self.batching = self.config["max_batch_size"] > 0
        self.settings = {name: value["string_value"] for name, value in self.config["parameters"].items()}
        self.verb = self.settings["verb"]
        self.version = int(args["model_version"])
        self.inputs = [tensor["name"] for tensor in self.config["input"]]
        self.outputs = [tensor["name"] for tensor in self.config["output"]]
        if self.verb == "fail":
            raise RuntimeError("this member fails to load")

    def execute(self, requests):
        if self.verb == "repeat":
            for request in requests:
                self.repeat(request)
            return None
        return [getattr(self, self.verb)(request) for request in requests]

    def arrays(self, request):
        found = [pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs]
        return [tensor.as_numpy() for tensor in found if tensor is not None]

    def answer(self, *arrays, **more):
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in zip(self.outputs, arrays, strict=False)], **more)

    def sum(self, request):
        total = sum(self.arrays(request))
        if (total < 0).any():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("a negative sum", pb_utils.TritonError.UNAVAILABLE))
        return self.answer(*[total + at for at in range(len(self.outputs))])

    def tell(self, request):
        given = {
            "inputs": {tensor.name(): list(tensor.as_numpy().shape) for tensor in request.inputs()},
            "outputs": sorted(request.requested_output_names()),
            "id": request.request_id(),
            "correlation_id": request.correlation_id(),
            "flags": request.flags(),
            "timeout": request.timeout(),
            "parameters": json.loads(request.parameters()),
            "version": self.version,
        }
        text = json.dumps(given, sort_keys=True).encode()
        return self.answer(np.array([[text]] if self.batching else [text], np.object_))

    def repeat(self, request):
        sender = request.get_response_sender()
        count = int(self.arrays(request)[0].reshape(-1)[0])
        fail_after = int(self.settings.get("fail_after", "-1"))
        shape = [1, 1] if self.batching else [1]
        for number in range(count):
            if number == fail_after:
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("no more")))
                break
            arrays = [np.full(shape, number, np.int32)] * len(self.outputs)
            sender.send(self.answer(*arrays[: number % 2 if self.settings.get("sparse") else None]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def tag(self, request):
        return self.answer(self.arrays(request)[0], parameters=json.loads(self.settings["tags"]))

    def half(self, request):
        return self.answer(self.arrays(request)[0])

    def none(self, request):
        return self.answer()

    def wait(self, request):
        limit = time.monotonic() + 30
        while not os.path.exists(self.settings["gate"]) and time.monotonic() < limit:
            time.sleep(0.01)
        return self.answer(self.arrays(request)[0])
