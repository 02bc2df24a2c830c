"""Says how many requests came together, and does what each one's VERB says; its queue waits until four are together."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            verbs = pb_utils.get_input_tensor_by_name(request, "VERB").as_numpy()
            verb = verbs[0][0].decode()
            text = f"{verb}: one of {len(requests)}, {list(verbs.shape)}"
            response = pb_utils.InferenceResponse([pb_utils.Tensor("SAID", np.full(verbs.shape, text.encode(), np.object_))])
            if verb == "raise":
                raise ValueError("one of several")
            if verb == "error":
                response = pb_utils.InferenceResponse(error=pb_utils.TritonError("one of several", pb_utils.TritonError.NOT_FOUND))
            if verb == "send":
                request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                response = None
            responses.append(5 if verb == "number" else response)
        return responses
