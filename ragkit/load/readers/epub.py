"""E-books (EPUB 2 and 3): the chapters in reading order, each read as HTML, so that headings, lists and tables survive."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from ragkit.core.errors import EncryptedDocument, LoadError
from ragkit.core.types import Document, Json
from ragkit.load.builder import DocumentBuilder
from ragkit.load.decode import decode
from ragkit.load.limits import Options
from ragkit.load.readers import html
from ragkit.load.readers.zip_xml import Element, Package, attribute, child, children, descendants, local

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
    """Yield the one Document of an .epub file."""
    package = Package(path.read_bytes(), options)
    if "META-INF/container.xml" not in package:
        raise LoadError("the package holds no e-book")
    locked = _locked(package)
    rootfile = next(descendants(package.xml("META-INF/container.xml"), "rootfile"), None)
    main = "" if rootfile is None else attribute(rootfile, "full-path")
    root = package.xml(main)
    meta = _meta(root)
    builder = DocumentBuilder(options.limits)
    for name in _chapters(root, posixpath.dirname(main)):
        if name in locked:
            raise EncryptedDocument("its chapters are encrypted")
        if name in package:
            builder.include(html.parse(decode(package.read(name))))
    title = meta.pop("title", "")
    yield builder.document(title=title, meta=meta)


def _chapters(root: Element, folder: str) -> Iterator[str]:
    """Yield the names of the parts that are chapters, in reading order."""
    items = {attribute(item, "id"): item for item in children(child(root, "manifest"), "item")}
    for reference in children(child(root, "spine"), "itemref"):
        item = items.get(attribute(reference, "idref"))
        if item is not None and attribute(item, "media-type") in _CHAPTERS:
            yield posixpath.normpath(posixpath.join(folder, unquote(attribute(item, "href"))))


def _locked(package: Package) -> set[str]:
    """Return the parts that are encrypted: chapters where a shop locked the book, often only fonts."""
    name = "META-INF/encryption.xml"
    if name not in package:
        return set()
    return {unquote(attribute(reference, "URI")) for reference in descendants(package.xml(name), "CipherReference")}


def _meta(root: Element) -> Json:
    meta: Json = {}
    metadata = child(root, "metadata")
    for element in () if metadata is None else metadata:
        value = (element.text or "").strip()
        if (name := _META.get(local(element))) and value:
            is_list = name in ("author", "keywords") and name in meta
            meta[name] = f"{meta[name]}, {value}" if is_list else meta.get(name, value)
        elif attribute(element, "property") == "dcterms:modified" and value:
            meta["modified"] = value
    return meta
