"""What the figures rest on, as far as it needs no GPU."""

from __future__ import annotations

import numpy as np
import onnxruntime

from .figures import HEAD, Row, table
from .resnet import BATCH_SIZE, CLASSES, DIMS, INPUT, OUTPUT, light_resnet50


def test_resnet50_takes_batches() -> None:
    """Each picture of a batch has the scores that it has alone."""
    session = onnxruntime.InferenceSession(light_resnet50().SerializeToString(), providers=["CPUExecutionProvider"])
    pictures = np.random.default_rng(2).standard_normal((BATCH_SIZE, *DIMS)).astype(np.float32)
    (scores,) = session.run([OUTPUT], {INPUT: pictures})
    assert scores.shape == (BATCH_SIZE, CLASSES)
    (alone,) = session.run([OUTPUT], {INPUT: pictures[3:4]})
    np.testing.assert_allclose(scores[3:4], alone, rtol=1e-5)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-4)


def test_rows() -> None:
    """A ratio tells how many times as fast ours is; a target without what it is held against is missed."""
    met, missed = Row("a", "b", 2.0, 50.0, 20.0), Row("a", "b", 2.0, 1.5, 0.8)
    assert met.ratio == 25 and not met.missed
    assert missed.ratio == 0.75 and missed.missed
    assert Row("a", "b", 2.0, None, 0.8).missed and not Row("a", "b", 2.0, 1.0).missed
    lines = table([met, missed]).splitlines()
    assert len(lines) == 3 and lines[0].split() == " ".join(HEAD).split()
    assert lines[1].rstrip().endswith("met") and lines[2].rstrip().endswith("missed")
    assert len(set(map(len, lines))) == 1
