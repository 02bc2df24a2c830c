"""Ensembles and their members."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorfarm.server.check.findings import Severity

from .found import IO, found, python_model

COMPLETES = (
    "class TritonPythonModel:\n    @staticmethod\n    def auto_complete_config(config):\n        return config\n"
    "    def execute(self, requests):\n        return []\n"
)


def ensemble(root: Path, name: str, *members: str, io: str = IO) -> None:
    """Write an ensemble that hands A through its members to B."""
    tensors = ["A", *(f"t{number}" for number in range(1, len(members))), "B"]
    steps = "".join(
        f'  step {{\n    model_name: "{member}"\n    model_version: -1\n'
        f'    input_map {{ key: "A" value: "{tensors[number]}" }}\n    output_map {{ key: "B" value: "{tensors[number + 1]}" }}\n  }}\n'
        for number, member in enumerate(members)
    )
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(f'platform: "ensemble"\n{io}ensemble_scheduling {{\n{steps}}}\n')


def test_ensembles_are_compared_with_their_members(tmp_path: Path) -> None:
    python_model(tmp_path, "m")
    python_model(tmp_path, "other", IO.replace('"B" data_type: TYPE_FP32', '"B" data_type: TYPE_INT32'))
    python_model(tmp_path, "bad", "max_batch_size: -1\n")
    python_model(tmp_path, "self_made", "", COMPLETES)
    ensemble(tmp_path, "good", "m", "m")
    ensemble(tmp_path, "of_ensembles", "good", "m")
    ensemble(tmp_path, "missing", "m", "nowhere")
    ensemble(tmp_path, "type", "m", "other")
    ensemble(tmp_path, "of_bad", "bad")
    ensemble(tmp_path, "unknown", "m", "self_made")
    ensemble(tmp_path, "round_one", "round_two")
    ensemble(tmp_path, "round_two", "round_one")
    ensemble(tmp_path, "unused", "m", io=IO + 'input { name: "C" data_type: TYPE_FP32 dims: 4 }\n')
    (tmp_path / "no_version").mkdir()
    (tmp_path / "good" / "config.pbtxt").rename(tmp_path / "no_version" / "config.pbtxt")
    ensemble_text = (tmp_path / "no_version" / "config.pbtxt").read_text()
    (tmp_path / "good" / "config.pbtxt").write_text(ensemble_text)
    by_model = found(str(tmp_path))
    expected = {
        "missing": (12, "ensemble missing contains models that are not available or ambiguous: nowhere"),
        "type": (15, "inconsistent data type: TYPE_FP32 is inferred from model type while TYPE_INT32 is inferred from model other"),
        "of_bad": (6, "depends on 'bad' which is not valid"),
        "round_one": (6, "circular dependency between ensembles: round_one -> ... -> round_two -> round_one"),
        "round_two": (6, "circular dependency between ensembles: round_two -> ... -> round_one -> round_two"),
        "unused": (4, "ensemble input 'C' for ensemble unused' is not used"),
    }
    for name, (line, text) in expected.items():
        [one] = by_model[name]
        assert text in one.message
        assert (one.line, one.severity) == (line, Severity.ERROR), name
    for name in ("good", "of_ensembles", "m"):
        assert by_model[name] == [], name
    assert [each.severity for each in by_model["unknown"]] == [Severity.NOTE]
    assert [each.severity for each in by_model["self_made"]] == [Severity.NOTE]
    assert "git keeps it" in by_model["no_version"][0].hint


@pytest.mark.parametrize("namespacing", ["true", "false"])
def test_members_are_looked_for_in_their_own_repository_first(tmp_path: Path, namespacing: str) -> None:
    for name in ("one", "two"):
        python_model(tmp_path / name, "m")
    python_model(tmp_path / "two", "alone")
    ensemble(tmp_path / "one", "e", "m", "alone")
    by_model = found(str(tmp_path / "one"), str(tmp_path / "two"), f"--model-namespacing={namespacing}")
    assert bool(by_model["e"]) is (namespacing == "false")
