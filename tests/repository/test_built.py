"""What is named in the log because this release does not do it yet."""

from __future__ import annotations

import pytest

from tensorfarm.server.repository.built import fields_without_effect
from tensorfarm.workers.contract.configuration import parse_text


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", []),
        ("dynamic_batching { } response_cache { enable: false } instance_group { kind: KIND_CPU }", []),
        ('model_warmup { name: "w" batch_size: 1 } response_cache { enable: true }', []),
        (
            'model_repository_agents { agents { name: "checksum" } } instance_group { rate_limiter { priority: 1 } }'
            ' instance_group { host_policy: "p" secondary_devices { kind: KIND_NVDLA } }',
            [
                "instance_group.host_policy",
                "instance_group.secondary_devices",
            ],
        ),
    ],
)
def test_what_has_no_effect_is_named(text: str, fields: list[str]) -> None:
    config = parse_text(f'name: "m" {text}', "config.pbtxt")
    assert fields_without_effect(config) == fields
