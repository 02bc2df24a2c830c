"""CUDA made of ordinary memory, for tests on machines without a GPU. ``tests/standins/gpu/environment.py`` says how it is used.

The fake packages beside this one (``cupy``, ``cuda.bindings``, ``pynvml``, ``onnxruntime``) have the functions that the product and the
stock client use, and do them by ``driver``.
"""
