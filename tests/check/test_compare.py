"""A backend's ``compare``: what a check hears is what a load would say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorfarm.workers.backends.onnxruntime import backend
from tensorfarm.workers.contract.status import StatusError

from ..workers.onnx_source import add_sub, source

RIGHT = (
    'max_batch_size: 4 input { name: "IN0" data_type: TYPE_INT32 dims: 16 } input { name: "IN1" data_type: TYPE_INT32 dims: 16 } '
    'output { name: "SUM" data_type: TYPE_INT32 dims: 16 }'
)


@pytest.mark.parametrize(
    "config",
    [
        RIGHT.replace("INT32", "FP32"),
        RIGHT.replace('"SUM"', '"TOTAL"'),
        RIGHT.replace("dims: 16", "dims: 17", 1),
        RIGHT.replace("max_batch_size: 4", ""),
        RIGHT + ' batch_input { target_name: "COUNT" data_type: TYPE_FP32 source_input: "IN0" }',
        RIGHT + ' parameters { key: "intra_op_thread_count" value { string_value: "many" } }',
        RIGHT + ' model_operations { op_library_filename: "missing.so" }',
        RIGHT + ' default_model_filename: "missing.onnx"',
    ],
)
def test_compare_says_what_load_says(tmp_path: Path, config: str) -> None:
    with pytest.raises(StatusError) as loaded:
        backend().load(source(tmp_path, add_sub(), config))
    with pytest.raises(StatusError) as compared:
        backend().compare(source(tmp_path, add_sub(), config))
    assert (compared.value.code, compared.value.message) == (loaded.value.code, loaded.value.message)


def test_what_fits_is_not_complained_about(tmp_path: Path) -> None:
    backend().compare(source(tmp_path, add_sub(), RIGHT))


def test_a_file_of_noughts_is_refused_at_once(tmp_path: Path) -> None:
    made = source(tmp_path, b"", RIGHT)
    with (tmp_path / "m" / "1" / "model.onnx").open("wb") as file:
        file.truncate(1 << 36)
    with pytest.raises(StatusError, match="protobuf parsing failed"):
        backend().compare(made)
