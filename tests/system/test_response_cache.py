"""Answers that are kept, in real servers: in one process, and in a Redis that two servers share."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from .. import cached_models
from ..redis_server import needs_redis, redis_server
from ..servers import Server, finish, start_tensorfarm, tensorfarm, wait_until
from ..wire import compact, exchange, request_bytes


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cached_models.write(tmp_path_factory.mktemp("cached") / "models")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    flags = (
        "--cache-config=local,size=4194304",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--metrics-config=summary_latencies=true",
    )
    with tensorfarm(repository, *flags, folder=repository.parent / "run") as running:
        yield running


def ask(server: Server, model: str, values: Sequence[int], shape: Sequence[int] = (), **members: Any) -> dict[str, Any]:
    """The outputs of an inference, by name, as shape and values; of one that fails, its error."""
    tensor = {"name": "X", "datatype": "INT32", "shape": list(shape or (1, len(values))), "data": list(values)}
    reply = server.ask("POST", f"/v2/models/{model}/infer", {"inputs": [tensor], **members})
    if reply.status != 200:
        return {"error": reply.error}
    return {output["name"]: (output["shape"], output["data"]) for output in reply.json["outputs"]}


def run_of(server: Server, model: str, values: Sequence[int], **members: Any) -> int:
    """Which run of the model an answer comes from."""
    return int(ask(server, model, values, **members)["RUN"][1][0])


def counts(server: Server, model: str) -> dict[str, int]:
    """Of a model's statistics, the counts that a cache has to do with."""
    (entry,) = server.ask("GET", f"/v2/models/{model}/stats").json["model_stats"]
    found = {name: value["count"] for name, value in entry["inference_stats"].items()}
    names = ("success", "queue", "compute_infer", "cache_hit", "cache_miss")
    return {**{name: found[name] for name in names}, "inference": entry["inference_count"], "execution": entry["execution_count"]}


def change(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


HIT = {"success": 1, "queue": 1, "cache_hit": 1}
MISS = {"success": 1, "queue": 1, "compute_infer": 1, "cache_miss": 1, "inference": 1, "execution": 1}


@pytest.mark.parametrize("model", ["cached", "batched", "whole"])
def test_a_hit_and_a_miss(server: Server, model: str) -> None:
    first = counts(server, model)
    missed = ask(server, model, [5, 6], id="a")
    second = counts(server, model)
    assert change(first, second) == MISS
    assert ask(server, model, [5, 6], id="b") == missed
    assert missed["Y"] == ([1, 2], [10, 12])
    assert change(second, counts(server, model)) == HIT


def test_equal_bytes_are_not_enough(server: Server) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"shape": (2, 1)},
        {"parameters": {"a": 1}},
        {"parameters": {"a": "1"}},
        {"outputs": [{"name": "RUN"}]},
        {"outputs": [{"name": "RUN"}], "parameters": {"a": 1}},
    ]
    runs = [run_of(server, "cached", [7, 8], **kind) for kind in kinds]
    assert len(set(runs)) == len(kinds)
    assert [run_of(server, "cached", [7, 8], **kind) for kind in kinds] == runs
    assert ask(server, "cached", [7, 8], shape=(2, 1))["Y"] == ([2, 1], [14, 16])
    assert list(ask(server, "cached", [7, 8], outputs=[{"name": "RUN"}])) == ["RUN"]


def test_the_form_of_an_answer_does_not_matter(server: Server) -> None:
    run = run_of(server, "cached", [9, 9])
    assert run_of(server, "cached", [9, 9], outputs=[{"name": "RUN"}, {"name": "Y"}]) == run
    assert run_of(server, "cached", [9, 9], id="x", parameters={"timeout": 10_000_000, "priority": 1, "binary_data_output": False}) == run
    before = counts(server, "cached")
    tensor = {"name": "X", "datatype": "INT32", "shape": [1, 2], "data": [9, 9]}
    body = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    reply = server.ask("POST", "/v2/models/cached/infer", body)
    assert reply.status == 200
    assert reply.body.endswith(b"\x12\0\0\0\x12\0\0\0" + run.to_bytes(4, "little"))
    assert change(before, counts(server, "cached")) == HIT


def test_sequences_are_not_cached(server: Server) -> None:
    before = counts(server, "cached")
    one = run_of(server, "cached", [3, 1], parameters={"sequence_id": 4})
    assert run_of(server, "cached", [3, 1], parameters={"sequence_id": 4}) == one + 1
    assert "cache_miss" not in change(before, counts(server, "cached"))


def test_failures_are_not_cached(server: Server) -> None:
    assert ask(server, "cached", [-1]) == ask(server, "cached", [-1]) == {"error": "refused by the model"}


def test_steps_and_calls_use_the_cache_as_well(server: Server) -> None:
    run = run_of(server, "cached", [2, 2, 2])
    before = counts(server, "cached")
    assert run_of(server, "step", [2, 2, 2]) == run
    assert run_of(server, "asking", [2, 2, 2]) == run
    assert change(before, counts(server, "cached")) == {name: 2 for name in HIT}


def test_large_requests_and_answers(server: Server) -> None:
    large = list(range(100_000))
    one = ask(server, "cached", large)
    before = counts(server, "cached")
    assert ask(server, "cached", large) == one
    assert change(before, counts(server, "cached")) == HIT
    assert one["Y"] == ([1, 100_000], [2 * value for value in large])
    assert ask(server, "asking", large) == ask(server, "step", large) == one
    assert run_of(server, "cached", [*large[:-1], 0]) != one["RUN"][1][0]


def test_a_client_that_leaves_while_its_request_is_looked_up(server: Server) -> None:
    content = bytes(400_000) * 10
    tensor = {"name": "X", "datatype": "INT32", "shape": [1, 1_000_000], "parameters": {"binary_data_size": len(content)}}
    head = compact({"inputs": [tensor]})
    message = request_bytes("POST", "/v2/models/cached/infer", head + content, {"Inference-Header-Content-Length": str(len(head))})
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.http_port), 10) as connection:
            connection.sendall(message)
    assert ask(server, "cached", [1])["Y"] == ([1, 1], [2])
    wait_until(lambda: metric(server, 'nv_inference_pending_request_count{model="cached",version="1"}') == 0, "nothing to be pending")


def metric(server: Server, series: str) -> float:
    text = exchange(server.metrics_port, "GET", "/metrics").body.decode()
    (value,) = re.findall(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(value)


def test_the_metrics_page(server: Server) -> None:
    ask(server, "batched", [1, 2, 3])
    ask(server, "batched", [1, 2, 3])
    (entry,) = server.ask("GET", "/v2/models/batched/stats").json["model_stats"]
    text = exchange(server.metrics_port, "GET", "/metrics").body.decode()
    for which, series in (("cache_hit", "hit"), ("cache_miss", "miss")):
        plural = {"hit": "hits", "miss": "misses"}[series]
        told = entry["inference_stats"][which]
        assert metric(server, f'nv_cache_num_{plural}_per_model{{model="batched",version="1"}}') == told["count"] > 0
        assert metric(server, f'nv_cache_{series}_duration_per_model{{model="batched",version="1"}}') == told["ns"] // 1000
        assert metric(server, f'nv_cache_{series}_summary_per_model_count{{model="batched",version="1"}}') == told["count"]
    assert 0 < metric(server, "nv_cache_util") < 1
    assert metric(server, "nv_cache_num_entries") > 0
    of_request = re.findall(r'^nv_inference_request_summary_us_count\{model="(\w+)"', text, re.MULTILINE)
    assert set(of_request) == {"plain", "asking", "step"}  # a miss grows after it has been observed
    assert not re.search(r'nv_cache_\w+\{model="plain"', text)


def test_a_reload_with_other_files_has_other_answers(server: Server, repository: Path) -> None:
    path = repository / "cached" / "1" / "model.py"
    assert ask(server, "cached", [4, 4])["Y"] == ([1, 2], [8, 8])
    kept = ask(server, "whole", [4, 4])
    path.write_text(path.read_text().replace("FACTOR = 2", "FACTOR = 3"))
    assert server.ask("POST", "/v2/repository/models/cached/load").status == 200
    assert ask(server, "cached", [4, 4])["Y"] == ([1, 2], [12, 12])
    assert ask(server, "step", [4, 4])["Y"] == ([1, 2], [12, 12])
    assert ask(server, "whole", [4, 4]) == kept  # which asks another


@needs_redis
def test_servers_share_a_redis(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    first, second = (cached_models.write(tmp_path / name / "models") for name in ("one", "two"))
    for repository in (first, second):
        for path in list(repository.iterdir()):
            if path.name not in ("cached", "plain", "whole"):
                path.rename(tmp_path / f"{repository.parent.name}-{path.name}")
    with redis_server("--requirepass", "open sesame") as redis:
        flags = ("--cache-config=redis,host=127.0.0.1", f"--cache-config=redis,port={redis.port}", "--model-control-mode=explicit")
        secret = {"TRITONCACHE_REDIS_PASSWORD": "open sesame"}
        started = [
            start_tensorfarm(repository, *flags, "--load-model=*", folder=repository.parent / "run", environment=secret, wait=False)
            for repository in (first, second)
        ]
        try:
            one, two = started
            for server in started:
                server.wait_live()
            for model in ("cached", "whole"):
                run_of(two, model, [0])  # so that its count is another
                answer = ask(one, model, [5, 5])
                for server in started:
                    wait_until(lambda server=server, model=model: counts(server, model)["cache_miss"] == 1, "the answer to be kept")
                before = counts(two, model)
                assert ask(two, model, [5, 5]) == answer
                assert change(before, counts(two, model)) == HIT
            path = second / "plain" / "1" / "model.py"
            path.write_text(path.read_text().replace("FACTOR = 2", "FACTOR = 3"))
            assert two.ask("POST", "/v2/repository/models/plain/load").status == 200
            assert ask(two, "whole", [5, 5])["Y"] == ([1, 2], [15, 15])  # its member has other files
            redis.freeze()
            assert ask(two, "cached", [5, 5])["Y"] == ([1, 2], [10, 10])
            redis.stop()
            assert ask(one, "cached", [6, 6])["Y"] == ask(two, "cached", [6, 6])["Y"] == ([1, 2], [12, 12])
            assert "open sesame" not in one.log + two.log
            assert one.log.count("requests run without cached responses") == 1
        finally:
            for server in started:
                server.terminate() if server.process.poll() is None else server.kill()


def test_a_cache_that_there_is_not_ends_the_start(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    done = finish(start_tensorfarm(repository, "--cache-config=foo,a=b", folder=tmp_path / "run", wait=False), 60.0)
    assert done.code == 1
    assert (
        "error: creating server: Invalid argument - unable to find 'libtritoncache_foo.so' for cache. Searched: /opt/tritonserver/caches"
        in done.stderr
    )
