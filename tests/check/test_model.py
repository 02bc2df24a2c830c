"""Models: configurations, model files, files beside them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tensorfarm.server.check.findings import Severity

from ..broken_repository import MODELS, write_broken
from ..model_repository import PLAIN, Flavour, config_text
from .found import IO, found, lines, onnx_folder, python_model

GOOD = {"plain"}
WITHOUT_LINE = {"empty", "fails", "leading_zero", "no_versions", "one_good_one_bad"}
"""What is wrong with these is no field of a configuration."""
WORST = {"plain": None, "policy_partly": Severity.WARNING, "gpu_group": Severity.NOTE}
"""The worst that is found of those that may load, on another machine at least."""


def test_every_broken_model_has_an_error_and_its_line(tmp_path: Path) -> None:
    by_model = found(str(write_broken(tmp_path, Flavour.ONNX)))
    assert {model.name for model in MODELS} <= by_model.keys()
    for name, findings in by_model.items():
        worst = min((each.severity for each in findings), key=list(Severity).index, default=None)
        assert worst == WORST.get(name, Severity.ERROR), name
        placed = [each for each in findings if each.line is not None and each.path == str(tmp_path / name / "config.pbtxt")]
        assert bool(placed) is (name not in GOOD | WITHOUT_LINE), name
    assert lines(by_model["bad_type"], tmp_path) == [
        'bad_type/config.pbtxt:7:16 error Enum type "inference.DataType" has no value named TYPE_INT.'
    ]
    assert "TYPE_INT32" in by_model["bad_type"][0].hint
    assert [(each.line, each.column) for each in by_model["bad_dims"]] == [(8, 5)]
    assert [(each.line, each.column) for each in by_model["priority_range"]] == [(29, 40)]
    assert "version 7 is specified" in by_model["policy_partly"][0].message


PLAIN_TEXT = config_text(PLAIN, Flavour.ONNX)

DIFFERENT: dict[str, tuple[str, str, int, str, str]] = {
    "type": (
        "TYPE_INT32",
        "TYPE_FP32",
        7,
        "configuration expects datatype TYPE_FP32 for input 'INPUT0', model provides TYPE_INT32",
        "TYPE_INT32",
    ),
    "shape": ("dims: [ 16 ]", "dims: [ 16, 2 ]", 8, "the model expects 1 dimensions (shape [16])", "dims: [16]"),
    "name": ('name: "INPUT0"', 'name: "INPUTO"', 6, "unexpected inference input 'INPUTO', allowed inputs are: INPUT0, INPUT1", "INPUT0"),
    "output": ('name: "OUTPUT1"', 'name: "RESULT"', 23, "unexpected inference output 'RESULT'", ""),
    "batching": ("max_batch_size: 0", "max_batch_size: 8", 8, "first dimension must be -1", "max_batch_size: 0"),
    "file": (
        'backend: "onnxruntime"\n',
        'backend: "onnxruntime"\ndefault_model_filename: "other.onnx"\n',
        0,
        "unable to find 'file/1/other.onnx' for model instance 'file'",
        "default_model_filename",
    ),
}
"""Model name to: a text of a right configuration, its replacement, the line of the error, and parts of its message and hint."""


def test_configurations_are_compared_with_the_model_file(tmp_path: Path) -> None:
    for name, (old, new, *_) in DIFFERENT.items():
        assert old in PLAIN_TEXT
        onnx_folder(tmp_path, name, PLAIN_TEXT.replace('"plain"', f'"{name}"').replace(old, new, 1))
    onnx_folder(
        tmp_path,
        "inputs",
        PLAIN_TEXT.replace('"plain"', '"inputs"').replace(
            PLAIN_TEXT[PLAIN_TEXT.index("  },\n  {") : PLAIN_TEXT.index("]\noutput")], "  }\n", 1
        ),
    )
    onnx_folder(tmp_path, "right", PLAIN_TEXT.replace('"plain"', '"right"'))
    by_model = found(str(tmp_path), "--disable-auto-complete-config")
    assert by_model["right"] == []
    for name, (_, _, line, message, hint) in DIFFERENT.items():
        [one] = by_model[name]
        assert one.severity is Severity.ERROR
        assert (one.line or 0) == line, name
        assert message in one.message
        assert hint in one.hint
        assert one.path == str(tmp_path / name / ("config.pbtxt" if line else "1")), name
    [one] = by_model["inputs"]
    assert (one.line, one.message) == (4, "unable to load model 'inputs', configuration expects 1 inputs, model provides 2")


def test_what_is_completed_is_told(tmp_path: Path) -> None:
    onnx_folder(tmp_path, "bare")
    onnx_folder(tmp_path, "half", PLAIN_TEXT[: PLAIN_TEXT.index("output [")].replace('"plain"', '"half"'))
    by_model = found(str(tmp_path))
    [bare] = by_model["bare"]
    assert bare.severity is Severity.NOTE
    assert bare.path == str(tmp_path / "bare")
    assert bare.message == (
        "completed from the model: max_batch_size: 0, input 'INPUT0' TYPE_INT32 [16], input 'INPUT1' TYPE_INT32 [16], "
        "output 'OUTPUT0' TYPE_INT32 [16], output 'OUTPUT1' TYPE_INT32 [16]"
    )
    [half] = by_model["half"]
    assert half.severity is Severity.NOTE
    strict = found(str(tmp_path), "--disable-auto-complete-config")
    assert [each.message for each in strict["bare"]] == ["is missing"]
    assert len(strict["half"]) == 0  # outputs may be left out: none can be asked for


def test_named_configurations(tmp_path: Path) -> None:
    folder = python_model(tmp_path, "m")
    (folder / "configs").mkdir()
    (folder / "configs" / "gpu.pbtxt").write_text('backend: "python"\n\nmax_batch_size: -1\n')
    assert found(str(tmp_path)) == {"m": []}
    [one] = found(str(tmp_path), "--model-config-name=gpu")["m"]
    assert (one.path, one.line) == (str(folder / "configs" / "gpu.pbtxt"), 3)
    [other] = found(str(tmp_path), "--model-config-name=tpu")["m"]
    assert other.severity is Severity.NOTE


GPU_GROUPS = {
    "any": ("{ kind: KIND_GPU }", [Severity.NOTE], "instance group any_0 of model any needs a GPU: "),
    "both": ("{ count: 2 }, { kind: KIND_GPU, count: 2 }", [Severity.NOTE], "instance group both_1 of model both needs a GPU: "),
    "listed": ("{ kind: KIND_GPU, gpus: [ 3, 1 ] }", [Severity.NOTE], "instance group listed_0 of model listed needs GPU 3, 1: "),
    "auto": ("{ gpus: [ 0 ] }", [Severity.NOTE], "instance group auto_0 of model auto needs GPU 0: "),
    "each": ('{ name: "a", kind: KIND_GPU, gpus: [ 0 ] }, { name: "b", kind: KIND_GPU }', [Severity.NOTE] * 2, "instance group a of model"),
    "cpu": ("{ kind: KIND_CPU, gpus: [ 0 ] }", [Severity.ERROR], "has kind KIND_CPU but specifies one or more GPUs"),
    "model": ("{ kind: KIND_MODEL, gpus: [ 0 ] }", [Severity.ERROR], "has kind KIND_MODEL but specifies one or more GPUs"),
    "below": ("{ kind: KIND_GPU, gpus: [ -1 ] }", [Severity.ERROR], "specifies invalid or unsupported gpu id -1"),
    "none": ("{ kind: KIND_MODEL }, { kind: KIND_AUTO }, { kind: KIND_CPU }", [], ""),
}
"""Model name to: its instance groups, what is found of them, and how the first begins, or what it has."""


@pytest.mark.parametrize("flavour", Flavour)
def test_what_needs_a_gpu_is_not_wrong_where_there_is_none(tmp_path: Path, flavour: Flavour) -> None:
    for name, (groups, _, _) in GPU_GROUPS.items():
        more = f"instance_group [ {groups} ]"
        if flavour is Flavour.PYTHON:
            python_model(tmp_path, name, f"{IO}{more}\n")
        else:
            onnx_folder(tmp_path, name, PLAIN_TEXT.replace('"plain"', f'"{name}"').replace("instance_group", "#", 1) + more)
    by_model = found(str(tmp_path))
    for name, (_, severities, text) in GPU_GROUPS.items():
        assert [each.severity for each in by_model[name]] == severities, by_model[name]
        assert all(each.line for each in by_model[name])
        assert not severities or text in by_model[name][0].message
    hints = {name: [bool(each.hint) for each in findings] for name, findings in by_model.items()}
    assert hints["any"] == [True] and hints["each"] == [False, True] and hints["auto"] == [False]


def test_label_files(tmp_path: Path) -> None:
    def labelled(name: str, file: str) -> Path:
        config = IO.replace("output { ", f'output {{\n  label_filename: "{file}"\n  ')
        return python_model(tmp_path, name, config)

    (labelled("good", "labels.txt") / "labels.txt").write_text("a\nb\nc\nd\n")
    (labelled("short", "labels.txt") / "labels.txt").write_text("a\nb")
    labelled("missing", "labels.txt")
    (labelled("folder", "labels") / "labels").mkdir()
    (labelled("outside", "labels.txt") / "labels.txt").symlink_to(tmp_path / "good" / "labels.txt")
    (labelled("circle", "labels.txt") / "labels.txt").symlink_to("labels.txt")
    os.mkfifo(labelled("pipe", "labels.txt") / "labels.txt")
    by_model = found(str(tmp_path))
    assert by_model.pop("good") == []
    assert {name: [each.line for each in findings if each.path.endswith("config.pbtxt")] for name, findings in by_model.items()} == {
        name: [4] for name in ("short", "missing", "folder", "outside", "circle", "pipe")
    }
    assert by_model["short"][0].severity is Severity.WARNING
    assert by_model["short"][0].message == "label file 'labels.txt' has 2 lines, output 'B' has 4 classes"
    assert "must stay within" in by_model["outside"][0].message


def test_warmup_data(tmp_path: Path) -> None:
    def warmed(name: str, given: str) -> Path:
        sample = f'model_warmup {{\n  name: "s"\n  batch_size: 1\n  inputs {{\n    key: "A"\n    value {{\n      data_type: TYPE_FP32\n{given}    }}\n  }}\n}}\n'
        return python_model(tmp_path, name, IO + sample)

    (warmed("good", '      dims: 4\n      input_data_file: "a"\n') / "warmup").mkdir()
    (tmp_path / "good" / "warmup" / "a").write_bytes(bytes(16))
    (warmed("short", '      dims: 4\n      input_data_file: "a"\n') / "warmup").mkdir()
    (tmp_path / "short" / "warmup" / "a").write_bytes(bytes(15))
    warmed("missing", '      dims: 4\n      input_data_file: "a"\n')
    warmed("variable", "      dims: -1\n      zero_data: true\n")
    warmed("shape", "      dims: 5\n      zero_data: true\n")
    warmed("nothing", "      dims: 4\n")
    warmed("outside", '      dims: 4\n      input_data_file: "../a"\n')
    errors = {
        name: [(each.line, each.message) for each in findings if each.severity is Severity.ERROR]
        for name, findings in found(str(tmp_path)).items()
    }
    assert errors["good"] == []
    assert errors["short"] == [(12, "warmup setting expects 16 bytes, but the data provided from aonly has 15 bytes")]
    assert errors["missing"] == [(12, "failed to open text file for read missing/warmup/a: No such file or directory")]
    assert errors["variable"] == [(11, "warmup setting expects all variable-size dimensions are specified for input 'A'")]
    assert errors["shape"] == [(11, "unexpected shape for input 'A' for model 'shape'. Expected [4], got [5]. ")]
    assert errors["nothing"] == [(11, "warmup setting expects input 'A' to have input_data_type set")]
    assert errors["outside"] == [(12, "input_data_file '../a' must stay within the model directory for outside")]


def test_fields_without_effect_are_warnings(tmp_path: Path) -> None:
    python_model(tmp_path, "m", IO + 'instance_group { kind: KIND_CPU }\ninstance_group {\n  host_policy: "p"\n}\n')
    [one] = found(str(tmp_path))["m"]
    assert (one.severity, one.line, one.message) == (Severity.WARNING, 6, "instance_group.host_policy has no effect in this release")


def test_environments_are_tried(tmp_path: Path) -> None:
    environment = 'parameters {\n  key: "EXECUTION_ENV_PATH"\n  value { string_value: "$$TRITON_MODEL_DIRECTORY/env" }\n}\n'
    python_model(tmp_path, "missing", IO + environment)
    (python_model(tmp_path, "empty", IO + environment) / "env").mkdir()
    by_model = found(str(tmp_path))
    for name, text in (("missing", "Failed to get the canonical path"), ("empty", "bin/activate does not exist")):
        [one] = [each for each in by_model[name] if each.severity is Severity.ERROR]
        assert one.line == 4
        assert text in one.message
        assert one.path == str(tmp_path / name / "config.pbtxt")


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 34)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


STRANGE: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "circle": _circle,
    "nowhere": lambda path: path.symlink_to("missing"),
    "endless": _endless,
    "huge": _huge,
    "empty": Path.touch,
    "bytes": lambda path: path.write_bytes(bytes(range(256))),
    "nul": lambda path: path.write_bytes(b"\0" * 100),
    "number": lambda path: path.write_text(f"max_batch_size: {'9' * 100_000}"),
    "infinite": lambda path: path.write_text("max_batch_size: inf"),
    "value": lambda path: path.write_text("backend: \"python\"\n\ninput { name: 'A'\n format: 99 }"),
    "deep": lambda path: path.write_text("input {" * 50_000),
    "escape": lambda path: path.write_text('name: "\\xff\\777\\u{"'),
    "name": lambda path: path.write_text('backend: "python" default_model_filename: "\\000.py"'),
    "long": lambda path: path.write_text(f'backend: "python" default_model_filename: "{"a" * 100_000}.py"'),
}
"""What may be called ``config.pbtxt`` or be a model file."""


@pytest.mark.parametrize("file", ["config.pbtxt", "1/model.onnx", "1/model.py"])
def test_nothing_strange_ends_a_check(tmp_path: Path, file: str) -> None:
    for name, make in STRANGE.items():
        backend = "python" if file.endswith(".py") else "onnxruntime"
        folder = python_model(tmp_path, name, IO) if backend == "python" else onnx_folder(tmp_path, name, 'backend: "onnxruntime"\n' + IO)
        (folder / file).unlink()
        make(folder / file)
    python_model(tmp_path, "good")
    by_model = found(str(tmp_path))
    assert by_model["good"] == []
    for name in STRANGE:
        errors = [each for each in by_model[name] if each.severity is not Severity.NOTE]
        assert errors or (name == "empty" and file == "config.pbtxt"), name
        assert all(not each.path.startswith("/dev") for each in errors)
    if file == "config.pbtxt":
        assert {name: by_model[name][0].line for name in ("bytes", "value", "number", "deep")} == {
            "bytes": 2,
            "value": 4,
            "number": 1,
            "deep": 1,
        }


def test_unreadable_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What root may always read is refused here as the system would do for others."""
    python_model(tmp_path, "closed")
    python_model(tmp_path, "good")
    real_scandir = os.scandir

    def scandir(path: object = ".") -> object:
        if str(path) == str(tmp_path / "closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    by_model = found(str(tmp_path))
    assert by_model["good"] == []
    assert any("Permission denied" in each.message for each in by_model["closed"])


def test_what_agents_refuse(tmp_path: Path) -> None:
    agent = 'model_repository_agents { agents { name: "checksum" parameters { key: "MD5:1/model.py" value: "00" } } }'
    python_model(tmp_path, "m", f"{IO}\n{agent}")
    [finding] = found(str(tmp_path))["m"]
    assert finding.message.startswith("Mismatched MD5 hash for file 1/model.py, expect: 00, got: ")
    assert (finding.severity, finding.path) == ("error", str(tmp_path / "m" / "config.pbtxt"))
