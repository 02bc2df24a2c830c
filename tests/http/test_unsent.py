"""What is counted of replies that clients have not taken."""

from __future__ import annotations

from tensorfarm.server.admission import Admission, AdmissionLimits
from tensorfarm.server.http.unsent import Unsent


def test_what_lies_there_is_held_until_it_has_left() -> None:
    admission = Admission(AdmissionLimits(byte_size=100))
    unsent = Unsent(admission)
    unsent.begin(60)
    unsent.add(50)
    assert (admission.held_byte_size, admission.most) == (110, 0)
    unsent.end()
    assert admission.held_byte_size == 0 and admission.most
    unsent.end()
    assert admission.held_byte_size == 0


def test_progress_is_what_has_left_since_it_was_noted_last() -> None:
    admission = Admission()
    unsent = Unsent(admission)
    unsent.begin(100)
    assert unsent.moves(100, 10), "nobody has looked before"
    assert not unsent.moves(91, 10)
    assert admission.held_byte_size == 100
    assert unsent.moves(90, 10)
    assert admission.held_byte_size == 90
    unsent.add(20)
    assert not unsent.moves(101, 10)
    assert unsent.moves(100, 10)
    unsent.end()
    unsent.begin(100)
    assert unsent.moves(100, 10), "that is another reply"
    assert admission.held_byte_size == 100
