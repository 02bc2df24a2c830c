"""A repository on a web server: folders are pages with links, as Apache, nginx and Python's http.server write them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from ...workers.contract.status import internal
from .cloud_driver import download
from .cloud_failure import is_missing
from .cloud_store import MAX_FILES, Mark, Store, checked_name, mark_of, merged

MAX_DEPTH = 32
"""Folders nested deeper than this are links that go in a circle."""

MAX_PAGE_BYTE_SIZE = 32 << 20
"""A page of a folder with ``MAX_FILES`` files is shorter."""

CONNECTIONS = 8


class HttpStore(Store):
    """A ``Store`` that follows links to what lies right below a page, and no others: never up, sideways, or to another host."""

    def folders(self) -> list[str]:
        """The names of the folders at the address, in no order."""
        what = f"list {self.address.name}"
        links = self.attempt(what, lambda filesystem: _links(filesystem, self.address.root))
        return [name for name, folder in links if folder]

    def files(self, folder: str) -> dict[str, Mark | None] | None:
        """As in ``Store``: one request for each page, and one for each file."""
        what = f"list {self.address.name} for '{folder}'"
        root = self._url(folder, "")

        def top(filesystem: Any) -> list[tuple[str, bool]] | None:
            try:
                return _links(filesystem, root)
            except FileNotFoundError as error:
                if is_missing(error):
                    return None
                raise

        first = self.attempt(what, top)
        if first is None:
            return None
        found: dict[str, Mark | None] = {}
        for name in self._walk(what, folder, "", first, 0):
            found[name] = None
            if len(found) > MAX_FILES:
                raise internal(f"failed to {what}: more than {MAX_FILES} files")
        marks = self.marks(folder, [name for name in found if not name.endswith("/")])
        # A link may lead to nothing; what is there counts.
        return merged((name, marks.get(name)) for name in found if name.endswith("/") or name in marks)

    def marks(self, folder: str, names: list[str]) -> dict[str, Mark | None]:
        """As in ``Store``: one request for each file."""

        def mark(name: str) -> Mark | None:
            what = f"look at '{folder}/{name}' of {self.address.name}"
            return self.attempt(what, lambda filesystem: _mark(filesystem, self._url(folder, name)))

        with ThreadPoolExecutor(CONNECTIONS, "cloud") as threads:
            return {name: found for name, found in zip(names, threads.map(mark, names), strict=True) if found is not None}

    def _walk(self, what: str, folder: str, prefix: str, links: list[tuple[str, bool]], depth: int) -> Iterator[str]:
        for part, is_folder in links:
            name = prefix + _checked_part(part) + ("/" if is_folder else "")
            yield name
            if is_folder:
                if depth == MAX_DEPTH:
                    raise internal(f"failed to {what}: folders are nested more than {MAX_DEPTH} deep")
                below = self.attempt(what, _lister(self._url(folder, name)))
                yield from self._walk(what, folder, name, below, depth + 1)

    def _location(self, filesystem: Any, folder: str, name: str) -> str:
        return self._url(folder, name)

    def _url(self, folder: str, name: str) -> str:
        return f"{self.address.root}{quote(folder, safe='')}/{quote(name, safe='/')}"


def _lister(url: str) -> Callable[[Any], list[tuple[str, bool]]]:
    return lambda filesystem: _links(filesystem, url)


def _mark(filesystem: Any, url: str) -> Mark | None:
    try:
        return mark_of(filesystem.info(url))
    except FileNotFoundError as error:
        if is_missing(error):
            return None
        # The driver says that there is no such file whatever was wrong.
        raise error.__cause__ or error from None


def _links(filesystem: Any, url: str) -> list[tuple[str, bool]]:
    """What a page links to right below it: names, not yet to be trusted, and whether each is a folder."""
    page = _Page()
    page.feed(_text(filesystem, url))
    page.close()
    base = urlsplit(url)
    above = _parts(base.path)[:-1]
    names = []
    for link in page.links:
        try:
            target = urlsplit(urljoin(url, link.strip()))
        except ValueError:
            continue
        parts = _parts(target.path)
        folder = parts[-1] == ""
        below = parts[len(above) : -1 if folder else None]
        here = (target.scheme, target.netloc) == (base.scheme, base.netloc) and parts[: len(above)] == above
        if here and len(below) == 1 and not target.query:
            names.append((below[0], folder))
    return list(dict.fromkeys(names))


def _text(filesystem: Any, url: str) -> str:
    def received(byte_size: int) -> None:
        if byte_size > MAX_PAGE_BYTE_SIZE:
            raise internal(f"a page of {url} is longer than {MAX_PAGE_BYTE_SIZE >> 20} MiB")

    content = io.BytesIO()
    download(filesystem, url, content, received)
    return content.getvalue().decode(errors="replace")


def _parts(path: str) -> list[str]:
    return [unquote(part, errors="surrogateescape") for part in path.split("/")]


def _checked_part(name: str) -> str:
    if "/" in name:
        raise internal(f"the name {ascii(name[:300])} cannot be given to a file")
    return checked_name(name)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links.extend(value for name, value in attrs if name == "href" and value)
