"""Three ways to send a tensor to the server and get one back, all with the stock tritonclient."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.utils.shared_memory as system_memory
from numpy.typing import NDArray

MODEL, INPUT, OUTPUT = "image_classifier", "image", "probabilities"
CLASSES = 1000

Tensor = NDArray[np.float32]
Ask = Callable[[Tensor], Tensor]


def as_json(client: Any) -> Ask:
    """Numbers written out in the request's and the response's JSON: readable, and slow for anything large."""
    return _in_the_body(client, binary=False)


def as_binary(client: Any) -> Ask:
    """Raw bytes after a small JSON header, the client's default."""
    return _in_the_body(client, binary=True)


def _in_the_body(client: Any, *, binary: bool) -> Ask:
    def ask(image: Tensor) -> Tensor:
        tensor = triton.InferInput(INPUT, image.shape, "FP32")
        tensor.set_data_from_numpy(image, binary_data=binary)
        result = client.infer(MODEL, [tensor], outputs=[triton.InferRequestedOutput(OUTPUT, binary_data=binary)])
        return np.asarray(result.as_numpy(OUTPUT), np.float32)

    return ask


@contextmanager
def through_shared_memory(client: Any, like: Tensor) -> Iterator[Ask]:
    """Only names travel: input and output lie in a region that this process and the server both see.

    ``like`` has the shape of the images to come.
    """
    name = f"tensorfarm_quickstart_{os.getpid()}"
    answer_byte_size = like.shape[0] * CLASSES * 4
    region = system_memory.create_shared_memory_region(name, f"/{name}", like.nbytes + answer_byte_size)
    try:
        client.register_system_shared_memory(name, f"/{name}", like.nbytes + answer_byte_size)

        def ask(image: Tensor) -> Tensor:
            system_memory.set_shared_memory_region(region, [image])
            tensor = triton.InferInput(INPUT, image.shape, "FP32")
            tensor.set_shared_memory(name, image.nbytes)
            output = triton.InferRequestedOutput(OUTPUT)
            output.set_shared_memory(name, answer_byte_size, offset=image.nbytes)
            client.infer(MODEL, [tensor], outputs=[output])
            shape = (image.shape[0], CLASSES)
            return np.array(system_memory.get_contents_as_numpy(region, np.float32, shape, offset=image.nbytes))

        try:
            yield ask
        finally:
            client.unregister_system_shared_memory(name)
    finally:
        system_memory.destroy_shared_memory_region(region)


def best_labels(client: Any, image: Tensor, count: int = 3) -> list[tuple[str, float]]:
    """The classes that the server itself names as the best ones: (label, score), best first."""
    tensor = triton.InferInput(INPUT, image.shape, "FP32")
    tensor.set_data_from_numpy(image)
    result = client.infer(MODEL, [tensor], outputs=[triton.InferRequestedOutput(OUTPUT, class_count=count)])
    best = []
    for entry in result.as_numpy(OUTPUT).ravel():
        score, _, label = entry.decode().split(":", 2)
        best.append((label, float(score)))
    return best
