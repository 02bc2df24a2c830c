"""What a model's configuration may ask for without effect in this release."""

from __future__ import annotations

from typing import Any


def fields_without_effect(config: Any) -> list[str]:
    """The fields of a final configuration that are set, would be honoured by the original, and change nothing here."""
    groups = config.instance_group
    found = {
        "instance_group.host_policy": any(group.host_policy for group in groups),
        "instance_group.secondary_devices": any(group.secondary_devices for group in groups),
    }
    return [name for name, is_set in found.items() if is_set]
