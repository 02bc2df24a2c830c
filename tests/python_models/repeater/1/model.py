"""Sends as many responses as TIMES says; the end comes apart from the last one unless FINAL_APART is false. A negative TIMES raises."""

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            times = int(pb_utils.get_input_tensor_by_name(request, "TIMES").as_numpy()[0])
            apart = pb_utils.get_input_tensor_by_name(request, "FINAL_APART")
            together = apart is not None and not apart.as_numpy()[0]
            if times < 0:
                raise ValueError("cannot send fewer than none")
            sender = request.get_response_sender()
            for number in range(times):
                response = pb_utils.InferenceResponse([pb_utils.Tensor("NUMBER", np.array([number], np.int32))])
                sender.send(response, flags=FINAL if together and number == times - 1 else 0)
            if not together or times == 0:
                sender.send(flags=FINAL)
