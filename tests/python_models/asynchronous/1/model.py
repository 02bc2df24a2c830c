"""`async def execute` of a model that is not decoupled."""

import asyncio
import json
import threading

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        responses = []
        for request in requests:
            verb = pb_utils.get_input_tensor_by_name(request, "VERB").as_numpy()[0].decode()
            if verb == "raise":
                raise ValueError("in a coroutine")
            if verb == "number":
                return 5
            steps = await asyncio.gather(*(asyncio.sleep(0.01, number) for number in range(3)))
            said = json.dumps([verb, steps, threading.current_thread() is threading.main_thread()])
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SAID", np.array([said.encode()], np.object_))]))
        return responses
