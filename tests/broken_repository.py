"""Models that must not load, each for one reason, beside some that look wrong and are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .model_repository import PLAIN, Flavour, TestTensor, config_text, write_model

_SECOND = PLAIN.inputs[1]

EDITS = {
    "no_type": ("    data_type: TYPE_INT32\n", ""),
    "bad_type": ("TYPE_INT32", "TYPE_INT"),
    "no_dims": ("    dims: [ 16 ]\n", ""),
    "bad_dims": ("[ 16 ]", "[ 0 ]"),
    "negative_dims": ("[ 16 ]", "[ -2 ]"),
    "no_name": ('    name: "INPUT0"\n', ""),
    "nchw": ("    dims: [ 16 ]\n", "    dims: [ 16 ]\n    format: FORMAT_NCHW\n"),
    "shape_tensor": ("    dims: [ 16 ]\n", "    dims: [ 16 ]\n    is_shape_tensor: true\n"),
    "other_name": ('name: "other_name"', 'name: "another"'),
}
"""A good configuration in which the first occurrence of one text is replaced by another."""

MODELS = (
    PLAIN,
    replace(PLAIN, name="no_versions", versions=()),
    replace(PLAIN, name="leading_zero", versions=(), folders=("01",)),
    replace(PLAIN, name="unknown_field", extra='colour: "red"'),
    replace(PLAIN, name="negative_batch", max_batch_size=-1),
    replace(PLAIN, name="preferred_too_big", max_batch_size=8, extra="dynamic_batching { preferred_batch_size: [ 16 ] }"),
    replace(PLAIN, name="preferred_nought", max_batch_size=8, extra="dynamic_batching { preferred_batch_size: [ 0 ] }"),
    replace(PLAIN, name="policy_empty", extra="version_policy { specific { versions: [ 7 ] } }"),
    replace(PLAIN, name="policy_partly", extra="version_policy { specific { versions: [ 1, 7 ] } }"),
    replace(PLAIN, name="gpu_group", instances=0, extra="instance_group [ { kind: KIND_GPU } ]"),
    replace(PLAIN, name="gpu_list_on_cpu", instances=0, extra="instance_group [ { kind: KIND_CPU, gpus: [ 0 ] } ]"),
    replace(PLAIN, name="reshape_differs", inputs=(TestTensor("INPUT0", "INT32", (16,), (5,)), _SECOND)),
    replace(PLAIN, name="empty_reshape", inputs=(TestTensor("INPUT0", "INT32", (1,), ()), _SECOND)),
    replace(PLAIN, name="no_labels", outputs=(replace(PLAIN.outputs[0], label_filename="missing.txt"), PLAIN.outputs[1])),
    replace(PLAIN, name="labels_outside", outputs=(replace(PLAIN.outputs[0], label_filename="../plain/config.pbtxt"), PLAIN.outputs[1])),
    replace(PLAIN, name="two_schedulers", max_batch_size=8, extra="dynamic_batching { } sequence_batching { }"),
    replace(PLAIN, name="priority_range", max_batch_size=8, extra="dynamic_batching { priority_levels: 2, default_priority_level: 5 }"),
    replace(
        PLAIN,
        name="priority_key",
        max_batch_size=8,
        extra="dynamic_batching { priority_levels: 2, default_priority_level: 1, priority_queue_policy { key: 3 value { } } }",
    ),
    replace(
        PLAIN,
        name="ordering_priorities",
        max_batch_size=8,
        extra="dynamic_batching { preserve_ordering: true, priority_levels: 2, default_priority_level: 1 }",
    ),
    replace(PLAIN, name="fails", operation="fail"),
    replace(PLAIN, name="one_good_one_bad", versions=(1, 2), extra="version_policy { all { } }"),
    *(replace(PLAIN, name=name) for name in EDITS),
)
"""Models whose ONNX or Python files are as good as their configuration lets them be."""

HANGING = (replace(PLAIN, name="no_model_file"),)
"""Release 24.10 never finishes starting with these; tensorfarm is tested with them alone."""


def write_broken(root: Path, flavour: Flavour) -> Path:
    """Write all of ``MODELS``, and the configurations that no model can be made for, under ``root``."""
    backend = flavour.value
    for model in MODELS:
        operation = model.operation if model.operation == "fail" else "add_sub"
        graph = replace(model, inputs=PLAIN.inputs, outputs=PLAIN.outputs, operation=operation, max_batch_size=max(model.max_batch_size, 0))
        config = config_text(model, flavour)
        if model.name in EDITS:
            config = config.replace(*EDITS[model.name], 1)
        write_model(root, graph, flavour, config)
    _overwrite(root / "one_good_one_bad" / "2", flavour)
    for name, config in {
        "bad_syntax": 'name: "bad_syntax" {{{',
        "bad_backend": config_text(replace(PLAIN, name="bad_backend"), flavour).replace(f'"{backend}"', '"nosuch"'),
        "bad_platform": config_text(replace(PLAIN, name="bad_platform"), flavour).replace(
            f'backend: "{backend}"', 'platform: "nosuch_platform"'
        ),
        "platform_pair": 'platform: "ensemble"\n' + config_text(replace(PLAIN, name="platform_pair"), flavour),
    }.items():
        write_model(root, replace(PLAIN, name=name), flavour, config)
    (root / "empty").mkdir()
    (root / "loose_file").write_text("no model")
    return root


def write_hanging(root: Path) -> Path:
    """Write ``HANGING`` for tensorfarm, and a good model beside them."""
    write_model(root, PLAIN, Flavour.ONNX)
    for model in HANGING:
        (write_model(root, model, Flavour.ONNX) / "1" / "model.onnx").unlink()
    return root


def _overwrite(folder: Path, flavour: Flavour) -> None:
    (folder / ("model.py" if flavour is Flavour.PYTHON else "model.onnx")).write_text("this is no model")
