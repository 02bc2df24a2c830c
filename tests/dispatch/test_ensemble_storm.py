"""Random ensembles under random answers, failures and cancellations."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensorfarm.server.dispatch.request import Request
from tensorfarm.shm.placement import Inline, Lease
from tensorfarm.workers.contract.messages import Tensor
from tensorfarm.workers.contract.status import invalid, unavailable

from .ensemble_bench import CONTENT, Bench, ensemble_config, model, step


class EnsembleMachine(RuleBasedStateMachine):
    """Random ensembles under random answers. ``decoupled`` of the last step makes the ensemble stream."""

    @initialize(data=st.data())
    def build(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, 5))
        origins: dict[str, int] = {"X0": -1, "X1": -1}
        signatures = []
        steps = []
        for number in range(count):
            origin = data.draw(st.sampled_from(sorted(set(origins.values()))))
            known = sorted(name for name, of in origins.items() if of == origin)
            inputs = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
            outputs = data.draw(st.integers(1, 2))
            decoupled = data.draw(st.integers(0, 3)) < (2 if number == 0 else 1)
            signature = model(
                f"m{number}", [f"I{at}" for at in range(len(inputs))], [f"O{at}" for at in range(outputs)], decoupled=decoupled
            )
            signatures.append(signature)
            made = {f"O{at}": f"t{number}_{at}" for at in range(outputs)}
            steps.append(step(signature.model, {f"I{at}": name for at, name in enumerate(inputs)}, made))
            origins |= dict.fromkeys(made.values(), number if decoupled else origin)
        origin = data.draw(st.sampled_from(sorted({of for name, of in origins.items() if name[0] == "t"})))
        candidates = sorted(name for name, of in origins.items() if of == origin and name[0] == "t")
        self.outputs = data.draw(st.lists(st.sampled_from(candidates), min_size=1, unique=True))
        self.producers = {name: f"m{number}" for number, one in enumerate(steps) for name in one["output_map"].values()}
        self.feeds = {one["model_name"]: set(one["input_map"].values()) for one in steps}
        config = ensemble_config(steps, ["X0", "X1"], self.outputs, max_inflight=data.draw(st.sampled_from([0, 1, 1, 2])))
        self.bench = Bench(config, *signatures)
        self.requests: list[Request] = []
        self.needs: dict[str, set[str]] = {}
        if data.draw(st.integers(0, 3)) == 0:
            self.bench.at_once[f"m{data.draw(st.integers(0, count - 1))}"] = self.bench.answer
        if data.draw(st.integers(0, 3)) == 0:
            self.bench.refuse[f"m{data.draw(st.integers(0, count - 1))}"] = invalid("refused")

    def needed(self, outputs: set[str]) -> set[str]:
        """The members that have to run for these outputs."""
        found: set[str] = set()
        queue = list(outputs)
        while queue:
            producer = self.producers.get(queue.pop())
            if producer is not None and producer not in found:
                found.add(producer)
                queue += self.feeds[producer]
        return found

    @precondition(lambda self: len(self.requests) < 6)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        wanted = data.draw(st.sets(st.sampled_from(self.outputs)))
        given = data.draw(st.sets(st.sampled_from(["X0", "X1"])))
        number = len(self.requests)
        self.needs[str(number)] = self.needed(wanted or set(self.outputs))
        inputs = {name: Tensor(name, "INT32", (4,), Inline(CONTENT)) for name in given}
        self.requests.append(self.bench.ask(*sorted(wanted), inputs=inputs, id=str(number)))

    @rule(pick=st.integers(0, 100), outcome=st.sampled_from(["all", "all", "all", "some", "more", "more", "error"]))
    def answer(self, pick: int, outcome: str) -> None:
        if not self.bench.asked:
            return
        asked = self.bench.asked[pick % len(self.bench.asked)]
        names = [output.name for output in asked.request.body.outputs]
        streams = self.bench.plan.steps[int(asked.member[1:])].decoupled
        if outcome == "error":
            self.bench.answer(asked, error=unavailable("failed"), final=not streams or pick % 2 == 0)
        elif outcome == "some":
            self.bench.answer(asked, *(names[pick % 3 :] or ["-"]))
        else:
            self.bench.answer(asked, final=not (streams and outcome == "more"))

    @rule(pick=st.integers(0, 100))
    def cancel(self, pick: int) -> None:
        if self.requests and pick % 3 == 0:
            self.bench.ensemble.cancel(self.requests[pick % len(self.requests)])

    @rule()
    def release(self) -> None:
        for response in self.bench.responses:
            response.release()

    @invariant()
    def only_needed_steps_run_and_none_twice(self) -> None:
        if not hasattr(self, "bench"):
            return
        counts: dict[tuple[str, str], int] = {}
        for asked in self.bench.everything:
            assert asked.member in self.needs[asked.request.body.id]
            counts[asked.request.body.id, asked.member] = counts.get((asked.request.body.id, asked.member), 0) + 1
        for (_, member), count in counts.items():
            number = int(member[1:])
            if self.bench.plan.steps[number].origin == -1:
                assert count == 1, f"{member} was run {count} times"

    @invariant()
    def nothing_is_answered_twice(self) -> None:
        if not hasattr(self, "bench"):
            return
        for request in self.requests:
            mine = [response for response in self.bench.responses if response.request is request]
            assert sum(response.final for response in mine) <= 1
            if any(response.final for response in mine):
                assert mine[-1].final
                assert request.on_finish is None
            assert sum(response.error is not None for response in mine) <= 1
            if not self.bench.plan.decoupled:
                assert len(mine) <= 1
        assert len(self.bench.released) == len({id(response) for response in self.bench.released})

    @invariant()
    def nothing_in_use_is_given_back(self) -> None:
        if not hasattr(self, "bench"):
            return
        gone = {tensor.place for response in self.bench.released for tensor in response.outputs}
        used = {tensor.place for asked in self.bench.asked for tensor in asked.request.body.inputs}
        used |= {tensor.place for response in self.bench.responses if response.on_release for tensor in response.outputs}
        assert not gone & {place for place in used if type(place) is Lease}

    @invariant()
    def limits_hold(self) -> None:
        if not hasattr(self, "bench"):
            return
        limit = self.bench.plan.max_inflight
        for one in self.bench.plan.steps:
            if limit and one.origin != -1:
                assert sum(asked.member == one.model for asked in self.bench.asked) <= limit

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        for _ in range(10_000):
            if not bench.asked:
                break
            asked = bench.asked[0]
            if bench.plan.steps[int(asked.member[1:])].decoupled:
                bench.end(asked)
            else:
                bench.answer(asked)
        assert not bench.asked
        assert bench.ensemble.idle
        finals = [response.request for response in bench.responses if response.final]
        assert sorted(map(id, finals)) == sorted(map(id, self.requests))
        assert bench.finished == ["request"] * len(self.requests)
        for response in bench.responses:
            response.release()
        assert sorted(map(id, bench.released)) == sorted(map(id, bench.made))
        statistics = bench.statistics
        assert statistics.success_count + statistics.fail_count == len(self.requests)
        for call in bench.soon:
            call()
        assert not bench.asked


TestEnsembleMachine = EnsembleMachine.TestCase
TestEnsembleMachine.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
