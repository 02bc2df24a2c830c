"""Repositories on plain web servers: what of a page counts, and what a server may not do to us."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

from tensorfarm.server.repository import cloud_copy, cloud_http
from tensorfarm.server.repository.cloud import Cloud
from tensorfarm.server.repository.cloud_http import MAX_DEPTH
from tensorfarm.server.repository.cloud_store import Mark
from tensorfarm.workers.contract.status import Code, StatusError

from .stores import Answers, ObjectServer, fsspec_thread, loaded, running, tree

ETAG = '"tag"'


class Page(Answers):
    """Sends what the test put into ``server.answers`` for a path: a body, or a function that answers itself; else 404."""

    server: PageServer

    def answer(self, path: str, query: dict[str, str]) -> None:
        made = self.server.answers.get(path)
        if callable(made):
            made(self)
        elif made is None:
            self.reply(404)
        else:
            self.reply(200, made, Content_Type="text/html", ETag=ETAG)


class PageServer(ObjectServer):
    """An ObjectServer whose objects may be functions."""

    answers: dict[str, bytes | Callable[[Page], None]]


@pytest.fixture(scope="module")
def web() -> Iterator[PageServer]:
    with running(Page) as server, fsspec_thread():
        server.__class__ = PageServer
        yield server  # type: ignore[misc]


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def site(web: PageServer, slept: list[float]) -> Iterator[Cloud]:
    web.answers, web.paths = {}, []
    cloud = Cloud(f"{web.url}/models", environment={}, sleep=slept.append)
    yield cloud
    cloud.close()


def links(*targets: str) -> bytes:
    return "".join(f'<html><a class="x" href="{target}">x</a>' for target in targets).encode()


def model(web: PageServer, **files: bytes) -> None:
    web.answers |= {
        "/models/": links("m/"),
        "/models/m/": links(*files),
        **{f"/models/m/{name}": content for name, content in files.items()},
    }


def times(count: int, answer: Callable[[Page], None], then: bytes) -> Callable[[Page], None]:
    """An answer for so many requests, and another for those after."""
    left = [count]

    def answers(page: Page) -> None:
        left[0] -= 1
        if left[0] >= 0:
            answer(page)
        else:
            page.reply(200, then, ETag=ETAG)

    return answers


def test_a_folder_as_pythons_server_shows_it(tmp_path: Path, web: PageServer) -> None:
    files = {
        "m/config.pbtxt": b"x",
        "m/1/model.onnx": b"1" * 300_000,
        "m/1/odd name #1 100% ä?.bin": b"odd",
        "m/2/empty": b"",
        ".hidden/1/x": b"",
        "file": b"",
    }
    for name, content in files.items():
        (tmp_path / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / name).write_bytes(content)
    (tmp_path / "models" / "m" / "3").mkdir()

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    cloud = Cloud(f"http://127.0.0.1:{server.server_port}/models/", environment={})
    try:
        cloud.check()
        assert cloud.model_names() == ["m"]
        assert cloud.stamps("none") is None
        expected = {name.removeprefix("m/"): content for name, content in files.items() if name.startswith("m/")}
        assert tree(loaded(cloud, "m", 1, 2, 3).directory) == {**expected, "1/": None, "2/": None, "3/": None}
    finally:
        cloud.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_only_links_right_below_the_page_count(web: PageServer, site: Cloud) -> None:
    web.answers["/models/"] = links(
        "m/", "./n/", "/models/o/", f"{web.url}/models/p/", "m/", "?C=N;O=D", "#top", "../", "/", "/other/", "//elsewhere/models/q/",
        "http://elsewhere/models/r/", "https://127.0.0.1/models/s/", "t/u/", "mailto:someone@somewhere", "v/?x=1", "", "http://[broken/", "..",
    )  # fmt: skip
    assert site.model_names() == ["m", "n", "o", "p"]


def test_models_with_impossible_names_are_left_out(web: PageServer, site: Cloud) -> None:
    web.answers["/models/"] = links("m/", "%2e%2e/", "a%2Fb/", "x%00/", "%ff/", f"{'n' * 300}/")
    assert site.model_names() == ["m"]


@pytest.mark.parametrize(
    ("link", "name"),
    [("%2e%2e", ".."), ("a%2Fb", "a/b"), ("..%2F..%2Fx", "../../x"), ("x%00y", "x\0y"), ("%ff", "\udcff"), ("%2e%2e/", "..")],
)
def test_names_that_lead_elsewhere_are_refused(web: PageServer, site: Cloud, link: str, name: str) -> None:
    web.answers["/models/m/"] = links("config.pbtxt", link)
    with pytest.raises(StatusError) as caught:
        site.stamps("m")
    assert caught.value.message == f"the name {ascii(name)} cannot be given to a file"


def test_links_to_nothing_are_no_files(web: PageServer, site: Cloud) -> None:
    model(web, **{"config.pbtxt": b"x", "gone": b""})
    del web.answers["/models/m/gone"]
    assert site.stamps("m") == {"config.pbtxt": Mark(1, ETAG)}


def test_circles_end(web: PageServer, site: Cloud) -> None:
    for depth in range(MAX_DEPTH + 5):
        web.answers[f"/models/m/{'again/' * depth}"] = links("again/")
    with pytest.raises(StatusError, match=f"folders are nested more than {MAX_DEPTH} deep$"):
        site.stamps("m")


@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirects_are_not_followed(web: PageServer, site: Cloud, status: int) -> None:
    def elsewhere(page: Page) -> None:
        page.reply(status, Location=f"{web.url}/secret")

    web.answers["/secret"] = links("stolen/")
    web.answers["/models/"] = elsewhere
    with pytest.raises(StatusError) as caught:
        site.model_names()
    assert caught.value.message == f"failed to list {web.url}/models: OSError: redirects are not followed"
    model(web, config=b"x")
    stamps = site.stamps("m")
    web.answers["/models/m/config"] = elsewhere
    with pytest.raises(StatusError, match="redirects are not followed$"):
        site.stamps("m")
    with pytest.raises(StatusError, match="redirects are not followed$"):
        site.copy("m", stamps or {})
    assert not any(path.endswith("/secret") for path in web.paths)


def test_errors_are_no_missing_models(web: PageServer, site: Cloud, slept: list[float]) -> None:
    web.answers["/models/m/"] = lambda page: page.reply(503)
    with pytest.raises(StatusError) as caught:
        site.stamps("m")
    assert caught.value.code is Code.UNAVAILABLE and slept == [0.5, 2.0]
    model(web, config=b"x")
    web.answers["/models/m/config"] = lambda page: page.reply(403)
    with pytest.raises(StatusError, match="403"):
        site.stamps("m")


def test_what_fails_for_a_moment_is_tried_again(web: PageServer, site: Cloud, slept: list[float]) -> None:
    web.answers["/models/"] = times(2, lambda page: page.reply(503), links("m/"))
    assert site.model_names() == ["m"]
    assert slept == [0.5, 2.0]


def test_a_download_that_is_cut_off_is_tried_again(web: PageServer, site: Cloud, slept: list[float]) -> None:
    def cut(page: Page) -> None:
        page.send_response(200)
        page.send_header("Content-Length", "1000")
        page.end_headers()
        page.wfile.write(b"x" * 10)
        page.close_connection = True

    content = b"y" * 1000
    model(web, config=content)
    stamps = site.stamps("m")
    web.answers["/models/m/config"] = times(2, cut, content)
    assert tree(site.copy("m", stamps or {}).directory) == {"config": content}
    assert slept == [0.5, 2.0]


def test_a_body_longer_than_its_listing_is_broken_off(web: PageServer, site: Cloud) -> None:
    model(web, config=b"x" * 10)
    stamps = site.stamps("m")
    web.answers["/models/m/config"] = b"x" * 11
    with pytest.raises(StatusError, match="has another size than its listing says$"):
        site.copy("m", stamps or {})


def test_bodies_are_taken_as_they_are(web: PageServer, site: Cloud) -> None:
    """Packed content stays packed: its length is the one that was told, and nothing grows."""
    packed = bytes.fromhex("1f8b08000000000000034b04000000ffff")
    model(web, config=b"")
    web.answers["/models/m/config"] = lambda page: page.reply(200, packed, Content_Encoding="gzip", ETag=ETAG)
    assert tree(loaded(site, "m").directory) == {"config": packed}


def test_without_head_requests_files_are_looked_at_by_get(web: PageServer, site: Cloud) -> None:
    model(web, config=b"x" * 10)

    def no_head(page: Page) -> None:
        if page.command == "HEAD":
            page.reply(405)
        else:
            page.reply(200, b"x" * 10, ETag=ETAG)

    web.answers["/models/m/config"] = no_head
    assert site.stamps("m") == {"config": Mark(10, ETAG)}


def test_one_request_for_each_page_and_file(web: PageServer, site: Cloud) -> None:
    model(web, a=b"x", b=b"y")
    assert site.stamps("m") == site.stamps("m") == {"a": Mark(1, ETAG), "b": Mark(1, ETAG)}
    assert sorted(web.paths) == sorted(["GET /models/m/", "HEAD /models/m/a", "HEAD /models/m/b"] * 2)


def test_nobody_listens(slept: list[float], web: PageServer) -> None:
    cloud = Cloud("http://127.0.0.1:1/models", environment={}, sleep=slept.append)
    with pytest.raises(StatusError) as caught:
        cloud.check()
    assert caught.value.code is Code.UNAVAILABLE and caught.value.message.startswith(
        "failed to list http://127.0.0.1:1/models: ClientConnectorError"
    )
    assert slept == [0.5, 2.0]
    cloud.close()


def test_a_page_that_does_not_end_is_broken_off(web: PageServer, site: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_http, "MAX_PAGE_BYTE_SIZE", 1 << 20)
    web.answers["/models/"] = lambda page: endless(page, links("m/"))
    with pytest.raises(StatusError) as caught:
        site.model_names()
    assert caught.value.message == f"a page of {web.url}/models/ is longer than 1 MiB"


def test_a_file_of_unknown_size_that_does_not_end_is_broken_off(web: PageServer, site: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_copy, "MAX_UNTOLD_BYTE_SIZE", 1 << 20)
    model(web, config=b"")
    web.answers["/models/m/config"] = lambda page: endless(page, b"x")
    stamps = site.stamps("m")
    assert stamps == {"config": Mark(None, "")}
    with pytest.raises(StatusError, match="'m/config' of .* is longer than 1 MiB, and the server does not say how long$"):
        site.copy("m", stamps)


def endless(page: Page, content: bytes) -> None:
    """A reply that goes on until nobody reads it any more."""
    page.send_response(200)
    page.send_header("Transfer-Encoding", "chunked")
    page.end_headers()
    page.close_connection = True
    content *= (1 << 20) // len(content)
    with contextlib.suppress(ConnectionError):
        while page.command != "HEAD":
            page.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))


@pytest.mark.parametrize("path", ["/models/m/", "/models/m/1/model.bin"])
def test_the_end_does_not_wait_for_a_store_that_does_not_answer(web: PageServer, site: Cloud, path: str) -> None:
    model(web, config=b"x")
    web.answers |= {"/models/m/": links("config", "1/"), "/models/m/1/": links("model.bin"), "/models/m/1/model.bin": b"y" * 100}
    copy = site.copy("m", site.stamps("m") or {})
    asked, over = threading.Event(), threading.Event()

    def hang(page: Page) -> None:
        page.send_response(200)
        page.send_header("Content-Length", "100")
        page.end_headers()
        page.wfile.write(b"y")
        page.wfile.flush()
        asked.set()
        over.wait(60)

    web.answers[path] = hang
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(copy.fill, [1]) if path.endswith("bin") else thread.submit(site.stamps, "m")
        try:
            assert asked.wait(20)
            site.stop()
            # well before the store would be given up
            failed = waiting.exception(20)
        finally:
            over.set()
    assert isinstance(failed, StatusError) and failed.message == "the download was broken off"
    with pytest.raises(StatusError, match="^the download was broken off$"):
        site.model_names()
