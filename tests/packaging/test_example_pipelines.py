"""The example pipelines in a running server: the bytes of a file in one HTTP request, held against what is known of the file."""

from __future__ import annotations

import io
import json
import random
import struct
import wave
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as client
from PIL import Image

from ..servers import Server, tensorfarm
from ..wire import Reply
from .tree import Import

LINES = (
    "The server keeps the tensors in shared memory.",
    "Invoice 2026-1142, due on 3 December",
    "Total: 1,284.50 EUR",
    "A line that is rather long, to see whether wide ones work just as well as short ones do",
)
LIKENESS = 0.97
PIECE_S = 512 / 16_000


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tensorfarm(repository, folder=tmp_path_factory.mktemp("pipelines") / "run") as running:
        assert running.ready(), running.log
        yield running


def post(server: Server, model: str, tensor: str, *files: bytes, shape: Sequence[int] = (1,)) -> Reply:
    """A JSON header, and behind it the files, each with its length."""
    content = b"".join(struct.pack("<I", len(file)) + file for file in files)
    asked = {"name": tensor, "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(content)}}
    header = json.dumps({"inputs": [asked]}).encode()
    return server.ask("POST", f"/v2/models/{model}/infer", header + content, Inference_Header_Content_Length=str(len(header)))


def found(reply: Reply) -> dict[str, np.ndarray[Any, Any]]:
    assert reply.status == 200, reply.body
    return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in reply.json["outputs"]}


def classes(server: Server, *files: bytes) -> Reply:
    return post(server, "image_to_classes", "picture", *files, shape=(len(files), 1))


def lines_of(server: Server, page: bytes) -> dict[str, np.ndarray[Any, Any]]:
    return found(post(server, "page_to_lines", "page", page))


def stretches(server: Server, content: bytes) -> list[tuple[float, float]]:
    said = found(post(server, "sound_to_speech", "sound", content))
    assert len(said["score"]) == len(said["start_s"])
    assert all(0.35 < score <= 1 for score in said["score"])
    return list(zip(said["start_s"].tolist(), said["stop_s"].tolist(), strict=True))


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, form, **options)
    return content.getvalue()


def expected_classes(repository: Path, load: Import, file: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    (probabilities,) = (
        load("demo.reference").session(repository, "image_classifier").run(None, {"image": load("demo.pictures").load(file)})[0]
    )
    labels = (repository / "image_classifier" / "labels.txt").read_text().splitlines()
    best = np.argsort(-probabilities)[:3]
    return [labels[number] for number in best], probabilities[best]


def test_two_pictures_in_one_request(server: Server, repository: Path, pictures: Path, load: Import, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(saved(Image.open(pictures / "cat.png"), "JPEG"))
    said = found(classes(server, photo.read_bytes(), (pictures / "coffee.png").read_bytes()))
    assert said["label"].tolist()[1] == ["espresso", "cup", "consomme"]
    for row, file in enumerate((photo, pictures / "coffee.png")):
        labels, scores = expected_classes(repository, load, file)
        assert said["label"][row].tolist() == labels
        np.testing.assert_allclose(said["score"][row], scores, atol=1e-5)


def test_the_body_may_be_the_picture_alone(server: Server, repository: Path, pictures: Path, load: Import) -> None:
    file = pictures / "cat.png"
    reply = server.ask("POST", "/v2/models/image_to_classes/infer", file.read_bytes(), Inference_Header_Content_Length="0")
    assert reply.status == 200, reply.body
    length = int(reply.header("inference-header-content-length") or 0)
    result = client.InferenceServerClient.parse_response_body(reply.body, header_length=length)
    labels, scores = expected_classes(repository, load, file)
    assert [label.decode() for label in result.as_numpy("label")[0]] == labels
    np.testing.assert_allclose(result.as_numpy("score")[0], scores, atol=1e-5)


def test_the_network_alone_still_names_its_classes(server: Server, pictures: Path, load: Import) -> None:
    image = load("demo.pictures").load(pictures / "coffee.png")
    with client.InferenceServerClient(f"127.0.0.1:{server.http_port}") as asking:
        assert load("demo.ways").best_labels(asking, image, 1) == [("espresso", pytest.approx(0.951, abs=2e-3))]


def test_pictures_of_all_kinds_show_the_same(server: Server, pictures: Path) -> None:
    cat = Image.open(pictures / "cat.png").convert("RGB")
    sideways = cat.transpose(Image.Transpose.ROTATE_90)
    orientation = Image.Exif()
    orientation[0x0112] = 6  # to be turned a quarter clockwise
    grey = cat.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    coloured = found(
        classes(server, saved(cat, "PNG"), saved(sideways, "JPEG", quality=95, exif=orientation), saved(cat.convert("RGBA"), "PNG"))
    )
    assert {tuple(sorted(row)) for row in coloured["label"].tolist()} == {("Egyptian cat", "tabby, tabby cat", "tiger cat")}
    np.testing.assert_array_equal(coloured["score"][0], coloured["score"][2])
    np.testing.assert_allclose(coloured["score"][0].sum(), coloured["score"][1].sum(), atol=0.1)
    greys = found(classes(server, saved(grey, "PNG"), saved(deep, "PNG")))
    np.testing.assert_array_equal(greys["score"][0], greys["score"][1])


def claiming(png: bytes, width: int, height: int) -> bytes:
    """A PNG file whose head tells other sides than its pixels have."""
    head = png[12:16] + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


@pytest.mark.parametrize("model", ["image_to_classes", "page_to_lines"])
def test_what_is_no_picture_is_refused(server: Server, pictures: Path, model: str) -> None:
    cat = (pictures / "cat.png").read_bytes()
    unreadable = "not a JPEG or PNG file that can be read"
    for content, reason in (
        (b"", unreadable),
        (b"not a picture", unreadable),
        (cat[:5000], unreadable),
        (saved(Image.new("RGB", (9, 9)), "BMP"), unreadable),
        (claiming(cat, 9000, 9000), "more than 64000000 pixels"),
        (claiming(cat, 60_000, 60_000), "more than 64000000 pixels"),
    ):
        tensor, shape = ("picture", (1, 1)) if model == "image_to_classes" else ("page", (1,))
        reply = post(server, model, tensor, content, shape=shape)
        assert reply.status == 400, reply.body
        assert reply.json["error"].endswith(f"{tensor}: {reason}")
    assert classes(server, cat, b"not a picture").status == 400


def test_damaged_pictures_are_answered(server: Server, pictures: Path) -> None:
    """Whatever is wrong in a file: a refusal or an answer, never the failure of a model."""
    chance = random.Random(4)  # noqa: S311
    small = Image.open(pictures / "cat.png").convert("RGB").resize((64, 48))
    for number in range(60):
        content = bytearray(saved(small, "JPEG" if number % 2 else "PNG", exif=Image.Exif()))
        for _ in range(chance.randint(1, 6)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        reply = classes(server, bytes(content))
        assert reply.status in (200, 400), reply.body
        assert reply.status == 200 or "picture: " in reply.json["error"]
    assert classes(server, saved(small, "PNG")).status == 200


def test_a_page_under_a_camera_is_read(server: Server, pictures: Path, load: Import) -> None:
    pages = load("demo.pages")
    said = lines_of(server, (pictures / "page.png").read_bytes())
    assert pages.likeness(said["text"], pages.SCANNED) >= LIKENESS
    # spaces too, where they are plain
    assert said["text"].tolist()[:3] == list(pages.SCANNED[:3])
    assert said["score"].min() > 0.9


@pytest.mark.parametrize(("letter_height", "form", "turned_degrees"), [(40, "PNG", 0), (20, "JPEG", 0), (40, "JPEG", 4), (40, "PNG", -3)])
def test_printed_pages_are_read(server: Server, load: Import, letter_height: int, form: str, turned_degrees: float) -> None:
    pages = load("demo.pages")
    said = lines_of(server, pages.printed(LINES, letter_height=letter_height, form=form, turned_degrees=turned_degrees))
    assert len(said["text"]) == len(LINES), said["text"]
    assert pages.likeness(said["text"], LINES) >= LIKENESS, said["text"]
    if turned_degrees == 0:
        for number, (top_left, top_right, bottom_right, bottom_left) in enumerate(said["box"]):
            top, bottom = (2 * number + 2) * letter_height, (2 * number + 3.3) * letter_height
            assert top - 0.3 * letter_height < min(top_left[1], top_right[1]) < top + 0.5 * letter_height
            assert bottom - 0.5 * letter_height < max(bottom_left[1], bottom_right[1]) < bottom + 0.3 * letter_height
            assert abs(top_left[0] - 2 * letter_height) < 0.4 * letter_height
    else:
        ways = said["box"][:, 1] - said["box"][:, 0]
        # pictures are turned against the clock, and y runs down
        np.testing.assert_allclose(np.degrees(np.arctan2(-ways[:, 1], ways[:, 0])), turned_degrees, atol=1)


def test_columns_are_read_from_left_to_right(server: Server, load: Import) -> None:
    pages = load("demo.pages")
    halves = [
        Image.open(io.BytesIO(pages.printed(lines))) for lines in (("first line here", "third line here"), ("second line", "the fourth"))
    ]
    page = Image.new("RGB", (sum(half.width for half in halves), halves[0].height), "white")
    page.paste(halves[0], (0, 0))
    page.paste(halves[1], (halves[0].width, 0))
    said = lines_of(server, saved(page, "PNG"))
    assert pages.likeness(said["text"], ("first line here", "second line", "third line here", "the fourth")) >= LIKENESS, said["text"]


def test_an_empty_page_has_no_lines(server: Server) -> None:
    said = lines_of(server, saved(Image.new("RGB", (300, 200), "white"), "PNG"))
    assert {name: array.shape for name, array in said.items()} == {"text": (0,), "score": (0,), "box": (0, 4, 2)}


def test_speech_is_found_where_it_is(server: Server, repository: Path, load: Import) -> None:
    sound = load("demo.sound")
    parts = [sound.silence(1), sound.speech(), sound.silence(1.5), sound.speech("oia"), sound.silence(1)]
    edges_s = np.cumsum([len(part) for part in parts]) / sound.RATE_HZ
    samples = sound.from_pcm(sound.pcm(np.concatenate(parts)))
    said = stretches(server, sound.pcm(samples))
    assert len(said) == 2
    np.testing.assert_allclose(said, edges_s[:4].reshape(2, 2), atol=0.25)

    # the same from the detector's own words: speech begins where they pass 0.5, and ends where they stay below 0.35
    reference = load("demo.reference")
    chances = np.array(reference.chances_of_speech(reference.session(repository, "voice_activity"), samples))
    for start_s, stop_s in said:
        start, stop = round(start_s / PIECE_S), round(stop_s / PIECE_S)
        assert chances[start] >= 0.5 > chances[start - 1]
        assert chances[stop - 1] >= 0.35 > chances[stop : stop + 4].max()
    inside = np.concatenate([np.arange(round(start_s / PIECE_S), round(stop_s / PIECE_S)) for start_s, stop_s in said])
    assert np.delete(chances, inside).max() < 0.5


def test_wav_files_of_any_rate(server: Server, load: Import) -> None:
    sound = load("demo.sound")
    samples = np.concatenate([sound.silence(1), sound.speech(), sound.silence(1)])
    (plain,) = stretches(server, sound.wav(samples))
    assert stretches(server, sound.pcm(samples)) == [plain]

    # 48 kHz, two channels: each sample six times
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes(np.repeat(np.frombuffer(sound.pcm(samples), "<i2"), 6).tobytes())
    np.testing.assert_allclose(stretches(server, content.getvalue()), [plain], atol=0.1)


def test_sounds_that_are_still_coming(server: Server, repository: Path, load: Import) -> None:
    """Five sounds at once, one more than there are instances: that one waits until another has ended."""
    sound, reference = load("demo.sound"), load("demo.reference")
    sounds = [sound.speech(), sound.silence(0.5), sound.noise(0.6), sound.speech("oia"), sound.noise(0.4)]

    def listened(number: int) -> list[float]:
        pieces, chances = list(sound.windows(sounds[number])), []
        for index, piece in enumerate(pieces):
            inputs = [
                {"name": "input", "datatype": "FP32", "shape": piece.shape, "data": piece.ravel().tolist()},
                {"name": "sr", "datatype": "INT64", "shape": [1], "data": [sound.RATE_HZ]},
            ]
            place = {"sequence_id": number + 1, "sequence_start": index == 0, "sequence_end": index == len(pieces) - 1}
            reply = server.ask("POST", "/v2/models/voice_stream/infer", {"inputs": inputs, "parameters": place})
            chances.append(found(reply)["output"].item())
        return chances

    with ThreadPoolExecutor(len(sounds)) as threads:
        said = list(threads.map(listened, range(len(sounds))))
    detector = reference.session(repository, "voice_activity")
    for samples, chances in zip(sounds, said, strict=True):
        np.testing.assert_allclose(chances, reference.chances_of_speech(detector, samples), atol=1e-4)
    assert max(said[0]) > 0.5 > max(said[1])


def test_sounds_without_speech(server: Server, load: Import) -> None:
    sound = load("demo.sound")
    for content in (b"", sound.pcm(sound.silence(1)), sound.wav(sound.noise(1))):
        assert stretches(server, content) == []


def test_what_is_no_sound_is_refused(server: Server) -> None:
    for content, reason in (
        (b"odd", "neither a WAV file nor 16-bit samples"),
        (b"RIFF", "a WAV file that cannot be read: it is cut short"),
    ):
        reply = post(server, "sound_to_speech", "sound", content)
        assert reply.status == 400
        assert reply.json["error"].startswith(f"sound: {reason}")
