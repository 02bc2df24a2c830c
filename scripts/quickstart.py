#!/usr/bin/env python3
"""Shows a first look at a running tensorfarm: fetches the example models, serves them, asks, prints what came back.

    scripts/quickstart [--once] [--all] [--http-port PORT] [any flag of the server...]

Every answer is held against ONNX Runtime in this process. Exit status: 0 all was right, 1 something was not, 75 the
models could not be downloaded.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import tritonclient.http as triton
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tritonclient.utils import InferenceServerException

from demo import pages, pictures, pipelines, sound, ways
from demo.reference import chances_of_speech, session
from demo.sentences import Tokenizer
from demo.served import Served, ServerError, serving
from fetch_models import make_repository
from models.cache import cache_folder
from models.wheels import FetchError

PHOTOS = ("cat.png", "coffee.png")
ROUNDS = 10
TOLERANCE = 1e-5
LEAST_LIKENESS = 0.97
SENTENCES = ("A cat sleeps on the sofa.", "The kitten is napping on the couch.", "Shares fell sharply on Tuesday.")

console = Console(highlight=False, soft_wrap=True)


class Mismatch(Exception):
    """An answer differs from what the model gives in this process."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Serve the example models and ask them something.", epilog="Other flags go to the server.")
    parser.add_argument("--once", action="store_true", help="stop the server after the answers instead of serving on")
    parser.add_argument("--all", action="store_true", help="the sentence encoder too (84 MB more to fetch)")
    parser.add_argument("--http-port", type=int, metavar="PORT", help="port of the server (8000, or a free one where that is taken)")
    arguments, flags = parser.parse_known_args()
    # SIGINT too: a shell that starts this in the background has it ignored
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    try:
        run(arguments.http_port, flags, once=arguments.once, large=arguments.all)
    except FetchError as error:
        _fail(str(error), os.EX_TEMPFAIL)
    except (ServerError, Mismatch, OSError, ValueError) as error:
        _fail(str(error), 1)
    except InferenceServerException as error:
        _fail(f"the server answered: {error.message()}", 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def run(http_port: int | None, flags: list[str], *, once: bool, large: bool) -> None:
    """Fetch, serve, ask, print; then stop the server, or wait until somebody does."""
    repository = cache_folder() / "models"
    folder = make_repository(repository, large=large)
    with serving(repository, http_port, cache_folder() / "quickstart.log", flags) as served:
        console.print(f"serving {repository} at [bold]http://{served.address}[/], ready after {served.ready_ms:.0f} ms\n")
        client = triton.InferenceServerClient(served.address)
        try:
            _classify(client, repository, folder)
            _listen(client, repository)
            _pipe(served.address, repository, folder)
            if large:
                _embed(client, repository)
        finally:
            client.close()
        console.print(f"All answers equal those of ONNX Runtime in this process to {TOLERANCE:g}, and the page says what was read.")
        if once:
            served.stop()
        else:
            _serve_on(served)


def _classify(client: Any, repository: Path, folder: Path) -> None:
    """Two pictures, each sent three ways."""
    model = session(repository, "image_classifier")
    table = Table(title="image_classifier", title_justify="left", caption=f"ms per request: median of {ROUNDS}", caption_justify="left")
    for column in ("picture", "what the server sees", "JSON", "binary", "shared memory"):
        table.add_column(column, justify="left" if column in ("picture", "what the server sees") else "right")
    for path in (folder / name for name in PHOTOS):
        image = pictures.load(path)
        (expected,) = model.run(None, {ways.INPUT: image})
        times = []
        with ExitStack() as stack:
            asks = {
                "JSON": ways.as_json(client),
                "binary": ways.as_binary(client),
                "shared memory": stack.enter_context(ways.through_shared_memory(client, image)),
            }
            for name, ask in asks.items():
                _hold(f"{path.name} through {name}", ask(image), expected)
                times.append(f"{_median_ms(ask, image):.1f} ms")
        best = ways.best_labels(client, image)
        _hold(f"{path.name}, best classes", np.array([score for _, score in best]), np.sort(expected[0])[: -len(best) - 1 : -1])
        table.add_row(path.name, "\n".join(f"{score:6.1%}  {label.split(',')[0]}" for label, score in best), *times, end_section=True)
    console.print(table, "")


def _listen(client: Any, repository: Path) -> None:
    """Three sounds, piece by piece; the model's state travels with each request."""
    model = session(repository, "voice_activity")
    table = Table(title="voice_activity", title_justify="left")
    for column in ("sound", "length", "pieces with a voice", "per piece"):
        table.add_column(column, justify="left" if column == "sound" else "right")
    for name, samples in {"silence": sound.silence(1), "waterfall": sound.noise(1), "synthetic speech": sound.speech()}.items():
        state = expected_state = np.zeros((2, 1, 128), np.float32)
        heard, times = [], []
        for piece in sound.windows(samples):
            start_ns = time.perf_counter_ns()
            result = _infer(client, "voice_activity", {"input": piece, "state": state, "sr": np.array([sound.RATE_HZ], np.int64)})
            times.append(time.perf_counter_ns() - start_ns)
            probability, state = result.as_numpy("output"), result.as_numpy("stateN")
            feed = {"input": piece, "state": expected_state, "sr": np.array(sound.RATE_HZ, np.int64)}
            expected, expected_state = model.run(["output", "stateN"], feed)
            _hold(name, probability, expected)
            heard.append(probability.item() > 0.5)
        length_s = len(samples) / sound.RATE_HZ
        table.add_row(name, f"{length_s:.1f} s", f"{statistics.mean(heard):.0%}", f"{statistics.median(times) / 1e6:.1f} ms")
    console.print(table, "")


def _pipe(address: str, repository: Path, folder: Path) -> None:
    """Whole pipelines, each asked with the bytes of a file in one HTTP request."""
    table = Table("asked", "what came back", title="pipelines", title_justify="left")
    table.add_column("took", justify="right")

    def ask(model: str, tensor: str, name: str, content: bytes, shape: tuple[int, ...] = (1,)) -> dict[str, list[Any]]:
        start_ns = time.perf_counter_ns()
        found = pipelines.ask(address, model, tensor, content, shape)
        took = f"{(time.perf_counter_ns() - start_ns) / 1e6:.0f} ms"
        table.add_row(f"{model}\n{name}", escape(pipelines.readable(found)), took, end_section=True)
        return found

    for name in PHOTOS:
        found = ask("image_to_classes", "picture", name, (folder / name).read_bytes(), (1, 1))
        (expected,) = session(repository, "image_classifier").run(None, {ways.INPUT: pictures.load(folder / name)})[0]
        _hold(f"{name} in one request", np.array(found["score"]), np.sort(expected)[: -len(found["score"]) - 1 : -1])

    found = ask("page_to_lines", "page", "page.png", (folder / "page.png").read_bytes())
    if pages.likeness(found["text"], pages.SCANNED) < LEAST_LIKENESS:
        raise Mismatch(f"page.png was read as {found['text']}")

    samples = sound.from_pcm(sound.pcm(np.concatenate([sound.silence(1), sound.speech(), sound.silence(1)])))
    found = ask("sound_to_speech", "sound", "speech.wav", sound.wav(samples))
    # there is one stretch of speech: it begins with the first piece that sounds like a voice
    voiced = np.flatnonzero(np.array(chances_of_speech(session(repository, "voice_activity"), samples)) >= 0.5)
    _hold("speech in one request", np.array(found["start_s"]), voiced[:1] * sound.WINDOW / sound.RATE_HZ)
    console.print(table, "")


def _embed(client: Any, repository: Path) -> None:
    """Three sentences in one request; how close each is to the first."""
    ids, mask = Tokenizer(repository / "sentence_encoder" / "vocab.txt")(list(SENTENCES))
    inputs = {"input_ids": ids, "attention_mask": mask}
    vectors = _infer(client, "sentence_encoder", inputs).as_numpy("sentence_embedding")
    _hold("sentences", vectors, session(repository, "sentence_encoder").run(None, inputs)[0])
    table = Table("sentence", "closeness to the first", title="sentence_encoder", title_justify="left")
    for sentence, closeness in zip(SENTENCES, vectors @ vectors[0], strict=True):
        table.add_row(sentence, f"{closeness:.2f}")
    console.print(table, "")


def _serve_on(served: Served) -> None:
    console.print(f"\nServing on: try  curl {served.address}/v2/models/image_classifier   Log: {served.log}\nCtrl-C stops the server.")
    try:
        rc = served.process.wait()
    except KeyboardInterrupt:
        console.print("\nstopping")
        served.stop()
    else:
        raise ServerError(f"the server ended by itself with exit status {rc}; its log: {served.log}")


def _infer(client: Any, model: str, tensors: dict[str, NDArray[Any]]) -> Any:
    inputs = []
    for name, array in tensors.items():
        tensor = triton.InferInput(name, array.shape, "INT64" if array.dtype == np.int64 else "FP32")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return client.infer(model, inputs)


def _median_ms(ask: ways.Ask, image: ways.Tensor) -> float:
    times = []
    for _ in range(ROUNDS):
        start_ns = time.perf_counter_ns()
        ask(image)
        times.append(time.perf_counter_ns() - start_ns)
    return statistics.median(times) / 1e6


def _hold(what: str, got: NDArray[Any], expected: NDArray[Any]) -> None:
    if got.shape != expected.shape:
        raise Mismatch(f"{what}: the answer has the shape {got.shape}, expected {expected.shape}")
    difference = float(np.abs(got - expected).max())
    if not difference <= TOLERANCE:
        raise Mismatch(f"{what}: the answer is off by {difference:g}")


def _leave(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(text: str, status: int) -> None:
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
