"""The model that gives back what it gets: all that is left to measure is the way there and back."""

from __future__ import annotations

from .graph import FLOAT, Graph, Shape


def identity() -> bytes:
    """The model ``INPUT0`` FP32 [length] → ``OUTPUT0``, the same."""
    graph = Graph()
    graph.add("Identity", "INPUT0", output="OUTPUT0")
    tensor: tuple[int, Shape] = (FLOAT, ["length"])
    return graph.model("identity", {"INPUT0": tensor}, {"OUTPUT0": tensor}, opset=14)
