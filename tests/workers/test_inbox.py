"""An instance's inbox: batches in order, answers to whoever waits for them."""

from __future__ import annotations

from collections.abc import Iterable

from tensorfarm.workers.contract.messages import Answer, Close, Execute, ToInstance
from tensorfarm.workers.inbox import Inbox


def inbox(*messages: ToInstance) -> tuple[Inbox, list[Answer]]:
    """An inbox that gets these messages, and the answers that it has handed over."""
    coming: Iterable[ToInstance] = iter(messages)
    made = Inbox(lambda: next(coming))  # type: ignore[call-overload]
    answers: list[Answer] = []
    made.answered = answers.append
    return made, answers


def batch(number: int) -> Execute:
    return Execute(number, [])


def answer(call: int) -> Answer:
    return Answer(call, 0, None, True)


def test_answers_are_handed_over_between_batches() -> None:
    made, answers = inbox(batch(1), answer(7), answer(8), batch(2), Close())
    assert [made.next(), made.next(), made.next()] == [batch(1), batch(2), Close()]
    assert answers == [answer(7), answer(8)]


def test_batches_wait_while_an_answer_is_waited_for() -> None:
    made, answers = inbox(batch(1), batch(2), answer(7), Close(), answer(8), batch(3))
    assert made.next() == batch(1)
    seen: list[bool] = []

    def both() -> bool:
        seen.append(made.waiting)
        return len(answers) == 2

    made.wait(both)
    assert answers == [answer(7), answer(8)] and all(seen) and not made.waiting
    assert [made.next(), made.next(), made.next()] == [batch(2), Close(), batch(3)]


def test_what_has_come_is_not_waited_for() -> None:
    made, _ = inbox()
    made.wait(lambda: True)
