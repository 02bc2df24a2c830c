"""`async def execute` of a decoupled model. Two requests with the verb "meet" wait for one another, so they must run at once."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


def response(text):
    return pb_utils.InferenceResponse([pb_utils.Tensor("SAID", np.array([text.encode()], np.object_))])


class TritonPythonModel:
    def initialize(self, args):
        self.waiting = []

    async def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            verb = pb_utils.get_input_tensor_by_name(request, "VERB").as_numpy()[0].decode()
            if verb == "meet":
                await self.meet()
            for number in range(2):
                await asyncio.sleep(0)
                sender.send(response(f"{verb} {number}"))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def meet(self):
        if self.waiting:
            self.waiting.pop().set()
        else:
            met = asyncio.Event()
            self.waiting.append(met)
            await met.wait()
