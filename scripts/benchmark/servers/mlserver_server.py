"""add_sub in MLServer: V2 protocol in JSON, which is all that its REST side speaks; adaptive batching of up to 8."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse

from .arguments import BATCH, add_sub, arguments, session


class AddSub(MLModel):
    """Decodes and encodes with MLServer's own codec."""

    async def load(self) -> bool:
        self._model = session(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        pairs = np.stack([NumpyCodec.decode_input(tensor) for tensor in payload.inputs], axis=1)
        results = add_sub(self._model, pairs)
        outputs = [NumpyCodec.encode_output(name, results[:, index]) for index, name in enumerate(("OUTPUT0", "OUTPUT1"))]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)


async def main(told: Any) -> None:
    """Serve until a signal comes."""
    words = told.variant.split("-")
    batching = {"max_batch_size": BATCH, "max_batch_time": 0.001} if "batching" in words else {}
    server = MLServer(
        Settings(
            debug=False,
            host="127.0.0.1",
            http_port=told.port,
            grpc_port=0,
            metrics_endpoint=None,
            parallel_workers=1 if "worker" in words else 0,
            gzip_enabled=False,
        )
    )
    model = ModelSettings(name="add_sub", implementation=AddSub, parameters=ModelParameters(uri=told.model), **batching)
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(main(arguments()))
