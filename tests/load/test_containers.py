"""Mail and archives: files that hold files. Each is a document of its own, and what one is never spoils the others."""

from __future__ import annotations

import io
import tarfile
import warnings
import zipfile
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path

import pytest

from ragkit.core.errors import EncryptedDocument, LoadError, UnsupportedFormat
from ragkit.core.types import Document
from ragkit.load import Limits, Parser
from ragkit.load.readers.archive import plain_name
from tests.load import packages
from tests.load.conftest import source
from tests.load.pages import Text, draw

Results = list[tuple[str, str]]


def read(path: Path, *, password: str | None = None, **limits: int) -> list[Document | LoadError]:
    with Parser(limits=Limits(**limits), password=password) as parser:
        return [result for _, result in parser.parse([source(path)])]


def told(results: Sequence[Document | LoadError]) -> Results:
    """Id and first line of documents, kind and reason of failures."""
    return [(one.id, one.text.split("\n")[0]) if isinstance(one, Document) else (type(one).__name__, str(one)) for one in results]


def letter(subject: str, body: str, **files: bytes) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = subject
    message["From"] = "A. Wader <a@example.org>"
    message["To"] = "b@example.org"
    message["Date"] = "Mon, 20 Jan 2025 10:00:00 +0100"
    message["Message-ID"] = f"<{subject if subject.isascii() else 1}@example.org>"
    message.set_content(body)
    for name, data in files.items():
        message.add_attachment(data, maintype="application", subtype="octet-stream", filename=name.replace("_", "."))
    return message


def test_a_message_and_its_attachments_are_documents(tmp_path: Path) -> None:
    draw(tmp_path / "a.pdf", [[Text("Words of a PDF", 72, 72)]])
    files = {"note_md": b"# Note", "a_pdf": (tmp_path / "a.pdf").read_bytes(), "x_bin": b"1"}
    message = letter("Größe", "Hello,\n\nsee below.\n\n> cited\n\nBye", **files)
    message.add_attachment(letter("Inner", "Within."))
    (tmp_path / "m.eml").write_bytes(message.as_bytes())
    first, *others = read(tmp_path / "m.eml")
    assert isinstance(first, Document)
    assert first.text == (
        'Größe\n\nFrom: "A. Wader" <a@example.org>\nTo: b@example.org\nDate: Mon, 20 Jan 2025 10:00:00 +0100'
        "\n\nHello,\n\nsee below.\n\n> cited\n\nBye"
    )
    assert (first.title, first.mime) == ("Größe", "message/rfc822")
    assert first.meta["created"] == "2025-01-20T10:00:00+01:00"
    assert first.meta["attachments"] == ["note.md", "a.pdf", "x.bin", "message.eml"]
    assert [block.kind for block in first.blocks] == ["heading", "paragraph", "paragraph", "paragraph", "quote", "paragraph"]
    assert told(others) == [
        ("m.eml#note.md", "# Note"),
        ("m.eml#a.pdf", "Words of a PDF"),
        ("UnsupportedFormat", "x.bin: no loader takes this kind of file"),
        ("m.eml#message.eml", "Inner"),
    ]


def test_a_message_of_html_alone_is_read_as_html(tmp_path: Path) -> None:
    message = EmailMessage()
    message["Subject"] = "News"
    message.set_content("<h2>Ducks</h2><script>x()</script><p>quack</p>", subtype="html")
    (tmp_path / "m.eml").write_bytes(message.as_bytes())
    (document,) = read(tmp_path / "m.eml")
    assert isinstance(document, Document)
    assert document.text == "News\n\nDucks\n\nquack"


def test_a_mailbox_holds_messages_known_by_their_ids(tmp_path: Path) -> None:
    box = b""
    for message in (letter("one", "From here\non."), letter("two", "Second.", note_txt=b"attached")):
        box += b"From x Mon Jan 20 10:00:00 2025\n" + message.as_bytes().replace(b"\nFrom here", b"\n>From here") + b"\n"
    path = tmp_path / "box.mbox"
    path.write_bytes(box + b"From y Mon\nnothing: at all\n\n")
    results = read(path)
    assert told(results)[:3] == [
        ("box.mbox#one@example.org", "one"),
        ("box.mbox#two@example.org", "two"),
        ("box.mbox#two@example.org#note.txt", "attached"),
    ]
    assert isinstance(results[0], Document)
    assert results[0].text.endswith("\n\nFrom here\non.")
    path.write_bytes(b"no mailbox\n")
    assert "not a mailbox" in told(read(path))[0][1]


def multipart(kind: str, *parts: str, headers: str = "Subject: S\n") -> bytes:
    body = "".join(f"--B\n{part}\n" for part in parts)
    return f"{headers}MIME-Version: 1.0\nContent-Type: multipart/{kind}; boundary=B\n\n{body}--B--\n".encode()


def test_texts_beside_the_body_are_kept_and_files_without_a_name_get_one(tmp_path: Path) -> None:
    html, plain = "Content-Type: text/html\n\n<p>The message.</p>", "Content-Type: text/plain\n\n"
    nameless = "Content-Type: text/plain\nContent-Disposition: attachment\n\nan attachment"
    (tmp_path / "m.eml").write_bytes(multipart("mixed", html, nameless, plain + "Below it.", plain + "The list's footer."))
    first, attached = read(tmp_path / "m.eml")
    assert isinstance(first, Document)
    assert first.text == "S\n\nThe message.\n\nBelow it.\n\nThe list's footer."
    assert told([attached]) == [("m.eml#attachment.txt", "an attachment")]


def test_of_alternatives_the_plain_text_is_the_body_unless_it_says_nothing(tmp_path: Path) -> None:
    html = "Content-Type: text/html\n\n<p>Rich.</p>"
    for plain, expected in (("Plain.", "Plain."), (" \n", "Rich.")):
        (tmp_path / "m.eml").write_bytes(multipart("alternative", f"Content-Type: text/plain\n\n{plain}", html))
        (document,) = read(tmp_path / "m.eml")
        assert isinstance(document, Document)
        assert document.text == f"S\n\n{expected}"


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_headers_that_are_not_ascii_are_decoded_as_text_is(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "m.eml").write_bytes("Subject: Grüße aus Köln\nFrom: Jörg <j@x>\n\nBody".encode(encoding))
    (document,) = read(tmp_path / "m.eml")
    assert isinstance(document, Document)
    assert (document.title, document.meta["author"]) == ("Grüße aus Köln", "Jörg <j@x>")


def test_messages_of_one_id_are_two_and_failures_name_their_message(tmp_path: Path) -> None:
    letters = [
        b"Message-ID: <1@x.org>\nSubject: a\n\nfirst\n",
        b"Message-ID: <1@x.org>\nSubject: b\n\nother\n",
        b"\nno headers\n",
    ]
    (tmp_path / "box.mbox").write_bytes(b"".join(b"From x Mon Jan 20 10:00:00 2025\n" + one + b"\n" for one in letters))
    assert told(read(tmp_path / "box.mbox")) == [
        ("box.mbox#1@x.org", "a"),
        ("box.mbox#1@x.org (2)", "b"),
        ("LoadError", "message 3: not a message: it has no headers"),
    ]


def test_a_line_of_a_text_that_begins_with_from_begins_no_message(tmp_path: Path) -> None:
    text = b"Subject: a\n\nHello.\n\nFrom here on, all is well.\nBye\n"
    for postmark in (b"From x\n", b"From x@y Mon Jan 20 10:00:00 2025\n", b"From - Mon, 20 Jan 2025 10:00:00 +0100\r\n"):
        (tmp_path / "box.mbox").write_bytes(b"".join(postmark + text + b"\n" for _ in range(2)))
        results = read(tmp_path / "box.mbox")
        assert [one.text for one in results if isinstance(one, Document)] == [
            "a\n\nHello.\n\nFrom here on, all is well.\nBye"
        ] * 2


def archived(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        return packages.zipped(path, dict(files))
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1706702400
            archive.addfile(info, io.BytesIO(data))
    return path


ARCHIVES = ["a.zip", "a.tar", "a.tgz", "a.tar.gz", "a.tar.bz2", "a.tar.xz"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_a_folder_of_documents(tmp_path: Path, name: str) -> None:
    inner = archived(tmp_path / "inner.zip", {"deep.txt": b"deep words"}).read_bytes()
    files = {
        "d/x.txt": b"hello",
        "../../etc/passwd.md": b"# up",
        "C:\\win\\y.txt": b"windows",
        ".hidden.txt": b"no",
        "__MACOSX/z.txt": b"no",
        "q.bin": b"1",
        "inner.zip": inner,
        "r.jsonl": b'{"id": "a", "text": "record"}\nbad\n',
        "broken.docx": b"PK",
        "last.txt": b"last",
    }
    results = told(read(archived(tmp_path / name, files)))
    assert [one for one in results if one[0].startswith(name)] == [
        (f"{name}#d/x.txt", "hello"),
        (f"{name}#etc/passwd.md", "# up"),
        (f"{name}#win/y.txt", "windows"),
        (f"{name}#inner.zip#deep.txt", "deep words"),
        (f"{name}#r.jsonl#a", "record"),
        (f"{name}#last.txt", "last"),
    ]
    failures = [one for one in results if not one[0].startswith(name)]
    assert [kind for kind, _ in failures] == ["UnsupportedFormat", "LoadError", "LoadError"]
    assert [reason.split(":")[0] for _, reason in failures] == ["q.bin", "r.jsonl", "broken.docx"]


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_files_of_one_name_in_an_archive_are_two(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in ("x.txt", "x.txt", "../x.txt"):
                archive.writestr(name, f"in {len(archive.infolist())}")
    else:
        with tarfile.open(path, "w") as archive:
            for number, name in enumerate(("x.txt", "x.txt", "../x.txt")):
                info = tarfile.TarInfo(name)
                info.size = 4
                archive.addfile(info, io.BytesIO(f"in {number}".encode()))
    assert told(read(path)) == [
        (f"a.{suffix}#x.txt", "in 0"),
        (f"a.{suffix}#x (2).txt", "in 1"),
        (f"a.{suffix}#x (3).txt", "in 2"),
    ]


def test_names_in_a_zip_are_utf8_where_they_can_be(tmp_path: Path) -> None:
    path = archived(tmp_path / "a.zip", {"Grüße.txt": b"words"})
    data = bytearray(path.read_bytes())
    for at in (data.find(b"PK\x03\x04") + 7, data.find(b"PK\x01\x02") + 9):
        assert data[at] == 0x08  # the flag that says it
        data[at] = 0
    path.write_bytes(bytes(data))
    assert told(read(path)) == [("a.zip#Grüße.txt", "words")]


def test_source_code_in_an_archive_is_read(tmp_path: Path) -> None:
    (document,) = read(archived(tmp_path / "a.zip", {"pkg/a.py": b"x = 1\n"}))
    assert isinstance(document, Document)
    assert (document.id, document.text, document.meta["language"]) == ("a.zip#pkg/a.py", "x = 1\n", "python")


def test_empty_files_in_an_archive_are_skipped_and_told(tmp_path: Path) -> None:
    path = archived(tmp_path / "a.zip", {"pkg/__init__.py": b"", "pkg/a.txt": b"words"})
    assert told(read(path)) == [("UnsupportedFormat", "pkg/__init__.py: it is empty"), ("a.zip#pkg/a.txt", "words")]


def test_links_in_a_tar_lead_nowhere(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"{kind!r}.txt")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert "holds no file" in told(read(tmp_path / "a.tar"))[0][1]


@pytest.mark.parametrize("name", ARCHIVES)
def test_what_unpacks_to_too_much_stops_there_whatever_it_declares(tmp_path: Path, name: str) -> None:
    path = archived(tmp_path / name, {"a.txt": b"small", "b.txt": b"0" * 3_000_000, "c.txt": b"never reached"})
    results = told(read(path, inflated_bytes=1_000_000))
    assert [kind for kind, _ in results] == [f"{name}#a.txt", "LimitExceeded"]
    results = told(read(path, file_bytes=1_000_000))
    assert [kind for kind, _ in results] == [f"{name}#a.txt", "LimitExceeded", f"{name}#c.txt"]
    assert results[1][1].startswith("b.txt: more than 1000000 bytes")


def test_a_size_that_lies_is_a_damaged_member_and_the_others_are_kept(tmp_path: Path) -> None:
    path = archived(tmp_path / "a.zip", {"a.txt": b"0" * 100_000, "b.txt": b"words"})
    data = bytearray(path.read_bytes())
    for at in (data.find(b"PK\x03\x04") + 22, data.find(b"PK\x01\x02") + 24):
        data[at : at + 4] = (50).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    results = told(read(path))
    assert results[0][0] == "LoadError"
    assert results[0][1].startswith("a.txt: damaged in the archive")
    assert results[1:] == [("a.zip#b.txt", "words")]


def test_archives_within_archives_end_at_the_limit(tmp_path: Path) -> None:
    data = b"words"
    name = "x.txt"
    for depth in range(8):
        data, name = archived(tmp_path / f"{depth}.zip", {name: data}).read_bytes(), f"{depth}.zip"
    ((kind, reason),) = told(read(tmp_path / "7.zip"))
    assert kind == "LimitExceeded"
    assert "more than 4 deep (Limits.nesting)" in reason
    assert [one.text for one in read(tmp_path / "7.zip", nesting=8) if isinstance(one, Document)] == ["words"]


def test_an_archive_cut_short_anywhere_ends_in_documents_and_reasons(tmp_path: Path) -> None:
    cuts = []
    for name in ARCHIVES:
        whole = archived(tmp_path / name, {f"{n}.txt": f"text {n} ".encode() * 30 for n in range(5)}).read_bytes()
        for size in range(1, len(whole.rstrip(b"\0")), max(len(whole) // 12, 1)):
            cuts.append(tmp_path / f"{size}-{name}")
            cuts[-1].write_bytes(whole[:size])
    found: dict[Path, list[Document | LoadError]] = {}
    with Parser(workers=2) as parser:
        for at, result in parser.parse(map(source, cuts)):
            found.setdefault(at.path, []).append(result)
    for path in cuts:
        whole = sum(isinstance(one, Document) for one in found[path]) == 5  # only a checksum at the end is missing
        assert whole or any(isinstance(one, LoadError) and str(one) for one in found[path]), path


def test_an_encrypted_member_asks_for_a_password(tmp_path: Path) -> None:
    path = archived(tmp_path / "a.zip", {"a.txt": b"secret", "b.txt": b"plain"})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag of the first local header, and of the first entry of the directory
    data[data.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))
    results = read(path)
    assert isinstance(results[0], EncryptedDocument)
    assert "it needs a password" in str(results[0])
    assert told(results)[1] == ("a.zip#b.txt", "plain")
    assert "does not open it" in str(read(path, password="x")[0])


def test_an_unsupported_member_is_told_by_its_kind(tmp_path: Path) -> None:
    (result,) = read(archived(tmp_path / "a.zip", {"q.bin": b"1"}))
    assert isinstance(result, UnsupportedFormat)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.txt", "a/b.txt"),
        ("/a/../../b.txt", "a/b.txt"),
        ("..\\..\\b.txt", "b.txt"),
        ("a/.git/b", ""),
        ("a#b.txt", "a_b.txt"),
        ("", ""),
    ],
)
def test_names_are_relative_and_plain(name: str, expected: str) -> None:
    assert plain_name(name) == expected


@pytest.mark.parametrize("name", ["a.zip", "m.eml"])
def test_a_part_that_ends_its_child_costs_that_part_only(tmp_path: Path, name: str) -> None:
    slow = rb"{\rtf1 " + rb"words \par " * 1_000_000 + b"}"  # striprtf reads some megabytes a second
    files = {"one.txt": b"first", "slow.rtf": slow, "two.txt": b"second"}
    if name == "m.eml":
        message = letter("Parts", "body")
        for file, data in files.items():
            message.add_attachment(data, maintype="application", subtype="octet-stream", filename=file)
        (tmp_path / name).write_bytes(message.as_bytes())
    else:
        archived(tmp_path / name, files)
    results = told(read(tmp_path / name, cpu_seconds=2))
    assert [kind for kind, _ in results if kind != "m.eml"] == [f"{name}#one.txt", "LimitExceeded", f"{name}#two.txt"]
    assert [text for kind, text in results if kind == "LimitExceeded"] == [
        "slow.rtf: took longer than 2 s of processor time (Limits.cpu_seconds)"
    ]
