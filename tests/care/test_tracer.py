"""The tracer itself, against strace; and the model of a disk, against what it must lose."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.care import tracer
from tests.care.disk import power_lost
from tests.care.operations import prepare
from tests.care.tracer import Call

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from tests.care import operations, tracer
run = tracer.run(lambda: operations.operate(Path(sys.argv[1]), "add"), folders=[Path(sys.argv[1])])
assert run.status == 0 and run.result == "", run
print(run.count)
"""
ALONE = "import sys; from pathlib import Path; from tests.care import operations; operations.operate(Path(sys.argv[1]), 'add')"


def test_it_sees_what_strace_sees_of_all_threads(tmp_path: Path) -> None:
    if reason := tracer.supported():
        pytest.skip(reason)
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    for name in ("ours", "theirs"):
        prepare(tmp_path / name)
    ours = int(
        subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "ours"], cwd=ROOT, capture_output=True, check=True).stdout
    )
    names = ",".join(sorted({name for name, _ in tracer.CALLS.values()}))
    log = tmp_path / "log"
    child = [sys.executable, "-c", ALONE, str(tmp_path / "theirs")]
    command = ["strace", "-f", "-y", "-qq", "-s", "0", "-o", str(log), "-e", f"trace={names}", *child]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    lines = [line for line in log.read_text().splitlines() if str(tmp_path / "theirs") in line and "resumed>" not in line]
    theirs = [line for line in lines if not re.search(r" open(at)?\(", line) or re.search("O_CREAT|O_TRUNC", line)]
    threads = {line.split()[0] for line in theirs}
    assert len(threads) > 1, "one thread alone would prove nothing"
    assert abs(ours - len(theirs)) <= 8, (ours, len(theirs))  # tantivy's threads make a few more or less each time


def test_what_was_never_synced_may_be_gone_and_what_was_synced_is_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    a, b = str(tmp_path / "folder" / "a"), str(tmp_path / "folder" / "b")
    calls = [
        Call("open", a, new=True),
        Call("write", a, data=b"certain"),
        Call("fsync", a),
        Call("open", b, new=True),
        Call("write", b, data=b"doubtful"),
        Call("fsync", str(tmp_path / "folder")),
        Call("write", a, offset=7, data=b" and not"),
    ]
    power_lost(calls, keep=lambda: False)
    assert Path(a).read_bytes() == b"certain"
    assert Path(b).read_bytes() == b""  # its name is certain, its bytes are not
    power_lost([Call("unlink", a), Call("rename", str(tmp_path / "folder" / "c"), other=b)], keep=lambda: False)
    assert Path(a).exists()
    assert Path(b).exists()
    power_lost([Call("unlink", a), Call("fsync", str(tmp_path / "folder"))], keep=lambda: False)
    assert not Path(a).exists()
