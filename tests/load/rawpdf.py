"""PDF files object by object, for what no library would write."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

Objects = Mapping[int, bytes]


def pdf(objects: Objects, *, root: int = 1, trailer: bytes = b"", version: bytes = b"1.7") -> bytes:
    """A PDF of numbered objects, with a true cross-reference table."""
    out = bytearray(b"%PDF-" + version + b"\n%\xe2\xe3\xcf\xd3\n")
    offsets = {}
    for number, body in objects.items():
        offsets[number] = len(out)
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    table = len(out)
    last = max(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % last
    for number in range(1, last):
        out += b"%010d 00000 n \n" % offsets[number] if number in offsets else b"0000000000 00000 f \n"
    out += b"trailer\n<< /Size %d /Root %d 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (last, root, trailer, table)
    return bytes(out)


def stream(content: bytes, head: bytes = b"", *, deflate: int = 0) -> bytes:
    """A stream object; `deflate` times compressed, each with its filter."""
    for _ in range(deflate):
        content = zlib.compress(content, 9)
    filters = b"/Filter [%s]" % b" ".join([b"/FlateDecode"] * deflate) if deflate else b""
    return b"<< /Length %d %s %s >>\nstream\n" % (len(content), filters, head) + content + b"\nendstream"


FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"


def simple(contents: list[bytes], *, page: bytes = b"", resources: bytes = b"", more: Objects | None = None) -> dict[int, bytes]:
    """The objects of a document with one content stream a page: 1 catalog, 2 page tree, 3 font, 10 and on pages and contents."""
    numbers = [10 + 2 * n for n in range(len(contents))]
    kids = b" ".join(b"%d 0 R" % number for number in numbers)
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(contents), kids),
        3: FONT,
    }
    for number, content in zip(numbers, contents, strict=True):
        objects[number] = (
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 600] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> %s >> %s >>" % (number + 1, resources, page)
        )
        objects[number + 1] = stream(content)
    return objects | dict(more or {})


def show(text: bytes, *, x: int = 50, y: int = 500, size: int = 11, before: bytes = b"") -> bytes:
    """Content that shows a line of text."""
    return b"BT %s /F1 %d Tf %d %d Td (%s) Tj ET\n" % (before, size, x, y, text)


def nested_forms(depth: int, fan: int, *, number: int = 100) -> dict[int, bytes]:
    """Form XObjects /X0 to /X{depth-1}, objects `number` and on: each shows the next `fan` times, the last a line of text."""
    objects = {}
    for level in range(depth):
        last = level == depth - 1
        content = show(b"deep", y=300) if last else b"/X%d Do " % (level + 1) * fan
        inner = b"" if last else b"/XObject << /X%d %d 0 R >>" % (level + 1, number + level + 1)
        head = b"/Type /XObject /Subtype /Form /BBox [0 0 400 600] /Resources << /Font << /F1 3 0 R >> %s >>" % inner
        objects[number + level] = stream(content, head)
    return objects


def bomb(pages: list[bytes], *, at: int, depth: int = 9, fan: int = 12) -> bytes:
    """A PDF of a few kilobytes whose page at index `at` shows fan ** (depth - 1) lines of text."""
    contents = [content + (b"/X0 Do" if number == at else b"") for number, content in enumerate(pages)]
    return pdf(simple(contents, resources=b"/XObject << /X0 100 0 R >>", more=nested_forms(depth, fan)))
