"""The tables printed at start."""

from __future__ import annotations

import pytest

from tensorfarm.server.command_line import parse
from tensorfarm.server.tables import agent_table, backend_table, grid, model_table, option_rows, option_table
from tensorfarm.workers.contract.backends import NATIVE, PYTHON
from tensorfarm.workers.worker import BACKENDS


def test_models() -> None:
    rows = [("a", "1", "READY"), ("b", "1", "UNAVAILABLE: Internal: something broke"), ("c", "", "")]
    assert (
        model_table(rows)
        == """\
+-------+---------+----------------------------------------+
| Model | Version | Status                                 |
+-------+---------+----------------------------------------+
| a     | 1       | READY                                  |
| b     | 1       | UNAVAILABLE: Internal: something broke |
| c     | -       | Not loaded: No model version was found |
+-------+---------+----------------------------------------+
"""
    )


def test_no_rows() -> None:
    assert agent_table([]) == (
        "+------------------+------+\n| Repository Agent | Path |\n+------------------+------+\n+------------------+------+\n"
    )


def test_backends_are_those_that_workers_have() -> None:
    assert list(BACKENDS) == [*NATIVE, PYTHON]


def test_backend_settings_are_json() -> None:
    table = backend_table([("onnxruntime", "p", {"a": "1", "b": 'x"é'}), ("none", "", {})])
    assert '| {"cmdline":{"a":"1","b":"x\\"é"}} |' in table
    assert "| none        |      | {}                               |" in table


@pytest.mark.parametrize(
    ("columns", "wanted", "widths"),
    [
        # Measured on the real server with terminals of these widths.
        (40, [32, 207], [16, 16]),
        (60, [32, 207], [26, 26]),
        (80, [32, 207], [32, 40]),
        (121, [32, 207], [32, 82]),
        (500, [32, 207], [32, 207]),
        (50, [36, 7, 300], [16, 7, 16]),
        (64, [36, 7, 300], [23, 7, 23]),
        (80, [36, 7, 300], [31, 7, 31]),
        (100, [36, 7, 300], [36, 7, 47]),
    ],
)
def test_columns_share_the_terminal_fairly(columns: int, wanted: list[int], widths: list[int]) -> None:
    table = grid(["x"] * len(wanted), [["y" * width for width in wanted]], columns)
    rule = table.split("\n", 1)[0]
    assert [len(dashes) - 2 for dashes in rule.strip("+").split("+")] == widths
    assert {len(line) for line in table.splitlines()} == {len(rule)}
    assert table.count("y") == sum(wanted)


def test_cells_of_several_lines_grow_the_row() -> None:
    assert grid(("A", "B"), [("x", "one\n\ntwo"), ("y", "")]) == (
        "+---+-----+\n| A | B   |\n+---+-----+\n| x | one |\n|   |     |\n|   | two |\n| y |     |\n+---+-----+\n"
    )


def test_a_terminal_too_narrow_for_anything_still_gets_a_table() -> None:
    assert grid(("A", "B"), [("xyz", "uv")], 3).count("|\n") == 4


def test_control_characters_are_shown_not_sent() -> None:
    table = grid(("A",), [("\x1b[31m\r\x9b",)])
    assert "| \\u001B[31m\\u000D\\u009B |" in table


def test_option_rows() -> None:
    options = parse(
        [
            "--model-repository=/b",
            "--model-repository=/a",
            "--model-control-mode=explicit",
            "--load-model=m",
            "--rate-limit=execution_count",
            "--rate-limit-resource=R1:10",
            "--cuda-memory-pool-byte-size=3:5",
            "--cuda-memory-pool-byte-size=0:7",
            "--exit-timeout-secs=7",
            "--disable-auto-complete-config",
            "--cache-config=local,size=1000000",
        ],
        {},
    )
    rows = option_rows(options, "2.51.0", ["statistics", "logging"])
    assert rows == [
        ("server_id", "triton"),
        ("server_version", "2.51.0"),
        ("server_extensions", "statistics logging"),
        ("model_repository_path[0]", "/a"),
        ("model_repository_path[1]", "/b"),
        ("model_control_mode", "MODE_EXPLICIT"),
        ("startup_models_0", "m"),
        ("strict_model_config", "1"),
        ("model_config_name", ""),
        ("rate_limit", "EXEC_COUNT"),
        ("rate_limit_resource[0]", '{"name":"R1", "count":10 "device":-1}'),
        ("pinned_memory_pool_byte_size", "268435456"),
        ("cuda_memory_pool_byte_size{0}", "7"),
        ("cuda_memory_pool_byte_size{3}", "5"),
        ("min_supported_compute_capability", "6.0"),
        ("strict_readiness", "1"),
        ("exit_timeout", "7"),
        ("cache_enabled", "1"),
    ]
    assert option_table(rows).startswith("+-----")
