from __future__ import annotations

import json
from typing import Any

import pytest

from tensorfarm.workers.python.model_config import ModelConfig

A: dict[str, Any] = {"name": "A", "data_type": "TYPE_FP32", "dims": [4]}


def config(**given: Any) -> ModelConfig:
    return ModelConfig(json.dumps({"name": "m", "input": [], "output": [], "max_batch_size": 0} | given))


def refusal(operation: Any) -> str:
    with pytest.raises(ValueError) as raised:
        operation()
    return str(raised.value)


def test_it_is_a_json_document() -> None:
    assert ModelConfig('{"name":"m"}').as_dict() == {"name": "m"}
    with pytest.raises(TypeError):
        ModelConfig({"name": "m"})  # type: ignore[arg-type]


def test_max_batch_size() -> None:
    larger = config(max_batch_size=4)
    larger.set_max_batch_size(8)
    assert larger.as_dict()["max_batch_size"] == 8
    assert refusal(lambda: larger.set_max_batch_size(4)) == (
        "configuration specified max_batch_size 8, but in auto-complete-config function for model 'm' specified max_batch_size 4"
    )


def test_dynamic_batching() -> None:
    plain, own = config(), config(dynamic_batching={"max_queue_delay_microseconds": 5})
    plain.set_dynamic_batching()
    own.set_dynamic_batching()
    assert plain.as_dict()["dynamic_batching"] == {}
    assert own.as_dict()["dynamic_batching"] == {"max_queue_delay_microseconds": 5}
    for scheduler in ("sequence_batching", "ensemble_scheduling"):
        assert refusal(config(**{scheduler: {}}).set_dynamic_batching) == (
            f"Configuration specified scheduling_choice as '{scheduler}', but auto-complete-config function for model 'm' "
            "tries to set scheduling_choice as 'dynamic_batching'"
        )


@pytest.mark.parametrize("side", ["input", "output"])
def test_tensors_are_added_completed_and_compared(side: str) -> None:
    partly = [{"name": "A", "data_type": "TYPE_INVALID", "dims": []}, {"name": "B", "data_type": "TYPE_FP32", "dims": [-1]}, {"name": "C"}]
    made = config(**{side: partly})
    add = getattr(made, f"add_{side}")
    add(A)
    add(A)
    add(A | {"name": "B", "dims": [-1]})
    add(A | {"name": "C"})
    add({"name": "D", "data_type": "TYPE_STRING", "dims": [1, -1]})
    assert made.as_dict()[side] == [
        A,
        A | {"name": "B", "dims": [-1]},
        A | {"name": "C"},
        {"name": "D", "data_type": "TYPE_STRING", "dims": [1, -1]},
    ]
    assert refusal(lambda: add(A | {"data_type": "TYPE_INT32"})) == (
        f"unable to load model 'm', configuration expects datatype TYPE_FP32 for {side} 'A', model provides TYPE_INT32"
    )
    assert refusal(lambda: add(A | {"dims": [4, -1]})) == (
        "model 'm', tensor 'A': the model expects dims [4, -1] but the model configuration specifies dims [4]"
    )


def test_the_configuration_is_no_part_of_what_was_added() -> None:
    made, given = config(), dict(A)
    made.add_input(given)
    made.add_input(given | {"optional": True})
    assert given == A and made.as_dict()["input"] == [A | {"optional": True}]


def test_optional_inputs() -> None:
    made = config(input=[A, A | {"name": "B", "optional": False}])
    made.add_input(A | {"optional": True})
    made.add_input(A)
    assert made.as_dict()["input"][0]["optional"] is True
    assert refusal(lambda: made.add_input(A | {"optional": False})) == (
        "model 'm', tensor 'A': the model expects optional False but the model configuration specifies optional True"
    )
    assert refusal(lambda: made.add_input(A | {"name": "B", "optional": True})) == (
        "model 'm', tensor 'B': the model expects optional True but the model configuration specifies optional False"
    )


def test_properties() -> None:
    made = config()
    for side, others in (("input", "'name', 'data_type', 'dims' and 'optional'"), ("output", "'name', 'data_type' and 'dims'")):
        add = getattr(made, f"add_{side}")
        where = "in auto-complete-config function for model 'm'"
        assert refusal(lambda add=add: add({})) == f"{side} {where} is missing 'name' property."
        assert refusal(lambda add=add: add({"name": "D", "dims": [1]})) == f"{side} 'D' {where} is missing 'data_type' property."
        assert refusal(lambda add=add: add({"name": "D", "data_type": "TYPE_FP32"})) == f"{side} 'D' {where} is missing 'dims' property."
        assert refusal(lambda add=add: add(A | {"x": 1})) == f"{side} 'A' {where} contains property other than {others}."
    assert refusal(lambda: made.add_output(A | {"optional": True})).endswith("contains property other than 'name', 'data_type' and 'dims'.")
    assert made.as_dict()["input"] == [] == made.as_dict()["output"]


def test_transaction_policy() -> None:
    made = config()
    made.set_model_transaction_policy({})
    made.set_model_transaction_policy({"decoupled": True})
    made.set_model_transaction_policy({"decoupled": True})
    assert made.as_dict()["model_transaction_policy"] == {"decoupled": True}
    assert refusal(lambda: made.set_model_transaction_policy({"decoupled": False})) == (
        "trying to change decoupled property in auto-complete-config for model 'm', which is already set to 'True'."
    )
    assert refusal(lambda: made.set_model_transaction_policy({"decoupled": True, "x": 1})) == (
        "model transaction property in auto-complete-config function for model 'm' contains property other than 'decoupled'."
    )
