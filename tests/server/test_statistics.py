from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.statistics import FailureReason, LatencySummaries, StatisticsBook, VersionStatistics


@dataclass(slots=True)
class Times:
    compute_start_ns: int
    input_end_ns: int
    output_start_ns: int
    compute_end_ns: int


@dataclass(slots=True)
class Request:
    start_ns: int
    queued_ns: int


ZERO = {"count": 0, "ns": 0}


def test_fresh_statistics_in_the_protocols_member_order() -> None:
    entry = VersionStatistics().as_json("dec", 1)
    assert json.dumps(entry, separators=(",", ":")) == (
        '{"name":"dec","version":"1","last_inference":0,"inference_count":0,"execution_count":0,'
        '"inference_stats":{"success":{"count":0,"ns":0},"fail":{"count":0,"ns":0},"queue":{"count":0,"ns":0},'
        '"compute_input":{"count":0,"ns":0},"compute_infer":{"count":0,"ns":0},"compute_output":{"count":0,"ns":0},'
        '"cache_hit":{"count":0,"ns":0},"cache_miss":{"count":0,"ns":0}},'
        '"response_stats":{},"batch_stats":[],"memory_usage":[]}'
    )


def test_a_batch_of_two_requests_adds_its_durations_to_each() -> None:
    statistics = VersionStatistics()
    requests = [Request(start_ns=100, queued_ns=150), Request(start_ns=120, queued_ns=160)]
    statistics.batch_done(Times(1000, 1010, 1110, 1140), 3, requests, 3, end_ns=1200, now_ms=77)
    assert statistics.as_json("m", 2) == {
        "name": "m",
        "version": "2",
        "last_inference": 77,
        "inference_count": 3,
        "execution_count": 1,
        "inference_stats": {
            "success": {"count": 2, "ns": 1100 + 1080},
            "fail": ZERO,
            "queue": {"count": 2, "ns": 850 + 840},
            "compute_input": {"count": 2, "ns": 20},
            "compute_infer": {"count": 2, "ns": 200},
            "compute_output": {"count": 2, "ns": 60},
            "cache_hit": ZERO,
            "cache_miss": ZERO,
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": 3,
                "compute_input": {"count": 1, "ns": 10},
                "compute_infer": {"count": 1, "ns": 100},
                "compute_output": {"count": 1, "ns": 30},
            }
        ],
        "memory_usage": [],
    }


def test_an_execution_counts_where_all_its_requests_failed() -> None:
    """As the reference server does when a model raises: the batch shows, inferences do not."""
    statistics = VersionStatistics()
    statistics.batch_done(Times(10, 20, 30, 40), 3, [], 0, end_ns=50, now_ms=5)
    statistics.request_failed(FailureReason.BACKEND, 1, 50)
    statistics.request_failed(FailureReason.BACKEND, 2, 50)
    entry = statistics.as_json("m", 1)
    assert (entry["execution_count"], entry["inference_count"], entry["last_inference"]) == (1, 0, 5)
    assert entry["batch_stats"][0]["compute_infer"] == {"count": 1, "ns": 10}
    assert entry["inference_stats"]["fail"] == {"count": 2, "ns": 97}
    assert all(entry["inference_stats"][member] == ZERO for member in ("success", "queue", "compute_input"))
    assert statistics.failures == [0, 0, 2, 0]


@dataclass(slots=True)
class Sample:
    batch_size: int
    execution_count: int
    input_ns: int
    infer_ns: int
    output_ns: int


def test_warm_up_counts_as_inference_that_did_not_wait() -> None:
    statistics = VersionStatistics()
    statistics.warmed_up(Sample(1, 1, 10, 100, 20), 5)
    statistics.warmed_up(Sample(3, 2, 30, 300, 60), 6)
    entry = statistics.as_json("m", 1)
    assert (entry["inference_count"], entry["execution_count"], entry["last_inference"]) == (7, 3, 6)
    counted = entry["inference_stats"]
    assert counted["success"] == {"count": 7, "ns": 130 + 3 * 390} and counted["queue"] == {"count": 7, "ns": 0}
    assert counted["compute_infer"] == {"count": 7, "ns": 100 + 3 * 300} and counted["fail"]["count"] == 0
    assert [(row["batch_size"], row["compute_infer"]) for row in entry["batch_stats"]] == [
        (1, {"count": 1, "ns": 100}),
        (3, {"count": 2, "ns": 300}),
    ]


def test_batch_sizes_ascend() -> None:
    statistics = VersionStatistics()
    for size in (8, 1, 4, 1):
        statistics.batch_done(Times(0, 1, 2, 3), size, [Request(0, 0)], size, 4, 1)
    rows = statistics.as_json("m", 1)["batch_stats"]
    assert [(row["batch_size"], row["compute_input"]["count"]) for row in rows] == [(1, 2), (4, 1), (8, 1)]


def test_cache_hits_are_no_computations() -> None:
    statistics = VersionStatistics(success_count=5, cache_hit_count=2, cache_hit_ns=30)
    inference = statistics.as_json("m", 1)["inference_stats"]
    assert inference["queue"]["count"] == 5
    assert inference["compute_infer"]["count"] == 3
    assert inference["cache_hit"] == {"count": 2, "ns": 30}


def test_hits_and_misses() -> None:
    statistics = VersionStatistics(summaries=LatencySummaries())
    statistics.cache_hit(100, 130, 150, 190)
    statistics.cache_missed(5_000, 9_000)
    found = {name: value for name, value in statistics.as_json("m", 1)["inference_stats"].items() if value["count"] or value["ns"]}
    assert found == {
        "success": {"count": 1, "ns": 90 + 5_000},
        "queue": {"count": 1, "ns": 20},
        "cache_hit": {"count": 1, "ns": 40},
        "cache_miss": {"count": 1, "ns": 5_000},
    }
    assert statistics.summaries is not None
    assert [statistics.summaries.cache_hit.count, statistics.summaries.cache_miss.count, statistics.summaries.queue.count] == [1, 1, 1]
    assert (statistics.summaries.cache_miss.sum, statistics.summaries.request.count) == (5, 0)


@pytest.mark.parametrize("reason", FailureReason)
def test_each_reason_has_its_own_count(reason: FailureReason) -> None:
    statistics = VersionStatistics()
    statistics.request_failed(reason, 10, 25)
    assert statistics.failures == [int(other is reason) for other in FailureReason]
    assert (statistics.fail_count, statistics.fail_ns) == (1, 15)


def test_failures_survive_a_reload_and_nothing_else_does() -> None:
    book = StatisticsBook()
    first = book.open("m", 1, {"team": "vision"})
    first.request_failed(FailureReason.REJECTED, 0, 9)
    again = book.open("m", 1, {"team": "vision"})
    assert again.failures[FailureReason.REJECTED] == 1
    assert (again.fail_count, again.fail_ns) == (0, 0)
    again.request_failed(FailureReason.REJECTED, 0, 9)
    assert first.failures is again.failures
    assert book.open("m", 1).failures == [0, 0, 0, 0], "other tags are another series"
    assert book.open("m", 2, {"team": "vision"}).failures == [0, 0, 0, 0]


def test_labels_are_sorted_and_tags_marked() -> None:
    labels = StatisticsBook().open("tagged", 1, {"team": "vision", "a": "x"}).labels
    assert list(labels.items()) == [("_a", "x"), ("_team", "vision"), ("model", "tagged"), ("version", "1")]


def test_distributions_are_kept_only_where_asked_for() -> None:
    off = StatisticsBook().open("m", 1, decoupled=True)
    off.first_response_sent(0, 10**9)
    assert off.summaries is None and off.first_response is None
    book = StatisticsBook(summaries=True, histograms=True)
    assert book.open("m", 1).first_response is None, "only decoupled models have a first response of its own"
    version = book.open("m", 1, decoupled=True, first_response_bounds_ms=[1, 2.5])
    version.first_response_sent(0, 2_000_000)
    assert version.first_response is not None and version.first_response.cumulative() == [0, 1]
    version.batch_done(Times(9_000, 10_000, 30_000, 33_000), 1, [Request(1000, 2000)], 1, 40_000, 1)
    assert version.summaries is not None
    totals = [getattr(version.summaries, name).sum for name in ("request", "queue", "compute_input", "compute_infer", "compute_output")]
    assert totals == [39, 7, 1, 20, 3]


durations = st.integers(0, 10**9)
requests = st.tuples(durations, durations, st.integers(1, 4), st.booleans())
batches = st.tuples(durations, durations, durations, durations, st.lists(requests, min_size=1, max_size=6))


@given(st.lists(batches, max_size=12), st.booleans())
def test_batches_count_as_the_sum_of_their_requests(
    history: list[tuple[int, int, int, int, list[tuple[int, int, int, bool]]]], by_request: bool
) -> None:
    """One call for a batch, and one call for each request, both equal a count made request by request."""
    book = StatisticsBook(summaries=True)
    statistics = book.open("m", 1)
    expected = dict.fromkeys(("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"), (0, 0))

    def expect(member: str, ns: int) -> None:
        count, total = expected[member]
        expected[member] = (count + 1, total + ns)

    now_ns = inferences = executions = 0
    sizes: dict[int, int] = {}
    before = statistics.as_json("m", 1)
    for input_ns, infer_ns, output_ns, tail_ns, members in history:
        start_ns = now_ns
        compute_start_ns = now_ns + max(before_ns + queue_ns for before_ns, queue_ns, _, _ in members)
        times = Times(compute_start_ns, compute_start_ns + input_ns, compute_start_ns + input_ns + infer_ns, 0)
        times.compute_end_ns = times.output_start_ns + output_ns
        now_ns = times.compute_end_ns + tail_ns
        batch_size = sum(size for _, _, size, _ in members)
        executions += 1
        sizes[batch_size] = sizes.get(batch_size, 0) + 1
        good = []
        for before_ns, _, size, fails in members:
            queued_ns = start_ns + before_ns
            if fails:
                statistics.request_failed(FailureReason.BACKEND, start_ns, now_ns)
                expect("fail", now_ns - start_ns)
                continue
            good.append(Request(start_ns, queued_ns))
            inferences += size
            expect("success", now_ns - start_ns)
            expect("queue", compute_start_ns - queued_ns)
            expect("compute_input", input_ns)
            expect("compute_infer", infer_ns)
            expect("compute_output", output_ns)
        if by_request:
            statistics.execution_done(batch_size, input_ns, infer_ns, output_ns, now_ms=executions)
            for request, size in zip(good, [size for _, _, size, fails in members if not fails], strict=True):
                queue_ns = compute_start_ns - request.queued_ns
                statistics.request_succeeded(request.start_ns, now_ns, size, queue_ns, input_ns, infer_ns, output_ns)
        else:
            good_size = sum(size for _, _, size, fails in members if not fails)
            statistics.batch_done(times, batch_size, good, good_size, now_ns, now_ms=executions)
        after = statistics.as_json("m", 1)
        for member, duration in after["inference_stats"].items():
            assert duration["count"] >= before["inference_stats"][member]["count"]
            assert duration["ns"] >= before["inference_stats"][member]["ns"]
        before = after

    inference = before["inference_stats"]
    assert {member: (inference[member]["count"], inference[member]["ns"]) for member in expected} == expected
    assert inference["queue"]["count"] == inference["success"]["count"] == inference["compute_infer"]["count"]
    assert (before["inference_count"], before["execution_count"], before["last_inference"]) == (inferences, executions, executions)
    assert {row["batch_size"]: row["compute_infer"]["count"] for row in before["batch_stats"]} == sizes
    assert sum(statistics.failures) == inference["fail"]["count"]
    assert statistics.summaries is not None
    assert statistics.summaries.request.count == statistics.summaries.compute_output.count == inference["success"]["count"]


def test_what_becomes_known_after_a_request_was_counted() -> None:
    statistics = VersionStatistics()
    statistics.execution_done(2, 1, 10, 100, now_ms=7)
    statistics.request_succeeded(0, 500, 2, 3, 1, 10, 100)
    statistics.execution_prolonged(2, Times(0, 1000, 3000, 6000))
    entry = statistics.as_json("m", 1)
    assert entry["execution_count"] == entry["inference_stats"]["success"]["count"] == 1
    assert [entry["inference_stats"][name]["ns"] for name in ("compute_input", "compute_infer", "compute_output")] == [1001, 2010, 3100]
    (row,) = entry["batch_stats"]
    assert [row[name] for name in ("compute_input", "compute_infer", "compute_output")] == [
        {"count": 1, "ns": ns} for ns in (1001, 2010, 3100)
    ]


def _chain(statistics: VersionStatistics) -> list[VersionStatistics]:
    return [statistics] if statistics.earlier is None else [statistics, *_chain(statistics.earlier)]


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_a_load_goes_on_where_many_others_ended_each_still_busy_for_a_while(overlap: int) -> None:
    """As many as ``overlap`` loads are still busy when the next one comes."""
    loads = [VersionStatistics()]
    for count in range(1, 3000):
        loads[-1].success_count += count
        new = VersionStatistics()
        new.follow(loads[-1])
        loads.append(new)
        if count >= overlap:
            loads[count - overlap].closed = True
        assert len(_chain(new)) <= 2 * overlap + 3
    total = loads[-1].total()
    assert total.success_count == sum(range(1, 3000)) and loads[-1].success_count == 0
    assert total.success_count == loads[-1].total().success_count, "asking changes nothing"


@given(st.data())
def test_totals_are_those_of_all_loads_in_whatever_order_they_end(data: st.DataObject) -> None:
    loads = [VersionStatistics()]
    expected = [0, 0]
    for _ in range(data.draw(st.integers(0, 30))):
        step = data.draw(st.sampled_from(["count", "reload", "close"]))
        busy = [load for load in loads if not load.closed]
        if step == "count":
            load = busy[data.draw(st.integers(0, len(busy) - 1))]
            load.success_count += 1
            load.queue_ns += 7
            expected = [expected[0] + 1, expected[1] + 7]
        elif step == "reload":
            new = VersionStatistics()
            new.follow(loads[-1])
            loads.append(new)
        elif len(busy) > 1:
            busy[data.draw(st.integers(0, len(busy) - 2))].closed = True
        total = loads[-1].total()
        assert [total.success_count, total.queue_ns] == expected
    new = VersionStatistics()
    new.follow(loads[-1])
    assert len(_chain(new)) <= 2 + sum(not load.closed for load in loads)


def test_distributions_are_handed_on() -> None:
    book = StatisticsBook(summaries=True, histograms=True)
    old, new = (book.open("m", 1, decoupled=True) for _ in range(2))
    old.first_response_sent(0, 50_000_000)
    new.follow(old)
    assert new.first_response is old.first_response and new.summaries is old.summaries
    assert new.total().first_response is old.first_response and new.failures is old.failures
