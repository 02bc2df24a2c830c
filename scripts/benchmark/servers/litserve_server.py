"""add_sub in LitServe: JSON in, JSON out, batches of up to 8."""

# No annotations from __future__: LitServe looks at those of decode_request and encode_response, and does not know strings.
from typing import Any

import litserve
import numpy as np
from fastapi import Request, Response

from .arguments import BATCH, Tensor, add_sub, arguments, session


class AddSub(litserve.LitAPI):
    """``{"INPUT0": [...], "INPUT1": [...]}`` → ``{"OUTPUT0": [...], "OUTPUT1": [...]}``."""

    model_path = ""

    def setup(self, device: str) -> None:
        self._model = session(self.model_path)

    def decode_request(self, request: Request) -> Tensor:
        fields: Any = request  # the JSON object that was in it
        return np.array((fields["INPUT0"], fields["INPUT1"]), np.int32)

    def batch(self, inputs: list[Tensor]) -> Tensor:
        return np.stack(inputs)

    def predict(self, pairs: Tensor) -> Tensor:
        return add_sub(self._model, pairs if pairs.ndim == 3 else pairs[np.newaxis])

    def unbatch(self, output: Tensor) -> list[Tensor]:
        return list(output)

    def encode_response(self, output: Tensor) -> Any:
        total, difference = output.reshape(2, -1).tolist()
        return {"OUTPUT0": total, "OUTPUT1": difference}


class RawReply(AddSub):
    """The same, with a finished reply: sum and difference, little-endian INT32, one behind the other."""

    def encode_response(self, output: Tensor) -> Any:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    told = arguments()
    words = told.variant.split("-")
    api = (RawReply if "raw" in words else AddSub)(
        max_batch_size=BATCH if "batching" in words else 1, batch_timeout=0.001 if "wait" in words else 0.0
    )
    api.model_path = told.model
    server = litserve.LitServer(api, accelerator="cpu", fast_queue="queue" in words)
    fronts = 2 if "fronts" in words else 1
    server.run("127.0.0.1", told.port, num_api_servers=fronts, log_level="warning", access_log=False, generate_client_file=False)
