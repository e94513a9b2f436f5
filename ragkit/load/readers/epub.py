"""E-books (EPUB 2 and 3): the chapters in reading order, each read as HTML, so that headings, lists and tables survive."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ragkit.core.errors import EncryptedDocument, LoadError
from ragkit.core.types import Document
from ragkit.load.builder import DocumentBuilder
from ragkit.load.decode import decode
from ragkit.load.limits import Options
from ragkit.load.readers import html
from ragkit.load.readers.zip_xml import Package, attribute, child, children, descendants, local

_CHAPTERS = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
_META = {
    "title": "title",
    "creator": "author",
    "language": "lang",
    "date": "created",
    "subject": "keywords",
    "publisher": "publisher",
    "identifier": "identifier",
    "description": "description",
}


def load(path: Path, options: Options) -> Iterator[Document]:
    """The one Document of an .epub file."""
    package = Package(path.read_bytes(), options)
    if "META-INF/container.xml" not in package:
        raise LoadError("the package holds no e-book")
    locked = _locked(package)
    rootfile = next(descendants(package.xml("META-INF/container.xml"), "rootfile"), None)
    main = "" if rootfile is None else attribute(rootfile, "full-path")
    root = package.xml(main)
    folder = posixpath.dirname(main)
    items = {attribute(one, "id"): one for one in children(child(root, "manifest"), "item")}
    meta = _meta(root)
    builder = DocumentBuilder(options.limits)
    for reference in children(child(root, "spine"), "itemref"):
        item = items.get(attribute(reference, "idref"))
        if item is None or attribute(item, "media-type") not in _CHAPTERS:
            continue
        name = posixpath.normpath(posixpath.join(folder, unquote(attribute(item, "href"))))
        if name in locked:
            raise EncryptedDocument("its chapters are encrypted")
        if name in package:
            builder.include(html.parse(decode(package.read(name))))
    title = meta.pop("title", "")
    yield builder.document(title=title, meta=meta)


def _locked(package: Package) -> set[str]:
    """The parts that are encrypted: chapters where a shop locked the book, often only fonts."""
    name = "META-INF/encryption.xml"
    if name not in package:
        return set()
    return {unquote(attribute(one, "URI")) for one in descendants(package.xml(name), "CipherReference")}


def _meta(root: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in child(root, "metadata") if child(root, "metadata") is not None else ():
        value = (one.text or "").strip()
        if (name := _META.get(local(one))) and value:
            several = name in ("author", "keywords") and name in found
            found[name] = f"{found[name]}, {value}" if several else found.get(name, value)
        elif attribute(one, "property") == "dcterms:modified" and value:
            found["modified"] = value
    return found
