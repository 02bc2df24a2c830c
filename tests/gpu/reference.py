"""ONNX Runtime by itself, in a process of its own: one model, tensors that lie on the GPU, a loop.

    python -m tests.gpu.reference MODEL.onnx

Each line of standard input is a number of seconds; the answer is a line with the median milliseconds of a run.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import onnxruntime
from cupy.cuda import runtime

from .loop import WARM_RUNS
from .resnet import BATCH_SIZE, CLASSES, DIMS, INPUT, OUTPUT


def main() -> None:
    """The command."""
    onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        sys.argv[1], options, providers=[("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"]
    )
    if "CUDAExecutionProvider" not in session.get_providers():
        raise SystemExit("ONNX Runtime does not use CUDA")
    pictures = np.ones((BATCH_SIZE, *DIMS), np.float32)
    source = runtime.malloc(pictures.nbytes)
    target = runtime.malloc(BATCH_SIZE * CLASSES * 4)
    stream = runtime.streamCreateWithFlags(runtime.streamNonBlocking)
    runtime.memcpyAsync(source, pictures.ctypes.data, pictures.nbytes, runtime.memcpyDefault, stream)
    runtime.streamSynchronize(stream)
    binding = session.io_binding()
    binding.bind_input(INPUT, "cuda", 0, np.float32, pictures.shape, source)
    binding.bind_output(OUTPUT, "cuda", 0, np.float32, (BATCH_SIZE, CLASSES), target)

    def run() -> float:
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return time.perf_counter() - start

    for _ in range(WARM_RUNS):
        run()
    print("ready", flush=True)
    for line in sys.stdin:
        end = time.monotonic() + float(line)
        times = [run()]
        while time.monotonic() < end:
            times.append(run())
        print(statistics.median(times) * 1e3, flush=True)


if __name__ == "__main__":
    main()
