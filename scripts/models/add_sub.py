"""The smallest model worth serving: the sum and the difference of two vectors."""

from __future__ import annotations

from .graph import INT32, Graph, Shape


def add_sub(length: int = 16) -> bytes:
    """The model ``INPUT0``, ``INPUT1`` INT32 [N,length] → ``OUTPUT0`` (sum), ``OUTPUT1`` (difference)."""
    graph = Graph()
    graph.add("Add", "INPUT0", "INPUT1", output="OUTPUT0")
    graph.add("Sub", "INPUT0", "INPUT1", output="OUTPUT1")
    tensor: tuple[int, Shape] = (INT32, ["N", length])
    return graph.model("add_sub", {"INPUT0": tensor, "INPUT1": tensor}, {"OUTPUT0": tensor, "OUTPUT1": tensor}, opset=14)
