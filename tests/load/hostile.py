"""Files made to hurt whoever reads them, by our own hand and always the same: what `make hostile` feeds to the sandbox.

`cases(count)` gives them: every family at each of its sizes once, then truncations of good files at every kilobyte and half of
it, then good and hostile files with bytes changed, as many as are asked for. Nothing here is from anywhere else.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice

from tests.load.rawpdf import FONT, Objects, bomb, pdf, show, simple, stream

MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """A file to be: its name's beginning, its suffix, its bytes."""

    name: str
    suffix: str
    data: bytes


@cache
def zeros(size: int, byte: bytes = b"\0") -> bytes:
    """`size` equal bytes, deflated: a thousandth of it."""
    packer = zlib.compressobj(9)
    piece = byte * MB
    return b"".join([*(packer.compress(piece) for _ in range(size // MB)), packer.flush()])


def _deflated(size: int, head: bytes = b"", *, byte: bytes = b"\0", again: int = 0) -> bytes:
    body = zeros(size, byte)
    for _ in range(again):
        body = zlib.compress(body, 9)
    filters = b" ".join([b"/FlateDecode"] * (again + 1))
    return b"<< /Length %d /Filter [%s] %s >>\nstream\n" % (len(body), filters, head) + body + b"\nendstream"


# PDF


def pdf_forms(depth: int, fan: int) -> bytes:
    return bomb([show(b"one"), show(b"two")], at=1, depth=depth, fan=fan)


def pdf_form_itself() -> bytes:
    form = stream(
        b"/X0 Do " + show(b"again"), b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X0 100 0 R >> >>"
    )
    return pdf(simple([b"/X0 Do"], resources=b"/XObject << /X0 100 0 R >>", more={100: form}))


def pdf_flate(size: int, byte: bytes, again: int) -> bytes:
    objects = simple([show(b"one"), b""])
    return pdf(objects | {13: _deflated(size, byte=byte, again=again)})


def pdf_image(width: int, height: int, bits: int, filters: bytes) -> bytes:
    head = b"/Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceGray /BitsPerComponent %d" % (
        width,
        height,
        bits,
    )
    image = _deflated(64 * MB, head) if not filters else stream(b"\0" * 64, head + b" /Filter " + filters)
    content = b"3 Tr " + show(b"under it") + b"q 400 0 0 600 0 0 cm /I Do Q"  # invisible text: the page is looked at
    return pdf(simple([content], resources=b"/XObject << /I 100 0 R >>", more={100: image}))


def pdf_size(box: bytes) -> bytes:
    objects = simple([b"1 g " + show(b"white") + b"0 g " + show(b"a word", y=20)])
    objects[10] = objects[10].replace(b"[0 0 400 600]", box)
    return pdf(objects)


def pdf_count(count: bytes) -> bytes:
    objects = simple([show(b"one")])
    objects[2] = b"<< /Type /Pages /Count %s /Kids [10 0 R] >>" % count
    return pdf(objects)


def pdf_tree(kind: str) -> bytes:
    """Page trees with loops, and one whose leaves are shared until there are 10⁹."""
    objects = simple([show(b"one")])
    node = b"<< /Type /Pages /Count %d /Kids [%s] >>"
    if kind == "cycle":
        objects[2] = node % (5, b"10 0 R 2 0 R")
    elif kind == "parents":
        objects[10] = objects[10].replace(b"/Parent 2 0 R", b"/Parent 10 0 R").replace(b"/MediaBox [0 0 400 600]", b"")
    elif kind == "shared":
        for level in range(9):
            child = 101 + level if level < 8 else 10
            objects[100 + level] = node % (10 ** (9 - level), b"%d 0 R " % child * 10)
        objects[2] = node % (10**9, b"100 0 R")
    elif kind == "deep":
        for level in range(20_000):
            objects[100 + level] = node % (1, b"%d 0 R" % (101 + level if level < 19_999 else 10))
        objects[2] = node % (1, b"100 0 R")
    elif kind == "wide":
        objects[2] = node % (100_000, b"10 0 R " * 100_000)
    return pdf(objects)


def pdf_nested(kind: bytes, count: int) -> bytes:
    """Brackets within brackets, in a content stream and in an object."""
    close = {b"[": b"]", b"<<": b">>", b"(": b")", b"q ": b"Q ", b"BT ": b"ET "}[kind]
    objects = simple([show(b"one"), kind * count + show(b"two") + close * count])
    if kind in (b"[", b"(", b"<<"):
        key = b"/A " if kind == b"<<" else b""
        objects[4] = (kind + key) * count + close * count
    return pdf(objects)


def pdf_text(kind: str) -> bytes:
    content = {
        "long word": b"BT /F1 11 Tf 50 500 Td (" + b"a" * 2_000_000 + b") Tj ET",
        "pile": show(b"word ") * 20_000,
        "letters": b"BT /F1 11 Tf 50 500 Td " + b"(a) Tj 3 0 Td " * 60_000 + b" ET",
        "huge": b"BT /F1 1000000000 Tf 50 500 Td (big) Tj ET",
        "tiny": b"BT /F1 0.0000001 Tf 50 500 Td (small) Tj ET",
        "far": b"BT /F1 11 Tf 1e30 -1e30 Td (far away) Tj ET",
        "nothing": b"BT /F1 11 Tf 0 0 0 0 0 0 Tm (flat) Tj ET",
        "slanted": b"".join(
            b"BT /F1 9 Tf %.3f %.3f -%.3f %.3f 200 300 Tm (turned about) Tj ET\n" % (c, s, s, c) for c, s in _angles()
        ),
        "spaces": b"BT /F1 11 Tf 50 500 Td (" + b" " * 1_000_000 + b"x) Tj ET",
        "grid": b"".join(show(b"%d" % n, x=n % 80 * 5, y=n // 80 * 2, size=2) for n in range(24_000)),
    }[kind]
    return pdf(simple([content, show(b"and then")]))


def _angles() -> Iterator[tuple[float, float]]:
    for n in range(720):
        z = complex(0.9999619230641713, 0.008726535498373935) ** n  # half a degree each
        yield z.real, z.imag


def pdf_font(kind: str) -> bytes:
    """Fonts that map letters to what nobody expects."""
    ranges = {
        "huge": b"1 beginbfrange <00000000> <FFFFFFFF> <0041> endbfrange",
        "long": b"1 beginbfchar <61> <" + b"0041" * 50_000 + b"> endbfchar",
        "bidi": b"1 beginbfrange <20> <7E> <202A> endbfrange",
        "surrogates": b"1 beginbfrange <20> <7E> <D800> endbfrange",
        "controls": b"1 beginbfrange <20> <7E> <0000> endbfrange",
        "blanks": b"1 beginbfrange <20> <7E> <2000> endbfrange",
        "marks": b"1 beginbfrange <20> <7E> <0300> endbfrange",
        "Arabic": b"1 beginbfrange <20> <7E> <FE70> endbfrange",
        "Han": b"1 beginbfrange <20> <7E> <4E00> endbfrange",
        "Thai": b"1 beginbfrange <20> <7E> <0E30> endbfrange",
    }
    if kind == "itself":
        font = b"<< /Type /Font /Subtype /Type3 /FontBBox [0 0 1 1] /FontMatrix [1 0 0 1 0 0] /CharProcs << /a 100 0 R >> "
        font += b"/Encoding << /Differences [97 /a] >> /FirstChar 97 /LastChar 97 /Widths [1] "
        font += b"/Resources << /Font << /F1 3 0 R >> >> >>"
        more: Objects = {3: font, 100: stream(b"1 0 d0 " + show(b"aaaaaaaa"))}
    else:
        cmap = b"/CMapType 2 def 1 begincodespacerange <00> <FF> endcodespacerange " + ranges[kind]
        more = {3: FONT.replace(b">>", b"/ToUnicode 100 0 R >>"), 100: stream(cmap)}
    return pdf(simple([show(b"some words in a font", y=100 + 20 * n) for n in range(3)]) | dict(more))


def pdf_loop(kind: str) -> bytes:
    """Everything else that can point at itself."""
    objects = simple([show(b"one")])
    catalog = {
        "outline": b"/Outlines 100 0 R",
        "labels": b"/PageLabels 100 0 R",
        "names": b"/Names << /Dests 100 0 R >>",
        "fields": b"/AcroForm << /Fields [100 0 R] >>",
    }.get(kind, b"")
    objects[1] = b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog
    bodies = {
        "outline": b"<< /First 100 0 R /Last 100 0 R /Next 100 0 R /Parent 100 0 R /Title (x) /Dest [10 0 R /Fit] /Count 9 >>",
        "labels": b"<< /Kids [100 0 R 100 0 R] /Limits [0 9] /Nums [0 << /S /D /St -999999999999 >> 1 << /P (x) >>] >>",
        "names": b"<< /Kids [100 0 R] /Limits [(a) (z)] >>",
        "fields": b"<< /FT /Tx /T (x) /Parent 100 0 R /Kids [100 0 R] /Type /Annot /Subtype /Widget /Rect [0 0 9 9] >>",
        "annotations": b"<< /Type /Annot /Subtype /Text /Contents (x) /Rect [1e9 1e9 -1e9 0] /Popup 100 0 R /Parent 100 0 R >>",
        "length": b"<< /Length 100 0 R >>\nstream\nx\nendstream",
        "object": b"100 0 R",
    }
    objects[100] = bodies[kind]
    annotated = kind in ("fields", "annotations")
    objects[10] = objects[10].replace(b"/MediaBox", b"/Annots [%s] /MediaBox" % (b"100 0 R " * 500)) if annotated else objects[10]
    if kind == "length":
        objects[11] = objects[100]
    trailer = {"object": b"/Info 100 0 R /Prev 0", "previous": b"/Prev 9"}.get(kind, b"")
    return pdf(objects, trailer=trailer)


def pdf_encrypted(revision: int, bits: int) -> bytes:
    entry = b"/Encrypt << /Filter /Standard /V %d /R %d /Length %d /P -4 /O (%s) /U (%s) >> /ID [(a) (b)]"
    return pdf(simple([show(b"hush")]), trailer=entry % (min(revision, 5), revision, bits, b"x" * 32, b"y" * 32))


# Markup and text


def html_nested(tag: str, depth: int) -> bytes:
    return b"<html><body>" + f"<{tag}>".encode() * depth + b"deep" + f"</{tag}>".encode() * depth


HTML = {
    "attributes": b"<p " + b"a=b " * 500_000 + b">one</p>",
    "entities": b"<p>" + b"&amp;&#x202e;&#0;&bogus;" * 200_000,
    "comment": b"<p>one</p><!--" + b"-" * 2_000_000,
    "cells": b"<table>" + b"<tr>" + b"<td colspan=1000000 rowspan=1000000>x" * 20_000,
    "script": b"<script>" + b"if (a < b) </scr" * 100_000,
    "charset": b"<meta charset='utf-7'><meta charset='nonsense'><p>+ADw-script+AD4- \xff\xfe\xff",
    "select": b"<select>" + b"<option>" * 300_000,
}
MARKDOWN = {
    "quotes": b">" * 200_000 + b" deep",
    "lists": b"".join(b" " * n + b"- item\n" for n in range(1500)),
    "brackets": b"[" * 50_000 + b"x" + b"](y)" * 50_000,
    "emphasis": b"*a_" * 50_000,
    "ticks": b"".join(b"`" * n + b" " for n in range(1200)),
    "table": b"|a" * 5000 + b"|\n" + b"|-" * 5000 + b"|\n" + b"|x" * 200_000,
    "references": b"".join(b"[a%d]: b\n" % n for n in range(20_000)) + b"[a1]" * 20_000,
}
ENCODINGS = {
    "random": random.Random(1).randbytes(300_000),
    "odd utf-16": "wide words ".encode("utf-16")[:-1],
    "utf-32": ("wide words " * 999).encode("utf-32"),
    "surrogates": b"a\xed\xa0\x80b\xed\xbf\xbf" * 999,
    "overlong": b"\xc0\xaf\xe0\x80\xaf\xf0\x80\x80\xaf" * 999,
    "nul": b"\0" * 500_000 + b"end",
    "bidi": "\u202e\u2066abc\u2069\u202c\u200f".encode() * 20_000,
    "zero width": "a\u200b\u200d\u2060\ufeff".encode() * 50_000,
    "marks": ("e" + "\u0301" * 200_000).encode(),
    "one line": b"word" * 1_000_000,
    "line ends": b"\r\n\x0b\x0c\x1c\x85\xe2\x80\xa8" * 99_999,
    "escape": b"\x1b[31m\x1b]0;title\x07\x9b" * 9999,
    "iso-2022": b"\x1b$B" + b"\x21" * 99_999,
}
LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
XML_BOMBS = {
    "laughs": f'<!DOCTYPE x [<!ENTITY a0 "ha">{LAUGHS}]><x>&a9;</x>'.encode(),
    "quadratic": b'<!DOCTYPE x [<!ENTITY a "' + b"a" * 100_000 + b'">]><x>' + b"&a;" * 100_000 + b"</x>",
    "outside": b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
    "nested": b"<x>" * 300_000,
    "attributes": b"<x " + b"".join(b'a%d="b" ' % n for n in range(99_999)) + b"/>",
}
STRUCTURED: dict[str, tuple[str, bytes]] = {
    "nested lists": (".json", b"[" * 500_000),
    "nested objects": (".json", b'{"a":' * 200_000),
    "long number": (".json", b"[" + b"9" * 1_000_000 + b"]"),
    "not numbers": (".json", b'{"a": [NaN, Infinity, -Infinity, 1e999]}'),
    "same keys": (".json", b"{" + b'"a":1,' * 300_000 + b'"a":2}'),
    "nested records": (".jsonl", b'{"text": "x", "meta": ' + b'{"a":' * 9000 + b"\n" + b'{"text": "fine"}\n'),
    "one record": (".jsonl", b'{"text": "' + b"a" * 8_000_000 + b'"}'),
    "yaml laughs": (
        ".yaml",
        "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'ha'}]\n" for n in range(10)).encode(),
    ),
    "yaml nested": (".yaml", b"[" * 20_000),
    "yaml object": (".yaml", b"!!python/object/apply:os.system ['true']"),
    "columns": (".csv", b"a," * 500_000 + b"\n" + b"b," * 500_000),
    "quote": (".csv", b'a,b\n"' + b"x," * 1_000_000),
    "rows": (".tsv", b"a\tb\n" * 300_000),
    "notebook": (".ipynb", b'{"cells": [' + b'{"cell_type": "markdown", "source": ["x"]},' * 50_000 + b"{}]}"),
    "notebook of nothing": (".ipynb", b'{"cells": {"a": [null, 3, {"source": {"b": 1}}]}}'),
    "rtf nested": (".rtf", b"{\\rtf1 " + b"{\\b " * 200_000),
    "rtf binary": (".rtf", b"{\\rtf1 {\\pict\\bin999999999 xx}}"),
    "rtf unicode": (".rtf", b"{\\rtf1 \\uc9999999 " + b"\\u-99999?" * 50_000 + b"}"),
    "times": (".srt", b"1\n99:99:99,999 --> 00:00:00,000\nwords\n\n" * 50_000),
    "cues": (".vtt", b"WEBVTT\n\n" + b"<c.a><v b>" * 50_000),
    "rst": (".rst", b"".join(b"%s\n%s\n" % (b"x" * 9, b"=" * n) for n in range(900)) + b".. a::\n" * 9999),
    "adoc": (".adoc", b"=" * 99_999 + b" x\n" + b"|===\n" * 9999),
    "tex": (".tex", b"\\begin{a}" * 50_000 + b"$" * 50_001 + b"{" * 50_000),
    "python": (".py", b"(" * 100_000),
    "xml laughs": (".xml", XML_BOMBS["laughs"]),
}


# Archives, packages, mail


def zipped(members: list[tuple[str, bytes]], *, declared: int | None = None) -> bytes:
    """A zip; `declared`: the size each member claims to unpack to."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    data = bytearray(out.getvalue())
    if declared is not None:
        for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            start = data.find(mark)
            while start >= 0:
                data[start + at : start + at + 4] = struct.pack("<I", declared)
                start = data.find(mark, start + 1)
    return bytes(data)


@cache
def zip_bomb(size: int) -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("big.txt", "w", force_zip64=True) as file,
    ):
        for _ in range(size // MB):
            file.write(b"a" * MB)
    return out.getvalue()


def zip_within(depth: int, suffix: str = ".zip") -> bytes:
    data = b"the innermost"
    name = "a.txt"
    for level in range(depth):
        data, name = zipped([(name, data)]), f"{level}{suffix}"
    return data


TRAVERSAL = [
    "../../up.txt",
    "/etc/up.txt",
    "C:\\up.txt",
    "..\\up.txt",
    "a/../../up.txt",
    "nul\0.txt",
    "a" * 4000 + ".txt",
    "",
    "\u202etxt.a",
]


def zip_names() -> bytes:
    return zipped([(name or "x.txt", b"somewhere else") for name in TRAVERSAL] + [("same.txt", b"one"), ("same.txt", b"two")])


def zip_many(count: int) -> bytes:
    return zipped([(f"{n}.txt", b"x") for n in range(count)])


def tar_of(kind: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in TRAVERSAL:
            member = tarfile.TarInfo((name.replace("\0", "") or "y.txt")[:200])
            member.size = 4
            archive.addfile(member, io.BytesIO(b"else"))
        for kind_of, target in (
            (tarfile.SYMTYPE, "/etc/passwd"),
            (tarfile.LNKTYPE, "link.txt"),
            (tarfile.CHRTYPE, ""),
            (tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo("link.txt")
            member.type, member.linkname = kind_of, target
            archive.addfile(member)
    data = out.getvalue()
    if kind == "size":
        data = data[:124] + b"\x80" + b"\xff" * 11 + data[136:]
    return {"gz": gzip.compress, "bz2": bz2.compress}.get(kind, bytes)(data)


PARTS = {
    ".docx": (
        "word/document.xml",
        '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">{}</w:document>',
    ),
    ".xlsx": (
        "xl/worksheets/sheet1.xml",
        '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">{}</worksheet>',
    ),
    ".pptx": ("ppt/slides/slide1.xml", "<p>{}</p>"),
    ".odt": ("content.xml", "<office>{}</office>"),
    ".ods": ("content.xml", "<office>{}</office>"),
    ".epub": ("META-INF/container.xml", "<container>{}</container>"),
}
TYPES = (
    b'<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    b'<Default Extension="xml" ContentType="text/xml"/></Types>'
)


def package(suffix: str, kind: str) -> bytes:
    """An office file whose chief part is an XML bomb, or a gigabyte of blanks, or missing."""
    name, shell = PARTS[suffix]
    if kind == "empty":
        return zipped([("[Content_Types].xml", TYPES)])
    if kind == "bomb":
        return zip_bomb(300 * MB).replace(b"big.txt", name[:7].encode())
    body = XML_BOMBS[kind] if kind in XML_BOMBS else shell.format("<w:p>" * 200_000).encode()
    return zipped([("[Content_Types].xml", TYPES), (name, body), ("mimetype", b"application/x")])


def mail(kind: str) -> bytes:
    head = b"From: a@example.org\nTo: b@example.org\nSubject: hello\n"
    return {
        "parts": head + b"".join(b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (n, n) for n in range(3000)),
        "messages": head + b"Content-Type: message/rfc822\n\n" * 3000,
        "headers": head + b"".join(b"X-%d: %s\n" % (n, b"y" * 90) for n in range(40_000)) + b"\nbody",
        "subject": b"Subject: " + b"=?utf-8?b?4oCu?= " * 50_000 + b"\n\nbody",
        "charset": head + b'Content-Type: text/plain; charset="\xff../nonsense"\n\n\xff\xfe body',
        "base64": head + b"Content-Transfer-Encoding: base64\n\n" + b"=A*" * 200_000,
        "name": head + b'Content-Type: application/pdf\nContent-Disposition: attachment; filename="../../up.pdf"\n\n%PDF-1.7',
        "dates": b"Date: " + b"(" * 50_000 + b"\n\nbody",
    }[kind]


def png(width: int, height: int, *, bits: int = 8, data: bytes | None = None) -> bytes:
    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zeros(64 * MB) if data is None else data) + part(b"IEND", b"")
    )


IMAGES: dict[str, tuple[str, bytes]] = {
    "gif": (
        ".gif",
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0) + b"\0" * 768 + b",\0\0\0\0\xff\xff\xff\xff\0\x08\x01\x01;",
    ),
    "bmp": (".bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)),
    "tiff": (
        ".tif",
        b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIIHHII", 256, 4, 1, 10**9, 257, 4, 1, 10**9) + struct.pack("<I", 8),
    ),
    "jpeg": (".jpg", b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\x01\x03\x11\x01" + b"\xff\xd9"),
    "webp": (".webp", b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0/\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
}


# All of it

Maker = Callable[[], bytes]


def families() -> Iterator[tuple[str, str, Maker]]:
    """Name, suffix and maker of each hostile file."""
    for depth, fan in ((5, 5), (6, 8), (9, 12), (30, 2), (60, 2), (500, 1)):
        yield f"forms {depth} {fan}", ".pdf", partial(pdf_forms, depth, fan)
    yield "form in itself", ".pdf", pdf_form_itself
    for size in (16 * MB, 256 * MB):
        for byte in (b"\0", b" ", b"q", b"("):
            for again in (0, 1):
                yield f"flate {size} {byte!r} {again}", ".pdf", partial(pdf_flate, size, byte, again)
    for width, height, bits in (
        (20_000, 20_000, 8),
        (20_000, 20_000, 1),
        (2**31 - 1, 1, 8),
        (0, 5, 8),
        (65_000, 65_000, 16),
        (-5, 7, 8),
    ):
        for filters in (b"", b"/DCTDecode", b"/JPXDecode", b"/CCITTFaxDecode", b"/JBIG2Decode", b"[/ASCII85Decode /LZWDecode]"):
            yield f"image {width}x{height}x{bits} {filters!r}", ".pdf", partial(pdf_image, width, height, bits, filters)
    for box in (
        b"[0 0 200000 200000]",
        b"[0 0 1e9 1e9]",
        b"[0 0 0 0]",
        b"[400 600 0 0]",
        b"[0 0 1e-9 1e9]",
        b"[/a /b]",
        b"[0 0 1e39 1e39]",
        b"[]",
    ):
        yield f"page {box!r}", ".pdf", partial(pdf_size, box)
    for count in (b"1000000000", b"-1", b"2147483648", b"(x)", b"2 0 R", b"1e9", b"99"):
        yield f"count {count!r}", ".pdf", partial(pdf_count, count)
    for kind in ("cycle", "parents", "shared", "deep", "wide"):
        yield f"tree {kind}", ".pdf", partial(pdf_tree, kind)
    for bracket in (b"[", b"<<", b"(", b"q ", b"BT "):
        for number in (400, 100_000):
            yield f"nested {bracket!r} {number}", ".pdf", partial(pdf_nested, bracket, number)
    for kind in ("long word", "pile", "letters", "huge", "tiny", "far", "nothing", "slanted", "spaces", "grid"):
        yield f"text {kind}", ".pdf", partial(pdf_text, kind)
    for kind in ("itself", "huge", "long", "bidi", "surrogates", "controls", "blanks", "marks", "Arabic", "Han", "Thai"):
        yield f"font {kind}", ".pdf", partial(pdf_font, kind)
    for kind in ("outline", "labels", "names", "fields", "annotations", "length", "object"):
        yield f"loop {kind}", ".pdf", partial(pdf_loop, kind)
    for revision in (2, 3, 4, 5, 6, 99):
        yield f"encrypted {revision}", ".pdf", partial(pdf_encrypted, revision, 128)
    for tag in ("div", "b", "table", "ul", "a", "blockquote", "svg", "font"):
        for depth in (10_000, 1_000_000):
            yield f"html {tag} {depth}", ".html", partial(html_nested, tag, depth)
    for table, suffix in ((HTML, ".html"), (MARKDOWN, ".md"), (ENCODINGS, ".txt"), (ENCODINGS, ".html"), (XML_BOMBS, ".xml")):
        for name, data in table.items():
            yield f"{suffix[1:]} {name}", suffix, partial(bytes, data)
    for name, (suffix, data) in (STRUCTURED | IMAGES).items():
        yield name, suffix, partial(bytes, data)
    for size in (64 * MB, 1024 * MB):
        yield f"zip of {size}", ".zip", partial(zip_bomb, size)
    for declared in (0, 1, 2**32 - 1):
        yield (
            f"zip declared {declared}",
            ".zip",
            partial(zipped, [("a.txt", b"a" * 5000), ("b.md", b"# b\n" * 99)], declared=declared),
        )
    for depth in (2, 4, 40):
        yield f"zip within {depth}", ".zip", partial(zip_within, depth)
    yield "zip names", ".zip", zip_names
    yield "zip of many", ".zip", partial(zip_many, 3000)
    for kind, suffix in (("", ".tar"), ("size", ".tar"), ("gz", ".tar.gz"), ("bz2", ".tar.bz2")):
        yield f"tar {kind}", suffix, partial(tar_of, kind)
    yield "gzip bomb", ".tar.gz", partial(gzip.compress, b"\0" * 100 * MB)
    for suffix in PARTS:
        for kind in ("empty", "bomb", "deep", *XML_BOMBS):
            yield f"package {kind}", suffix, partial(package, suffix, kind)
    for kind in ("parts", "messages", "headers", "subject", "charset", "base64", "name", "dates"):
        for suffix in (".eml", ".mbox"):
            yield f"mail {kind}", suffix, partial(mail, kind)
    for width, height in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (8000, 8000), (0, 0)):
        yield f"png {width}x{height}", ".png", partial(png, width, height)


@cache
def sound() -> tuple[Case, ...]:
    """Good files to cut and to damage."""
    pages = [
        b"".join(show(b"line %d of page %d says this and that" % (i, n), y=560 - 14 * i) for i in range(36)) for n in range(24)
    ]
    words = "".join(f"## Part {n}\n\n" + "Some words of text, and more of them. " * 20 + "\n\n" for n in range(40))
    rows = "".join(f"{n},name {n},{n * n}\n" for n in range(900))
    return (
        Case("book", ".pdf", pdf(simple(pages))),
        Case("notes", ".md", words.encode()),
        Case(
            "page", ".html", f"<html><body><h1>Title</h1><p>{words}</p><table><tr><td>1</td></tr></table></body></html>".encode()
        ),
        Case("rows", ".csv", rows.encode()),
        Case("records", ".jsonl", "".join(json.dumps({"text": f"record {n}", "id": n}) + "\n" for n in range(300)).encode()),
        Case("archive", ".zip", zipped([("a.md", words.encode()), ("b.csv", rows.encode()), ("c.pdf", pdf(simple(pages[:3])))])),
        Case("letter", ".eml", b"From: a@b.c\nSubject: hello\nContent-Type: text/plain; charset=utf-8\n\n" + words.encode()),
        Case("picture", ".png", png(200, 200, data=zlib.compress(b"\0" * 201 * 200))),
    )


def damaged(case: Case, seed: int) -> Case:
    """A few bytes changed, swapped, doubled or left out."""
    chance = random.Random(seed)
    data = bytearray(case.data)
    for _ in range(chance.choice((1, 3, 20, 200))):
        at = chance.randrange(max(len(data), 1))
        end = min(at + chance.choice((1, 1, 4, 64)), len(data))
        change = chance.randrange(4)
        if change == 0:
            data[at:end] = chance.randbytes(end - at)
        elif change == 1:
            del data[at:end]
        elif change == 2:
            data[at:at] = data[at:end] * chance.choice((1, 50))
        else:
            data[at:end] = chance.choice((b"0", b"9999999999", b"-1", b"<<", b"/Type", b"endobj", b"\0", b"\xff\xff\xff\xff"))
    return Case(f"{case.name} damaged {seed}", case.suffix, bytes(data))


def cases(count: int) -> Iterator[Case]:
    """`count` hostile files, always the same ones."""
    return islice(_endless(), count)


def _endless() -> Iterator[Case]:
    for name, suffix, make in families():
        yield Case(name, suffix, make())
    for case in sound():
        for size in range(0, len(case.data), 512):
            yield Case(f"{case.name} cut at {size}", case.suffix, case.data[:size])
    small = [
        Case(name, suffix, data) for name, suffix, make in families() if "flate" not in name and len(data := make()) < 50_000
    ]
    seed = 0
    while True:
        yield damaged((*sound(), *small)[seed % (len(small) + len(sound()))], seed)
        seed += 1
