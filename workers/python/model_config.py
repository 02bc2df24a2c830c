"""What auto_complete_config works on."""

from __future__ import annotations

import json
from typing import Any

# the scheduler that a configuration may have: one of these
_SCHEDULERS = ("sequence_batching", "ensemble_scheduling")


class ModelConfig:
    """A model's configuration, to be completed: a value that it has already must be the same.

    ``model_config`` is the text of a JSON document.
    """

    def __init__(self, model_config: str) -> None:
        self._config: dict[str, Any] = json.loads(model_config)

    def as_dict(self) -> dict[str, Any]:
        """The configuration as it stands, by the names of ``config.pbtxt``."""
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Set the largest batch. Raises ValueError where the configuration has a larger one."""
        configured = self._config.get("max_batch_size", 0)
        if configured > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {configured}, but in auto-complete-config function "
                f"for model '{self._name}' specified max_batch_size {max_batch_size}"
            )
        self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Have the server form batches; the configuration's own settings of that stay. Raises ValueError for other schedulers."""
        for scheduler in _SCHEDULERS:
            if scheduler in self._config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{scheduler}', but auto-complete-config function "
                    f"for model '{self._name}' tries to set scheduling_choice as 'dynamic_batching'"
                )
        self._config.setdefault("dynamic_batching", {})

    # the original's argument is called so, and may be given by name
    def add_input(self, input: dict[str, Any]) -> None:
        """Add an input: ``name``, ``data_type``, ``dims``, ``optional``. Raises ValueError for others, and for a conflict."""
        self._add("input", input, ("name", "data_type", "dims", "optional"), "'name', 'data_type', 'dims' and 'optional'")

    def add_output(self, output: dict[str, Any]) -> None:
        """Add an output: ``name``, ``data_type``, ``dims``. Raises ValueError for others, and for a conflict."""
        self._add("output", output, ("name", "data_type", "dims"), "'name', 'data_type' and 'dims'")

    def set_model_transaction_policy(self, transaction_policy_dict: dict[str, Any]) -> None:
        """Set ``decoupled``. Raises ValueError for other properties, and where it is set otherwise."""
        if any(name != "decoupled" for name in transaction_policy_dict.keys()):
            raise ValueError(
                f"model transaction property in auto-complete-config function for model '{self._name}' "
                "contains property other than 'decoupled'."
            )
        if "decoupled" not in transaction_policy_dict:
            return
        wanted = transaction_policy_dict["decoupled"]
        policy = self._config.setdefault("model_transaction_policy", {})
        if policy.setdefault("decoupled", wanted) != wanted:
            raise ValueError(
                f"trying to change decoupled property in auto-complete-config for model '{self._name}', "
                f"which is already set to '{policy['decoupled']}'."
            )

    @property
    def _name(self) -> str:
        return str(self._config.get("name", ""))

    def _add(self, side: str, tensor: dict[str, Any], known: tuple[str, ...], known_text: str) -> None:
        where = f"in auto-complete-config function for model '{self._name}'"
        if "name" not in tensor:
            raise ValueError(f"{side} {where} is missing 'name' property.")
        name = tensor["name"]
        for missing in ("data_type", "dims"):
            if missing not in tensor:
                raise ValueError(f"{side} '{name}' {where} is missing '{missing}' property.")
        if any(other not in known for other in tensor):
            raise ValueError(f"{side} '{name}' {where} contains property other than {known_text}.")
        tensors = self._config.setdefault(side, [])
        for configured in tensors:
            if configured["name"] == name:
                self._merge(side, configured, tensor)
                return
        tensors.append({property: tensor[property] for property in known if property in tensor})

    def _merge(self, side: str, configured: dict[str, Any], tensor: dict[str, Any]) -> None:
        """Complete a tensor that the configuration has: what it says must be the same."""
        name = tensor["name"]
        datatype = configured.get("data_type", "TYPE_INVALID")
        if datatype not in ("TYPE_INVALID", tensor["data_type"]):
            raise ValueError(
                f"unable to load model '{self._name}', configuration expects datatype {datatype} for {side} '{name}', "
                f"model provides {tensor['data_type']}"
            )
        for property, nothing in (("dims", []), ("optional", None)):
            wanted = tensor.get(property)
            has = configured.get(property, nothing)
            if property in tensor and has != nothing and has != wanted:
                raise ValueError(
                    f"model '{self._name}', tensor '{name}': the model expects {property} {wanted} "
                    f"but the model configuration specifies {property} {has}"
                )
        configured.update(tensor)
