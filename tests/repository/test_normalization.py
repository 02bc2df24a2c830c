from __future__ import annotations

import pytest

from tensorfarm.server.repository.normalization import normalize, normalize_instance_groups
from tensorfarm.workers.contract.configuration import model_config, parse_text

Group = tuple[str, str, int, list[int]]


def groups(text: str, gpus: tuple[int, ...]) -> list[Group]:
    config = parse_text(f'name: "m" {text}', "x")
    normalize_instance_groups(config, gpus)
    kinds = model_config.ModelInstanceGroup.Kind
    return [(group.name, kinds.Name(group.kind), group.count, list(group.gpus)) for group in config.instance_group]


@pytest.mark.parametrize(
    ("text", "gpus", "expected"),
    [
        ('backend: "python"', (), [("m", "KIND_CPU", 1, [])]),
        ('backend: "onnxruntime"', (), [("m", "KIND_CPU", 2, [])]),
        ('backend: "tensorflow"', (), [("m", "KIND_CPU", 2, [])]),
        ('backend: "onnxruntime"', (1, 0), [("m", "KIND_GPU", 1, [0, 1])]),
        ('backend: "python" instance_group {}', (), [("m_0", "KIND_CPU", 1, [])]),
        ('backend: "python" instance_group { count: -1 }', (), [("m_0", "KIND_CPU", 1, [])]),
        (
            'backend: "onnxruntime" instance_group [{kind: KIND_MODEL}, {name: "g"}, {count: 3}, {kind: KIND_CPU}]',
            (),
            [("m_0", "KIND_MODEL", 1, []), ("g", "KIND_CPU", 2, []), ("m_2", "KIND_CPU", 3, []), ("m_3", "KIND_CPU", 2, [])],
        ),
        (
            'backend: "onnxruntime" instance_group [{gpus: 1}, {gpus: [0, 7]}, {kind: KIND_GPU}, {kind: KIND_CPU}]',
            (0, 1),
            [("m_0", "KIND_GPU", 1, [1]), ("m_1", "KIND_CPU", 2, [0, 7]), ("m_2", "KIND_GPU", 1, [0, 1]), ("m_3", "KIND_CPU", 2, [])],
        ),
        ("ensemble_scheduling {}", (0,), []),
        ('backend: "python"', (0,), [("m", "KIND_GPU", 1, [0])]),
        ('backend: "onnxruntime"', (2,), [("m", "KIND_GPU", 1, [2])]),
        ('backend: "onnxruntime"', (5, 0, 3), [("m", "KIND_GPU", 1, [0, 3, 5])]),
        ('backend: "onnxruntime" instance_group { count: 2 }', (0, 2), [("m_0", "KIND_GPU", 2, [0, 2])]),
        (
            'backend: "onnxruntime" instance_group [{gpus: 1}, {gpus: [2, 0]}, {kind: KIND_GPU gpus: 1}]',
            (0, 2),
            [("m_0", "KIND_CPU", 2, [1]), ("m_1", "KIND_GPU", 1, [2, 0]), ("m_2", "KIND_GPU", 1, [1])],
        ),
        (
            'backend: "onnxruntime" instance_group [{kind: KIND_MODEL}, {kind: KIND_CPU}, {kind: KIND_GPU}]',
            (0, 1),
            [("m_0", "KIND_MODEL", 1, []), ("m_1", "KIND_CPU", 2, []), ("m_2", "KIND_GPU", 1, [0, 1])],
        ),
        ('backend: "python" instance_group { kind: KIND_GPU }', (), [("m_0", "KIND_GPU", 1, [])]),
    ],
)
def test_instance_groups(text: str, gpus: tuple[int, ...], expected: list[Group]) -> None:
    assert groups(text, gpus) == expected


def normalized(text: str) -> str:
    config = parse_text(text, "x")
    normalize(config)
    again = parse_text(str(config), "x")
    normalize(again)
    assert again == config, "normalising twice must change nothing"
    return str(config)


PINNED = "optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }"
LATEST = "version_policy { latest { num_versions: 1 } }"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", f"{LATEST} {PINNED}"),
        ("version_policy {}", f"version_policy {{}} {PINNED}"),
        ("version_policy { all {} }", f"version_policy {{ all {{}} }} {PINNED}"),
        ("optimization { input_pinned_memory { enable: false } }", f"{LATEST} {PINNED.replace('true', 'false', 1)}"),
        ("dynamic_batching {}", f"{LATEST} {PINNED} dynamic_batching {{}}"),
        ("max_batch_size: 4 dynamic_batching {}", f"{LATEST} {PINNED} max_batch_size: 4 dynamic_batching {{ preferred_batch_size: 4 }}"),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: 2 }",
            f"{LATEST} {PINNED} max_batch_size: 4 dynamic_batching {{ preferred_batch_size: 2 }}",
        ),
        ("sequence_batching {}", f"{LATEST} {PINNED} sequence_batching {{ max_sequence_idle_microseconds: 1000000 }}"),
        (
            "max_batch_size: 4 sequence_batching { max_sequence_idle_microseconds: 7 oldest {} }",
            f"{LATEST} {PINNED} max_batch_size: 4 "
            "sequence_batching { max_sequence_idle_microseconds: 7 oldest { preferred_batch_size: 4 } }",
        ),
        ("ensemble_scheduling {}", f"{LATEST} ensemble_scheduling {{}}"),
    ],
)
def test_defaults(text: str, expected: str) -> None:
    assert normalized(text) == str(parse_text(expected, "x"))
