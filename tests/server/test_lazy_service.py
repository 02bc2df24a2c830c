"""Lazy loading from the service down to the farm's door: real files, lifecycle, dispatch and core; the workers are simulated."""

from __future__ import annotations

import asyncio
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tensorfarm.server.repository.demand import NotResident
from tensorfarm.workers.contract.status import Code, StatusError, internal

from ..model_repository import PLAIN, Flavour, write_model, write_model_file
from .lazy_bench import SECOND_NS, Bench, Client, run, write_chain, write_models

ABSENT = "UNAVAILABLE loads at its first request"


def message(client: Client) -> str:
    assert client.error is not None
    assert client.error.code is Code.UNAVAILABLE
    return client.error.message


def test_nothing_is_loaded_before_somebody_asks(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        service = bench.service
        assert await bench.reasons() == {"a": ABSENT, "b": ABSENT}
        assert service.ready() and await service.asked_ready()
        assert service.version_ready("a") and await service.asked_version_ready("a", "1")
        assert not service.version_ready("a", "7"), "as far as is known there is no such version"
        with pytest.raises(StatusError, match="unknown model: 'c' is not found") as error:
            service.version_ready("c")
        assert error.value.code is Code.NOT_FOUND
        with pytest.raises(StatusError, match="unknown model: 'c' is not found") as error:
            service.find("c")
        assert error.value.code is Code.NOT_FOUND and not isinstance(error.value, NotResident)
        for find in (lambda: service.find("a"), lambda: service.find("a", "1"), lambda: service.find_number("b", -1)):
            with pytest.raises(NotResident) as absent:
                find()
            assert absent.value.code is Code.UNAVAILABLE
        await bench.turns()
        assert not bench.farm.loads and service.versions() == []
        with pytest.raises(StatusError, match="explicit model load / unload is not allowed") as error:
            await service.load("a", {})
        assert error.value.code is Code.UNAVAILABLE

    run(write_models(tmp_path, "a", "b"), script)


def test_all_that_ask_while_a_model_loads_are_answered_by_one_load(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        clients = [Client(bench, "a") for _ in range(3)]
        await bench.until(lambda: "a" in bench.farm.loading, "the load")
        assert await bench.reasons() == {"a": "LOADING"}
        assert bench.service.version_ready("a")
        await bench.end_load("a")
        await bench.answer()
        assert all(client.responses and client.told == 1 for client in clients)
        assert await bench.reasons() == {"a": "READY"}
        assert bench.models.figures() == (1, 1, 0)
        assert Client(bench, "a").awaited is None, "it is there now"

    run(write_models(tmp_path, "a"), script)


def test_the_least_recently_used_leaves_and_comes_back(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        await bench.load("a", "b", "a", "c")
        assert bench.resident == ["a", "c"] and bench.farm.most == 2
        assert (await bench.reasons())["b"] == ABSENT
        await bench.load("b")
        assert bench.resident == ["c", "b"]
        assert bench.models.figures() == (2, 4, 2) and bench.farm.most == 2
        assert sorted(bench.farm.held.values()) == ["b", "c"]

    run(write_models(tmp_path, "a", "b", "c"), script, "--lazy-model-count=2")


def test_a_busy_model_stays_until_it_is_idle(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        await bench.load("a")
        first = Client(bench, "a")
        await bench.turns()
        assert len(bench.sent) == 1, "its request runs"
        other = Client(bench, "b")
        late = Client(bench, "a")
        await bench.turns()
        assert late.awaited is not None and not late.told, "it queues up behind the one that waits for room"
        assert bench.resident == ["a"] and not bench.farm.loading
        await bench.answer()
        assert first.responses
        await bench.end_load("b")
        await bench.answer()
        assert other.responses
        await bench.end_load("a")
        await bench.answer()
        assert late.responses and bench.farm.most == 1

    run(write_models(tmp_path, "a", "b"), script, "--lazy-model-count=1")


def test_a_failure_is_told_remembered_and_tried_again(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        clients = [Client(bench, "a"), Client(bench, "a")]
        await bench.end_load("a", internal("the worker has no memory"))
        for client in clients:
            assert message(client).startswith("model 'a' could not be loaded: ") and "the worker has no memory" in message(client)
        assert bench.resident == [] and not bench.service.version_ready("a")
        assert await bench.reasons() == {"a": "UNAVAILABLE Internal: the worker has no memory"}
        again = Client(bench, "a")
        assert "the worker has no memory" in message(again) and not bench.farm.loading, "told at once"
        bench.now_ns += 2 * SECOND_NS
        assert bench.service.version_ready("a")
        client = Client(bench, "a")
        await bench.end_load("a")
        await bench.answer()
        assert client.responses and await bench.reasons() == {"a": "READY"}

    run(write_models(tmp_path, "a"), script)


def test_whoever_goes_away_is_told_nothing(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        await bench.load("a")
        running = Client(bench, "a")
        await bench.turns()
        gone = Client(bench, "b")
        assert gone.awaited is not None
        gone.awaited.cancel()
        await bench.answer()
        assert running.responses and not gone.told
        assert bench.resident == ["a"], "nobody wants the other any more"
        leaving = Client(bench, "b")
        await bench.until(lambda: "b" in bench.farm.loading, "the load")
        assert leaving.awaited is not None
        leaving.awaited.cancel()
        await bench.end_load("b")
        assert not leaving.told and bench.resident == ["b"], "a load that has begun ends"

    run(write_models(tmp_path, "a", "b"), script, "--lazy-model-count=1")


def test_an_ensemble_comes_with_its_members_and_leaves_before_them(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        client = Client(bench, "chain")
        await bench.end_load("a")
        assert not client.told
        await bench.end_load("b")
        await bench.until(lambda: client.told, "the ensemble")
        await bench.answer()
        assert client.responses and client.error is None
        assert sorted(bench.resident) == ["a", "b", "chain"]
        second = Client(bench, "c")
        await bench.until(lambda: "c" in bench.farm.loading, "the next")
        assert "chain" not in bench.resident and {"a", "b"} <= set(bench.resident)
        await bench.end_load("c")
        await bench.answer()
        assert second.responses
        assert (await bench.reasons())["chain"] == ABSENT

    write_chain(tmp_path, "chain", "a", "b")
    run(write_models(tmp_path, "a", "b", "c"), script, "--lazy-model-count=3")


def test_what_can_never_fit_is_refused_at_once(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        client = Client(bench, "chain")
        assert "it is 3 models, and --lazy-model-count allows 2; raise it to 3 at least" in message(client)
        assert bench.resident == []
        await bench.load("a", "b")

    write_chain(tmp_path, "chain", "a", "b")
    run(write_models(tmp_path, "a", "b"), script, "--lazy-model-count=2")


def test_an_ensemble_that_was_changed_on_disk_gets_its_new_members(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        shutil.rmtree(tmp_path / "chain")
        write_chain(tmp_path, "chain", "a", "new")
        write_models(tmp_path, "new")
        client = Client(bench, "chain")
        await bench.end_load("a")
        await bench.end_load("new")
        await bench.until(lambda: client.told, "the ensemble")
        await bench.answer()
        assert client.error is None and client.responses and client.told == 1
        assert sorted(bench.resident) == ["a", "chain", "new"], "b was not wanted"

    write_chain(tmp_path, "chain", "a")
    run(write_models(tmp_path, "a", "b"), script, "--lazy-model-count=3")


def test_a_change_that_nobody_waits_for_is_no_failure(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        shutil.rmtree(tmp_path / "chain")
        write_chain(tmp_path, "chain", "a", "b")
        gone = Client(bench, "chain")
        await bench.until(lambda: "a" in bench.farm.loading, "the load")
        assert gone.awaited is not None
        gone.awaited.cancel()
        await bench.end_load("a")
        await bench.until(lambda: bench.resident == ["a"], "the ensemble to be given up")
        client = Client(bench, "chain")
        await bench.end_load("b")
        await bench.until(lambda: client.told, "the ensemble")
        assert client.error is None and not gone.told

    write_chain(tmp_path, "chain", "a")
    run(write_models(tmp_path, "a", "b"), script)


def test_changes_on_disk_are_taken_over_when_a_model_loads_again(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        await bench.load("a")
        (tmp_path / "a" / "3").mkdir()
        write_model_file(tmp_path / "a" / "3", PLAIN, Flavour.ONNX, 3)
        assert bench.service.find("a").version == 1
        with pytest.raises(StatusError, match="version 3 is not found"):
            bench.service.find("a", "3")
        await bench.load("b", "a")
        assert bench.service.find("a").version == 3
        assert [(entry.name, entry.version) for entry in await bench.service.index(True)] == [("a", "3")]
        await bench.load("b")
        shutil.rmtree(tmp_path / "a" / "3")
        await bench.load("a")
        assert bench.service.find("a").version == 1

    run(write_models(tmp_path, "a", "b"), script, "--lazy-model-count=1")


def test_counters_go_on_when_a_model_comes_back(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        await bench.load("a", "a", "b", "a", "b", "a")
        (served,) = bench.service.versions()
        assert served.statistics.success_count == 1 and served.statistics.total().success_count == 4
        assert served.statistics.earlier is not None and served.statistics.earlier.earlier is None, "no chain grows"

    run(write_models(tmp_path, "a", "b"), script, "--lazy-model-count=1")


def test_a_model_that_waits_for_a_model_which_waits_for_it_to_leave_is_refused(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        await bench.load("a")
        caller = Client(bench, "a")
        await bench.turns()
        call = Client(bench, "b", caller="a")
        assert "it would wait for models that wait for it to leave; raise --lazy-model-count" in message(call)
        await bench.answer()
        assert caller.responses
        idle = Client(bench, "b", caller="a")
        await bench.end_load("b")
        assert not idle.error, "whoever makes no request holds nothing"

    run(write_models(tmp_path, "a", "b"), script, "--lazy-model-count=1")


def test_what_waits_for_the_caller_cannot_leave_either(tmp_path: Path) -> None:
    """a asks an ensemble, whose member asks b: none of the three can go before b has answered."""

    async def script(bench: Bench) -> None:
        await bench.load("a")
        worker = next(iter(bench.service.find("a").workers))
        whole = Client(bench, "chain")
        await bench.end_load("member")
        await bench.until(lambda: whole.told, "the ensemble")
        Client(bench, "a")
        await bench.turns()
        bench.calling = {"chain": {worker}}
        assert bench.models._callers("chain") >= {"a"} and bench.models._callers("member") == {"chain"}
        call = Client(bench, "b", caller="member")
        assert "raise --lazy-model-count" in message(call)

    write_chain(tmp_path, "chain", "member")
    run(write_models(tmp_path, "a", "b", "member"), script, "--lazy-model-count=3")


def test_a_broken_model_is_told_of_at_start_and_works_once_it_is_mended(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        reasons = await bench.reasons()
        assert "expected" in reasons["broken"].lower() or "parse" in reasons["broken"].lower() or "failed" in reasons["broken"].lower()
        assert "models that are not available or ambiguous: broken" in reasons["whole"] and reasons["a"] == ABSENT
        assert not bench.service.version_ready("a", "9")
        with pytest.raises(StatusError):
            bench.service.version_ready("nowhere")
        client = Client(bench, "broken")
        await bench.until(lambda: client.told, "the refusal")
        assert message(client).startswith("model 'broken' could not be loaded: ") and str(tmp_path) not in message(client)
        shutil.rmtree(tmp_path / "broken")
        write_models(tmp_path, "broken")
        bench.now_ns += 2 * SECOND_NS
        await bench.load("broken")
        whole = Client(bench, "whole")
        await bench.until(lambda: whole.told, "the ensemble")
        await bench.answer()
        assert whole.responses

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.pbtxt").write_text("this is no configuration {")
    write_chain(tmp_path, "whole", "broken")
    run(write_models(tmp_path, "a"), script)


def test_a_start_with_broken_models_says_so(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        assert await bench.models.start() is None
        write_model(tmp_path, replace(PLAIN, name="broken"), Flavour.ONNX, "max_batch_size: -1")
        failure = await bench.models.start()
        assert failure is not None and failure.message == "failed to load all models"

    run(write_models(tmp_path, "a"), script)


def test_the_end_of_the_server_is_told_to_all_that_wait(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        await bench.load("a")
        Client(bench, "a")
        await bench.turns()
        waiting = [Client(bench, "b"), Client(bench, "c")]
        await bench.models.end_operations()
        for client in (*waiting, Client(bench, "b")):
            assert "Server is stopping" in message(client)
        await bench.answer()
        assert not bench.farm.loading and list(bench.farm.held.values()) == ["a"], "nothing loads or leaves any more"

    run(write_models(tmp_path, "a", "b", "c"), script, "--lazy-model-count=1")


def test_a_load_that_the_end_of_the_server_breaks_off(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        client = Client(bench, "a")
        await bench.until(lambda: "a" in bench.farm.loading, "the load")
        await bench.models.end_operations()
        assert "Server is stopping" in message(client) and not bench.farm.loading

    run(write_models(tmp_path, "a"), script)


@pytest.mark.parametrize(("budget", "left"), [(250, ["b", "c"]), (299, ["b", "c"]), (300, ["a", "b", "c"])])
def test_models_leave_when_the_workers_use_too_much(tmp_path: Path, budget: int, left: list[str]) -> None:
    """Each takes 100 bytes: by its files before it was first loaded, then as it was measured."""
    for path in write_models(tmp_path, "a", "b", "c").glob("*/1/model.onnx"):
        path.write_bytes(bytes(100))

    async def script(bench: Bench) -> None:
        bench.farm.byte_sizes = dict.fromkeys("abc", 100)
        await bench.load("a", "b", "c")
        assert sorted(bench.resident) == left

    run(tmp_path, script, f"--lazy-memory-byte-size={budget}")


def test_a_model_larger_than_the_budget_is_loaded_by_itself(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        warnings: list[str] = []
        bench.models._log.warning = warnings.append  # type: ignore[method-assign]
        bench.farm.byte_sizes = {"a": 10, "b": 10_000_000}
        await bench.load("a", "b")
        assert bench.resident == ["a", "b"] and not warnings, "its files did not say so"
        await bench.load("c")
        assert bench.resident == ["c"], "they left one after the other, until there was enough"
        await bench.load("b")
        assert bench.resident == ["b"] and len(warnings) == 1
        assert "model 'b' is loaded with no other beside it: with it the workers use about 10000000 bytes" in warnings[0]

    run(write_models(tmp_path, "a", "b", "c"), script, "--lazy-memory-byte-size=1000000")


def test_metadata_of_what_is_not_there(tmp_path: Path) -> None:
    """Whoever only waits for a model, and asks nothing of it, leaves it idle."""

    async def script(bench: Bench) -> None:
        told: list[Any] = []
        with pytest.raises(NotResident) as absent:
            bench.service.find("a")
        bench.service.bring(absent.value, lambda error: told.append(bench.service.find("a").name if error is None else error))
        await bench.end_load("a")
        assert told == ["a"]
        await bench.load("b")
        assert bench.resident == ["b"]

    run(write_models(tmp_path, "a", "b"), script, "--lazy-model-count=1")


ISOLATED = 'parameters { key: "isolate" value { string_value: "true" } }'
MODELS = "abcde"
ASKED = {"pair": "de", "whole": "cde"}
"""What ensembles run; ``whole`` runs ``pair``."""


class Storm:
    """Clients, calls of models, failures and people who leave, at random; models call only those behind them."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.random = random.Random(seed)  # noqa: S311  # a repeatable one
        self.clients: list[Client] = []
        self.gone: set[Client] = set()
        self.calls: dict[int, tuple[str, Client]] = {}

    def step(self) -> None:
        bench, random = self.bench, self.random
        match random.choice(("ask", "ask", "ask", "call", "load", "load", "load", "answer", "answer", "go", "wait")):
            case "ask":
                self.clients.append(Client(bench, random.choice([*MODELS, *ASKED])))
            case "call":
                self.call()
            case "load" if bench.farm.loading:
                self.end_load(random.choice(list(bench.farm.loading)), random.random() < 0.15)
            case "answer":
                self.answer()
            case "go":
                waiting = [client for client in self.clients if client not in self.gone and not client.told and client.awaited]
                if waiting:
                    client = random.choice(waiting)
                    assert client.awaited is not None
                    client.awaited.cancel()
                    self.gone.add(client)
            case "wait":
                bench.now_ns += SECOND_NS

    def call(self) -> None:
        """A model that runs a batch asks another one, and waits for it."""
        callers = [batch for batch in self.bench.sent if batch.number not in self.calls]
        if callers:
            batch = self.random.choice(callers)
            (caller,) = {served.name for served in self.bench.generations.all() if served.scheduler is batch.scheduler}
            behind = [name for name in (*MODELS, *ASKED) if min(ASKED.get(name, name)) > caller]
            if behind:
                self.calls[batch.number] = (name := self.random.choice(behind), Client(self.bench, name, caller))
                self.bench.calling.setdefault(name, set()).add(f"{caller}:1@cpu")
                self.clients.append(self.calls[batch.number][1])

    def end_load(self, name: str, broken: bool) -> None:
        gate = self.bench.farm.loading[name]
        if not gate.done():
            if broken:
                gate.set_exception(internal("broken"))
            else:
                gate.set_result(None)

    def answer(self) -> bool:
        """A worker answers a batch that waits for nothing; False where there is none."""
        bench = self.bench
        for number in [number for number, (_, client) in self.calls.items() if client.answered or client in self.gone]:
            del self.calls[number]
        bench.calling.clear()
        for batch in bench.sent:
            if batch.number in self.calls:
                (caller,) = {served.name for served in bench.generations.all() if served.scheduler is batch.scheduler}
                bench.calling.setdefault(self.calls[batch.number][0], set()).add(f"{caller}:1@cpu")
        free = [batch for batch in bench.sent if batch.number not in self.calls]
        if not free:
            return False
        bench.answer_one(self.random.choice(free))
        return True

    async def settle(self) -> None:
        """Let all loads and batches end; whoever still waits then would wait for ever."""

        def over() -> bool:
            while self.answer():
                pass
            for name in list(self.bench.farm.loading):
                self.end_load(name, False)
            return all(client.answered for client in self.clients if client not in self.gone)

        await self.bench.until(over, "all to be answered")
        await self.bench.until(lambda: not self.bench.sent and not self.bench.farm.loading and self.answer() is False, "quiet")


@pytest.mark.parametrize("seed", range(12))
def test_everybody_is_answered_whatever_happens(tmp_path: Path, seed: int) -> None:
    count = 4 + seed % 2

    async def script(bench: Bench) -> None:
        storm = Storm(bench, seed)
        for _ in range(250):
            storm.step()
            await bench.turns(storm.random.choice((0, 1, 3, 8)))
            if storm.random.random() < 0.2:
                # Files are read in threads meanwhile.
                await asyncio.sleep(0.001)
            assert len(bench.resident) <= count
        await storm.settle()
        for client in storm.clients:
            if client.error is not None:
                assert client.error.code is Code.UNAVAILABLE
                assert any(part in client.error.message for part in ("broken", "could not be loaded", "--lazy-model-count")), client.error
            assert client.told <= 1 and (client in storm.gone or len(client.responses) + (client.error is not None) == 1)
        assert bench.models.residency.waiting == 0 and bench.farm.most <= count
        await bench.until(lambda: set(bench.farm.held.values()) <= set(bench.resident), "what left to have gone")
        assert len(storm.clients) > 50 and sum(bool(client.responses) for client in storm.clients) > 20

    for name in MODELS:
        write_model(tmp_path, replace(PLAIN, name=name, extra=ISOLATED), Flavour.ONNX)
    write_chain(tmp_path, "pair", "d", "e")
    write_chain(tmp_path, "whole", "pair", "c")
    run(tmp_path, script, f"--lazy-model-count={count}")
