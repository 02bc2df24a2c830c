"""Sums what each sequence sends: in its state, or by correlation id where the model has no state.

SEEN says what the model was shown of the request, and which rows of its batch were there (READY). With the parameter NEXT it sends its
input three times to that model, as a sequence. Iterative models come to each request X times, and answer in every round where they are
decoupled.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

START = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.iterative = config.get("sequence_batching", {}).get("iterative_sequence", False)
        self.decoupled = config.get("model_transaction_policy", {}).get("decoupled", False)
        self.next = config.get("parameters", {}).get("NEXT", {}).get("string_value")
        self.sums = {}

    def execute(self, requests):
        shown = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        rows = [bool(inputs["READY"].flat[0]) if "READY" in inputs else True for inputs in shown]
        answers = [self.answer(request, inputs, rows) for request, inputs in zip(requests, shown, strict=True)]
        return None if self.decoupled else answers

    def answer(self, request, inputs, rows):
        x = int(inputs["X"].flat[0])
        if self.next:
            return self.response(inputs, self.called(inputs["X"]), "")
        if request.flags() & START:
            self.sums[request.correlation_id()] = 0
        before = int(inputs["STATE_IN"].flat[0]) if "STATE_IN" in inputs else self.sums.get(request.correlation_id(), 0)
        total = self.sums[request.correlation_id()] = before + (1 if self.iterative else x)
        controls = {name: inputs[name].flat[0].item() for name in ("START", "END", "READY", "CORRID") if name in inputs}
        response = self.response(inputs, total, json.dumps([controls, request.correlation_id(), request.flags(), rows]))
        if self.iterative and total < x:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            if self.decoupled:
                request.get_response_sender().send(response)
            return None
        if self.decoupled:
            return request.get_response_sender().send(response, FINAL)
        return response

    def response(self, inputs, total, seen):
        like = inputs["X"]
        outputs = [
            pb_utils.Tensor("Y", np.full(like.shape, total, np.int32)),
            pb_utils.Tensor("SEEN", np.full(like.shape, seen.encode(), np.object_)),
        ]
        if "STATE_IN" in inputs:
            outputs.append(pb_utils.Tensor("STATE_OUT", np.full(inputs["STATE_IN"].shape, total, np.int32)))
        return pb_utils.InferenceResponse(outputs)

    def called(self, x):
        for flags in (START, 0, END):
            request = pb_utils.InferenceRequest(
                inputs=[pb_utils.Tensor("X", x)], requested_output_names=["Y"], model_name=self.next, correlation_id="within", flags=flags
            )
            response = request.exec()
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
        return int(response.output_tensors()[0].as_numpy().flat[0])
