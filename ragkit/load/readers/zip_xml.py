"""Zip packages of XML: what office files and e-books are made of, read with care.

Bytes are counted while they are inflated, never as the package declares them. XML is parsed by lxml without entities,
network, DTDs from elsewhere or trees deeper than libxml2's own limit. Names inside a package are only looked up, never
written anywhere.
"""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from ragkit.core.errors import EncryptedDocument, LoadError, MissingExtra, UnsupportedFormat
from ragkit.load.limits import Budget, Options

Element = Any  # lxml.etree._Element: naming the type would import lxml, which not every installation has

_PIECE = 1 << 18  # bytes inflated at a time
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
ENCRYPTED = "it is encrypted; save it without a password"
ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")


class Package:
    """An open package. Raise EncryptedDocument, LimitExceeded or LoadError."""

    def __init__(self, data: bytes, options: Options) -> None:
        if data.startswith(_OLE):
            if ENCRYPTED_PACKAGE in data:
                raise EncryptedDocument(ENCRYPTED)
            raise UnsupportedFormat("the binary format from before 2007 is not read; save the file in the format of today")
        try:
            self._zip = zipfile.ZipFile(BytesIO(data))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
            raise LoadError(f"it is not a package of this kind, or it is damaged: {error}") from None
        self._budget = options.budget or Budget(options.limits.inflated_bytes)
        self._names = set(self._zip.namelist())

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self) -> list[str]:
        """Return the names of the parts, in the order of the package's directory."""
        return self._zip.namelist()

    def read(self, name: str) -> bytes:
        """Return a part's bytes. Raise LoadError where it is missing or damaged."""
        return b"".join(self._pieces(name))

    def measure(self) -> None:
        """Inflate every part to count its bytes, and keep none: for parsers that open the package by themselves."""
        for name in self.names():
            for _ in self._pieces(name):
                pass

    def _pieces(self, name: str) -> Iterator[bytes]:
        try:
            with self._zip.open(name) as part:
                while piece := part.read(_PIECE):
                    self._budget.take(len(piece))
                    yield piece
        except KeyError:
            raise LoadError(f"it has no part {name!r}") from None
        except RuntimeError as error:  # zipfile's word for a part that needs a password
            raise EncryptedDocument(f"it is encrypted: {error}") from None
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
            raise LoadError(f"its part {name!r} is damaged: {error}") from None

    def xml(self, name: str) -> Element:
        """Return the root element of a part."""
        return parse_xml(self.read(name), name)

    def relations(self, part: str) -> dict[str, tuple[str, str]]:
        """Return what a part of an Office Open XML package refers to: id to (last word of the type, name of the target part)."""
        folder, name = posixpath.split(part)
        path = posixpath.join(folder, "_rels", name + ".rels")
        if path not in self:
            return {}
        relations = {}
        for relation in self.xml(path):
            if not isinstance(relation.tag, str) or relation.get("TargetMode") == "External":
                continue
            target = relation.get("Target", "")
            target = target.lstrip("/") if target.startswith("/") else posixpath.normpath(posixpath.join(folder, target))
            relations[relation.get("Id", "")] = (relation.get("Type", "").rpartition("/")[2], target)
        return relations

    def related(self, part: str, kind: str) -> list[str]:
        """Return the parts of one kind that a part refers to and the package has."""
        return [target for type_, target in self.relations(part).values() if type_ == kind and target in self]


def parse_xml(data: bytes, name: str) -> Element:
    """Return the root element of an XML document. Raise LoadError where it is malformed or declares entities."""
    try:
        from lxml import etree
    except ImportError:
        raise UnsupportedFormat(str(MissingExtra.of("lxml", "office", "reading office files and e-books"))) from None
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise LoadError(f"its part {name!r} is not well-formed XML: {error}") from None
    dtd = root.getroottree().docinfo.internalDTD
    if dtd is not None and any(True for _ in dtd.iterentities()):
        raise LoadError(f"its part {name!r} declares entities, which are refused: a few of them unfold into gigabytes")
    return root


def local(element: Element) -> str:
    """Return an element's name without its namespace: the strict and the transitional form of a format differ only there."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def attribute(element: Element, name: str, default: str = "") -> str:
    """Return the value of an attribute, by its name without the namespace."""
    if name in element.attrib:
        return str(element.attrib[name])
    for key, value in element.attrib.items():
        if key.rpartition("}")[2] == name:
            return str(value)
    return default


def child(element: Element | None, *path: str) -> Element | None:
    """Return the first descendant along a path of names, or None."""
    for name in path:
        if element is None:
            return None
        element = next((inner for inner in element if local(inner) == name), None)
    return element


def children(element: Element | None, name: str) -> list[Element]:
    return [] if element is None else [inner for inner in element if local(inner) == name]


def descendants(element: Element, name: str) -> Iterator[Element]:
    return (inner for inner in element.iter() if local(inner) == name)


def has_descendant(element: Element, name: str) -> bool:
    return next(descendants(element, name), None) is not None


def main_part(package: Package, default: str, what: str) -> str:
    """Return the name of an Office Open XML package's main part. Raise LoadError where the package has none."""
    parts = package.related("", "officeDocument") or [name for name in (default,) if name in package]
    if not parts:
        raise LoadError(f"the package holds no {what}")
    return parts[0]


def core_properties(package: Package) -> dict[str, str]:
    """Return what an Office Open XML package states of its title, author, dates, language and keywords."""
    parts = package.related("", "core-properties") or [name for name in ("docProps/core.xml",) if name in package]
    if not parts:
        return {}
    names = {
        "title": "title",
        "creator": "author",
        "created": "created",
        "modified": "modified",
        "language": "lang",
        "subject": "subject",
        "keywords": "keywords",
        "description": "description",
    }
    properties = {}
    for element in package.xml(parts[0]):
        if (name := names.get(local(element))) and (value := (element.text or "").strip()):
            properties[name] = value
    return properties
