"""add_sub in KServe's Python model server (which has no batching of its own: in a cluster that is a Go agent beside it)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .arguments import add_sub, arguments, session

told = arguments()
# KServe reads the command line when it is imported
sys.argv[1:] = [f"--http_port={told.port}", "--enable_grpc=false", "--enable_latency_logging=false", "--configure_logging=false"]

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer  # noqa: E402
from kserve.logging import trace_logger  # noqa: E402


class AddSub(Model):
    """V2 protocol; tensors in binary where the request has them so."""

    def __init__(self, model: str) -> None:
        super().__init__("add_sub")
        self._model = session(model)
        self.ready = True

    def predict(self, payload: InferRequest, headers: Any = None) -> InferResponse:
        pair = np.stack([tensor.as_numpy() for tensor in payload.inputs], axis=1)
        results = add_sub(self._model, pair)
        binary = bool(payload.use_binary_outputs)
        outputs = []
        for index, name in enumerate(("OUTPUT0", "OUTPUT1")):
            output = InferOutput(name=name, shape=[1, pair.shape[2]], datatype="INT32")
            output.set_data_from_numpy(results[:, index], binary_data=binary)
            outputs.append(output)
        return InferResponse(
            response_id=payload.id,
            model_name=self.name,
            infer_outputs=outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    trace_logger.setLevel("WARNING")
    ModelServer().start([AddSub(told.model)])
