"""The sandbox: what happens to a child happens to one document, and what a child says is not believed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ragkit.core.errors import EncryptedDocument, LimitExceeded, LoadError, UnsupportedFormat
from ragkit.core.types import Block, Document, Page, Span, Words
from ragkit.load import Limits, Parser, Source, discover
from ragkit.load.pdf.pdf import ENGINES
from ragkit.load.sandbox import wire
from ragkit.load.sandbox.child import Child
from tests.load.conftest import source
from tests.load.pages import Text, draw
from tests.load.rawpdf import bomb, show

Result = Document | LoadError


def write(path: Path, content: str | bytes = "hello there") -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def one(parser: Parser, path: Path) -> Result:
    ((_, result),) = parser.parse([source(path)])
    return result


def text_of(result: Result) -> str:
    assert isinstance(result, Document), result
    return result.text


def busy_child(parser: Parser, *, seconds: float = 20) -> psutil.Process:
    """The parser's only child, once there is one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if children := parser.children():
            return psutil.Process(children[0])
        time.sleep(0.005)
    raise AssertionError("no child appeared")


def endless(path: Path) -> Path:
    """A JSONL file of a size that keeps a child busy, or blocked on its pipe, for as long as a test needs."""
    line = json.dumps({"text": "1234 " * 2000}) + "\n"  # no letters: no time for recognising a language
    return write(path, line * 3000)


def while_parsing(parser: Parser, path: Path, act: Callable[[psutil.Process], None]) -> list[Result]:
    """The results of a long file; `act` is done to the child after the first of them."""
    results = []
    for i, (_, result) in enumerate(parser.parse([source(path)])):
        results.append(result)
        if i == 0:
            act(busy_child(parser))
    return results


def test_results_come_in_the_order_of_the_sources(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / f"{i:02}.txt", f"text {i} " * (2000 * (i % 3) + 1))
    with Parser(workers=3) as parser:
        results = list(parser.parse(discover(tmp_path)))
    assert [s.name for s, _ in results] == [f"{i:02}.txt" for i in range(20)]
    assert [text_of(r).split()[1] for _, r in results] == [str(i) for i in range(20)]
    assert [r.id for _, r in results if isinstance(r, Document)] == [s.name for s, _ in results]


def test_a_document_comes_through_the_pipe_as_it_was_loaded(engine: str, tmp_path: Path) -> None:
    from ragkit.load.limits import Options
    from ragkit.load.pdf.pdf import load

    path = draw(tmp_path / "a.pdf", [[Text("Größe and ﬁne print", 50, 500)], [], [Text("second page", 50, 500, 20)]])
    (mine,) = load(path, Options(pdf_engine=engine))
    with Parser(pdf_engine=engine) as parser:
        theirs = one(parser, path)
    assert isinstance(theirs, Document)
    assert (theirs.id, theirs.mime, theirs.meta["size"]) == ("a.pdf", "application/pdf", path.stat().st_size)
    assert_same(replace(mine, id="a.pdf", mime=theirs.mime, meta=theirs.meta), theirs)


def assert_same(one_: Document, other: Document) -> None:
    assert (one_.text, one_.id, one_.title, one_.mime, one_.meta, one_.blocks) == (
        other.text,
        other.id,
        other.title,
        other.mime,
        other.meta,
        other.blocks,
    )
    assert len(one_.pages) == len(other.pages)
    for a, b in zip(one_.pages, other.pages, strict=True):
        assert (a.number, a.width, a.height, a.span, a.label, a.rotation) == (
            b.number,
            b.width,
            b.height,
            b.span,
            b.label,
            b.rotation,
        )
        np.testing.assert_array_equal(a.words.spans, b.words.spans)
        np.testing.assert_array_equal(a.words.boxes, b.words.boxes)


def test_records_have_the_name_of_their_file_and_their_own(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", '{"text": "one", "_id": "x"}\n{"bad": 1}\n{"text": "three"}\n')
    with Parser() as parser:
        results = [r for _, r in parser.parse(discover(tmp_path))]
    assert [r.id if isinstance(r, Document) else str(r) for r in results] == [
        "r.jsonl#x",
        "line 2: a record needs the field \"text\", got 'bad'",
        "r.jsonl#sha256:aa2df5dee89d19bc",
    ]


def test_one_child_serves_many_documents_and_is_replaced_in_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    pids = []
    with Parser(limits=Limits(documents_per_child=3)) as parser:
        for _ in range(7):
            assert isinstance(one(parser, path), Document)
            pids.append(parser.children())
    assert [len(alive) for alive in pids] == [1, 1, 0, 1, 1, 0, 1]
    assert len({alive for alive in pids if alive}) == 3
    assert not any(psutil.pid_exists(pid) for alive in pids for pid in alive)


def test_a_stopped_child_is_a_document_out_of_time(tmp_path: Path) -> None:
    after = write(tmp_path / "after.txt", "alive")
    with Parser(limits=Limits(seconds=1.0)) as parser:
        results = while_parsing(parser, endless(tmp_path / "a.jsonl"), lambda child: child.suspend())
        assert isinstance(results[-1], LimitExceeded)
        assert "longer than 1 s" in str(results[-1])
        assert text_of(one(parser, after)) == "alive"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_killed_child_is_a_failed_document_and_the_next_gets_a_fresh_one(tmp_path: Path, number: int) -> None:
    after = write(tmp_path / "after.txt", "alive")
    with Parser() as parser:
        results = while_parsing(parser, endless(tmp_path / "a.jsonl"), lambda child: child.send_signal(number))
        assert type(results[-1]) is LoadError
        assert signal.Signals(number).name in str(results[-1])
        assert text_of(one(parser, after)) == "alive"


def test_a_child_that_died_while_idle_costs_no_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "alive")
    with Parser() as parser:
        one(parser, path)
        child = busy_child(parser)
        child.kill()
        psutil.wait_procs([child], timeout=5)
        assert text_of(one(parser, path)) == "alive"


def test_a_file_that_needs_too_much_memory_fails_alone(tmp_path: Path) -> None:
    with (tmp_path / "bomb.txt").open("wb") as file:
        file.truncate(900 << 20)  # a hole: nothing on disk, everything in memory
    after = write(tmp_path / "fine.txt", "alive")
    before = psutil.Process().memory_info().rss
    with Parser(limits=Limits(memory=1 << 30, characters=1 << 40)) as parser:
        assert isinstance(one(parser, tmp_path / "bomb.txt"), LoadError)
        assert text_of(one(parser, after)) == "alive"
    assert psutil.Process().memory_info().rss - before < 200 << 20


def test_limits_on_bytes_and_characters_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x" * 1000)
    with Parser(limits=Limits(file_bytes=999)) as parser:
        assert "1000 bytes" in str(one(parser, path))
    with Parser(limits=Limits(characters=999)) as parser:
        result = one(parser, path)
    assert isinstance(result, LimitExceeded)
    assert "1000 characters" in str(result)


@pytest.mark.parametrize("field", ["seconds", "page_seconds", "memory", "pages", "characters", "pixels"])
def test_a_limit_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Limits(**{field: 0})


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    write(tmp_path / "a.xyz")
    os.mkfifo(tmp_path / "pipe.txt")
    with Parser() as parser:
        assert isinstance(one(parser, tmp_path / "a.xyz"), UnsupportedFormat)
        assert "No such file" in str(one(parser, tmp_path / "gone.txt"))
        assert "regular file" in str(one(parser, tmp_path / "pipe.txt"))


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.xlsx", "a.epub", "a.odt", "a.rtf", "a.json", "a.ipynb", "a.zip", "a.png"])
def test_an_empty_file_that_ought_to_hold_something_is_told_as_empty(tmp_path: Path, name: str) -> None:
    with Parser() as parser:
        assert re.fullmatch("(it|the PDF) is empty: 0 bytes", str(one(parser, write(tmp_path / name, ""))))


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system has UTF-8 names only")
def test_a_name_that_is_no_utf8_fails_alone(tmp_path: Path) -> None:
    odd = write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")))
    with Parser() as parser:
        (_, failed), (_, read) = parser.parse([source(odd), source(write(tmp_path / "a.txt"))])
    assert str(failed) == "its name is not valid UTF-8; rename it"
    assert text_of(read) == "hello there"


def test_a_password_opens_what_it_fits(tmp_path: Path, engine: str) -> None:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "a.pdf"), encrypt="sesame")
    canvas.drawString(100, 100, "hush")
    canvas.save()
    with Parser(pdf_engine=engine) as parser:
        assert isinstance(one(parser, tmp_path / "a.pdf"), EncryptedDocument)
    with Parser(pdf_engine=engine, password="sesame") as parser:
        assert text_of(one(parser, tmp_path / "a.pdf")) == "hush"


def test_sources_are_pulled_only_as_results_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    pulled = 0

    def endless_sources() -> Iterator[Source]:
        nonlocal pulled
        while True:
            pulled += 1
            yield source(path)

    with Parser(workers=2) as parser:
        results = parser.parse(endless_sources())
        for taken in range(1, 30):
            next(results)
            assert pulled <= taken + 4
        results.close()  # type: ignore[attr-defined]
        assert pulled <= 33


def test_records_flow_no_faster_than_they_are_taken(tmp_path: Path) -> None:
    path = endless(tmp_path / "a.jsonl")
    with Parser() as parser:
        results = parser.parse([source(path)])
        next(results)
        child = busy_child(parser)
        assert settled(lambda: position(child, path)) < path.stat().st_size / 8
        results.close()  # type: ignore[attr-defined]
        assert parser.children() == ()  # it was in the middle of what nobody wants


def position(child: psutil.Process, path: Path) -> int:
    """How far the child has read a file."""
    (fd,) = [fd.name for fd in Path(f"/proc/{child.pid}/fd").iterdir() if fd.readlink() == path]
    return int(Path(f"/proc/{child.pid}/fdinfo/{fd}").read_text().split()[1])


def settled(ask: Callable[[], int]) -> int:
    """The value once it has not changed for a second."""
    value, since = ask(), time.monotonic()
    while time.monotonic() - since < 1.0:
        time.sleep(0.02)
        if (now := ask()) != value:
            value, since = now, time.monotonic()
    return value


def test_a_slow_caller_costs_the_document_no_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", (json.dumps({"text": "1234 " * 2000}) + "\n") * 300)
    with Parser(limits=Limits(seconds=1.0)) as parser:
        results = parser.parse([source(path)])
        next(results)
        time.sleep(1.5)
        rest = [r for _, r in results]
    assert len(rest) == 299
    assert all(isinstance(r, Document) for r in rest)


def test_an_error_in_the_callers_sources_is_the_callers(tmp_path: Path) -> None:
    def broken() -> Iterator[Source]:
        yield source(write(tmp_path / "a.txt"))
        raise KeyError("mine")

    with Parser() as parser, pytest.raises(KeyError, match="mine"):
        list(parser.parse(broken()))


def test_two_threads_may_share_a_parser(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / f"{i}.txt", f"text {i}")
    found: list[list[str]] = []
    with Parser() as parser:
        threads = [
            threading.Thread(target=lambda: found.append([text_of(r) for _, r in parser.parse(discover(tmp_path))]))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [[f"text {i}" for i in range(10)]] * 2


def test_a_child_has_few_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    with Path("/dev/null").open() as inherited, Parser(limits=Limits(memory=2 << 30)) as parser:
        os.set_inheritable(inherited.fileno(), True)
        one(parser, write(tmp_path / "a.txt"))
        child = busy_child(parser)
        assert "SECRET_TOKEN" not in child.environ()
        assert child.rlimit(psutil.RLIMIT_AS)[1] == 2 << 30
        assert child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        assert "NoNewPrivs:\t1" in Path(f"/proc/{child.pid}/status").read_text()
        targets = [str(fd.readlink()) for fd in Path(f"/proc/{child.pid}/fd").iterdir()]
        assert [target for target in targets if not target.startswith("pipe:")] == []
        child.send_signal(signal.SIGINT)
        assert text_of(one(parser, tmp_path / "a.txt")) == "hello there"
        assert parser.children() == (child.pid,)


def test_a_page_that_ends_its_child_costs_that_page_only(tmp_path: Path, engine: str) -> None:
    """A bomb of 5 KB: text extraction would take hours."""
    path = write(tmp_path / "a.pdf", bomb([show(b"one"), show(b"two"), show(b"three")], at=1))
    assert path.stat().st_size < 6000
    began = time.monotonic()
    with Parser(pdf_engine=engine, limits=Limits(page_seconds=1.5)) as parser:
        result = one(parser, path)
        assert isinstance(result, Document), result
        assert result.text.split() == ["one", "three"]
        assert result.meta["unread"] == ["page 2 took longer than 1.5 s (Limits.page_seconds)"]
        assert len(result.pages) == 3
        with pytest.raises(LimitExceeded, match="page 2 took longer"):
            parser.render(path, 2)
    assert time.monotonic() - began < 1.5 * 2 + 60  # a busy machine starts children slowly


def test_processor_time_is_limited_by_page_and_by_document(tmp_path: Path, engine: str) -> None:
    path = write(tmp_path / "a.pdf", bomb([show(b"one"), show(b"two")], at=1))
    with Parser(pdf_engine=engine, limits=Limits(page_cpu_seconds=0.5)) as parser:
        result = one(parser, path)
    assert isinstance(result, Document), result
    assert result.meta["unread"] == ["page 2 took longer than 0.5 s of processor time (Limits.page_cpu_seconds)"]
    with Parser(pdf_engine=engine, limits=Limits(cpu_seconds=0.5)) as parser:
        assert "0.5 s of processor time (Limits.cpu_seconds)" in str(one(parser, path))


def test_time_is_counted_over_all_attempts_and_so_are_lost_pages(tmp_path: Path, engine: str) -> None:
    pages = [show(b"page") + b"/X0 Do"] * 6
    path = write(tmp_path / "a.pdf", bomb(pages, at=-1))
    began = time.monotonic()
    with Parser(pdf_engine=engine, limits=Limits(seconds=2.0, page_seconds=0.6)) as parser:
        assert "took longer than 2 s (Limits.seconds)" in str(one(parser, path))
    assert time.monotonic() - began < 2.0 + 60  # a busy machine starts children slowly
    with Parser(pdf_engine=engine, limits=Limits(lost_pages=1, page_seconds=0.3)) as parser:
        result = one(parser, path)
    assert isinstance(result, LimitExceeded)
    assert "page 2 took longer" in str(result)


RIGHTS = """
import errno, os, socket, sys
from ragkit.load.sandbox.confine import confine
folder, parent = sys.argv[1], int(sys.argv[2])
print(*confine(4 << 30))
def tried(name, act):
    try:
        act()
        print(name, "allowed")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
tried("read", lambda: open(folder + "/kept").read())
tried("write", lambda: os.write(os.open(folder + "/kept", os.O_WRONLY), b"x"))
tried("create", lambda: open(folder + "/new", "w"))
tried("truncate", lambda: os.truncate(folder + "/kept", 0))
tried("remove", lambda: os.unlink(folder + "/kept"))
tried("rename", lambda: os.rename(folder + "/kept", folder + "/moved"))
tried("folder", lambda: os.mkdir(folder + "/sub"))
tried("null", lambda: open("/dev/null", "w").close())
tried("internet", lambda: socket.socket(socket.AF_INET))
tried("unix", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
tried("signal", lambda: os.kill(parent, 0))
tried("self", lambda: os.kill(os.getpid(), 0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
def test_a_confined_process_changes_no_files_opens_no_sockets_and_signals_nobody(tmp_path: Path) -> None:
    from ragkit.load.sandbox.confine import landlock_version

    write(tmp_path / "kept")
    script = write(tmp_path / "rights.py", RIGHTS)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, str(script), str(tmp_path), str(os.getpid())]
    lines = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    taken, found = lines[0].split(), dict(line.split() for line in lines[1:])
    assert (tmp_path / "kept").read_text() == "hello there"
    assert (found["read"], found["null"], found["self"]) == ("allowed", "allowed", "allowed")
    if not {"landlock", "seccomp"} <= set(taken):
        pytest.skip(f"this kernel gives only {taken}")
    refused = ["write", "create", "remove", "rename", "folder", *(["truncate"] if landlock_version() >= 3 else [])]
    assert {found[name] for name in refused} <= {"EACCES", "EXDEV"}, found
    assert {found["internet"], found["unix"]} == {"EPERM"}
    if landlock_version() >= 6:
        assert found["signal"] == "EPERM"


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_a_child_says_truly_how_it_is_confined() -> None:
    child = Child(Limits())
    try:
        status = Path(f"/proc/{child.pid}/status").read_text()
    finally:
        child.close()
    assert ("seccomp" in child.confined) == ("Seccomp:\t2" in status)


def test_limits_are_read_from_the_command_line() -> None:
    assert Limits.parse(["seconds=60", "pages = 1_000"]) == Limits(seconds=60, pages=1000)
    for wrong, reason in (
        ("page=3", "no limit 'page'"),
        ("pages=many", "needs a int"),
        ("pages", "needs a int"),
        ("pages=0", "above 0"),
    ):
        with pytest.raises(ValueError, match=reason):
            Limits.parse([wrong])


def test_the_table_of_limits_is_true() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "limits.md").read_text()
    units = {"s": 1, "": 1, "GiB": 1 << 30}
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) ?(\w*) \|", page, flags=re.MULTILINE)
    told = {name: int(value.replace(",", "")) * units[unit] for name, value, unit in rows}
    assert told == asdict(Limits())


SCRIPT = """
import sys, time
from ragkit.load import Parser, discover
parser = Parser()
results = parser.parse(discover(sys.argv[1]))
next(results)
print(parser.children()[0], flush=True)
time.sleep(60)
"""


def test_children_die_with_a_killed_parent_though_busy(tmp_path: Path) -> None:
    """Also: a script without the `if __name__` guard works, since nothing imports it again."""
    script = write(tmp_path / "script.py", SCRIPT)
    (tmp_path / "docs").mkdir()
    endless(tmp_path / "docs" / "a.jsonl")
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "docs")], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    )
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone or child.status() == psutil.STATUS_ZOMBIE


def test_a_busy_child_ends_with_its_stdin(tmp_path: Path) -> None:
    """The leash itself: a child that computes, and so reads and writes nothing, is ended by the kernel."""
    code = "from ragkit.load.sandbox.worker import _leash\nwith _leash():\n  print('on', flush=True)\n"
    code += "  while True: sum(range(10**6))"
    root = str(Path(__file__).resolve().parents[2])
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
    assert child.stdin
    assert child.stdout
    child.stdout.readline()
    child.stdin.close()
    assert child.wait(timeout=5) == -signal.SIGIO
    child.stdout.close()


def test_a_hostile_folder_lends_no_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "numpy.py", "raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    with Parser() as parser:
        assert text_of(one(parser, write(tmp_path / "a.txt"))) == "hello there"


@pytest.mark.parametrize("engine_name", ENGINES)
def test_pages_are_rendered_in_the_sandbox(tmp_path: Path, engine_name: str) -> None:
    pytest.importorskip(engine_name)
    path = draw(tmp_path / "a.pdf", [[Text("words", 50, 500)]])
    with Parser(pdf_engine=engine_name) as parser:
        assert parser.render(path, 1, dpi=36).startswith(b"\x89PNG")
        with pytest.raises(LoadError, match="no page 2"):
            parser.render(path, 2)
        with pytest.raises(LoadError, match="No such file"):
            parser.render(tmp_path / "gone.pdf", 1)
        with pytest.raises(UnsupportedFormat, match="no pages"):
            parser.render(write(tmp_path / "a.txt"), 1)


WORDS = Words(np.array([[0, 2], [3, 5]]), np.array([[0, 0, 1, 1]] * 2, np.float32))
DOCUMENT = Document(
    text="ab cd",
    id="x",
    title="T",
    meta={"a": [1, None]},
    pages=(
        Page(1, 10.0, 20.0, Span(0, 5), Words(np.array([[0, 2], [3, 5]]), np.array([[0, 0, 1, 1]] * 2, np.float32)), "i", 90),
    ),
    blocks=(Block("heading", Span(0, 2), 1),),
)


def unpacked(data: bytes, limits: Limits | None = None) -> Document:
    limits = limits or Limits()
    start = wire.PREFIX.size
    head, body = wire.sizes(data[:start], limits=limits)
    return wire.unpack_document(
        wire.header_of(data[start : start + head]), memoryview(data[start + head :])[:body], limits=limits
    )


def changed_header(**changes: Any) -> bytes:
    data = b"".join(wire.pack_document(DOCUMENT))
    _, head, _ = wire.PREFIX.unpack(data[: wire.PREFIX.size])
    header = json.loads(data[wire.PREFIX.size : wire.PREFIX.size + head]) | changes
    return b"".join(wire.frame(header, [data[wire.PREFIX.size + head :]]))


def test_a_packed_document_unpacks_to_itself() -> None:
    assert_same(unpacked(b"".join(wire.pack_document(DOCUMENT))), DOCUMENT)


@pytest.mark.parametrize(
    "changes",
    [
        {"pages": 2},
        {"words": -1},
        {"words": 1 << 60},
        {"text": 6},
        {"text": True},
        {"numbers": [0]},
        {"numbers": "1"},
        {"labels": [3]},
        {"title": 3},
        {"meta": "a"},
        {"meta": {"a": 10**30}},
    ],
)
def test_an_answer_that_breaks_a_law_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(wire.BrokenFrame):
        unpacked(changed_header(**changes))


def test_a_flipped_bit_anywhere_is_an_error_or_a_lawful_document() -> None:
    from ragkit.load.records import check

    data = b"".join(wire.pack_document(DOCUMENT))
    for at in range(len(data) * 8):
        broken = bytearray(data)
        broken[at // 8] ^= 1 << at % 8
        try:
            check(unpacked(bytes(broken)))
        except (wire.BrokenFrame, LimitExceeded):
            continue


def test_an_answer_over_the_limits_is_refused_before_it_is_read() -> None:
    prefix = wire.PREFIX.pack(wire.MAGIC, 100, 1 << 40)
    with pytest.raises(LimitExceeded):
        wire.sizes(prefix, limits=Limits())


def test_an_error_from_a_child_is_a_load_error_whatever_it_claims() -> None:
    assert type(wire.unpack_error({"type": "SystemExit", "reason": "x"})) is LoadError
    assert type(wire.unpack_error({"type": "EncryptedDocument", "reason": "x"})) is EncryptedDocument
    assert str(wire.unpack_error({"type": "LoadError", "reason": "\x1b[31mred\x07"})) == "[31mred"


def test_malformed_files_are_documents_or_reasons(shared: Path, engine: str) -> None:
    with Parser(workers=2, pdf_engine=engine, limits=Limits(seconds=20)) as parser:
        results = dict(parser.parse(discover(shared / "malformed-pdf", include=["*.pdf"])))
    assert len(results) == 28
    for at, result in results.items():
        assert isinstance(result, Document) or (str(result) and "killed" not in str(result)), (at.name, result)


def test_real_documents_load(shared: Path, engine: str) -> None:
    manifest = {Path(e["file"]).name: e for e in json.loads((shared / "documents" / "manifest.json").read_text())}
    with Parser(workers=2, pdf_engine=engine) as parser:
        results = list(parser.parse(discover(shared / "documents", include=["pdf/*.pdf", "web"])))
    assert len(results) == 41 + 11
    for at, result in results:
        entry = manifest[at.path.name]
        if entry.get("password"):
            assert isinstance(result, EncryptedDocument), at.name
            with Parser(pdf_engine=engine, password=entry["password"]) as opener:
                assert isinstance(one(opener, at.path), Document), at.name
            continue
        assert isinstance(result, Document), (at.name, result)
        if "pages" in entry:
            assert len(result.pages) == entry["pages"], at.name


def test_a_signal_while_a_thread_is_started_is_what_the_caller_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise KeyboardInterrupt

    with Parser() as parser:
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            one(parser, write(tmp_path / "a.txt"))
        with pytest.raises(KeyboardInterrupt):
            list(parser.render_pages(write(tmp_path / "a.pdf"), []))
        monkeypatch.undo()
        assert text_of(one(parser, tmp_path / "a.txt")) == "hello there"
