"""Additions as jobs: accepted at once, done in order, one at a time for each index, and resumed after a restart.

A job is a file in the server's own folder, beside the index: what to add, how far it is, and its report. Adding a document
again that is there costs nothing, so a job that was stopped is simply run again. Files that were sent lie under a hash of their
name; the name itself is metadata, and never part of a path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import re
import shutil
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.problems import Problem, problem_of
from ragkit.core.errors import IndexLocked
from ragkit.core.types import AddReport, Json, Metadata, Progress
from ragkit.index.index import Index
from ragkit.load import Source

REMEMBERED = 1000  # finished jobs
RETRY = 2.0  # seconds between two tries while another process writes
DONE = ("done", "failed")
log = logging.getLogger("ragkit.apps.serve")


class _Stopped(BaseException):
    """The server stops. The addition ends where it is; what it committed stays."""


@dataclass(slots=True, eq=False)
class Job:
    """One addition. `files`: (name as sent, path); `records`: whether a file of documents lies beside the job's."""

    id: str
    index: str
    created: float
    state: str = "queued"  # "running", "done", "failed"
    files: list[tuple[str, str]] = field(default_factory=list)
    records: bool = False
    finished: float | None = None
    progress: Json = field(default_factory=dict)
    report: Json | None = None
    error: str | None = None
    version: int = 0  # counts changes, for those who watch

    def fields(self) -> Json:
        """Return what the API shows: no paths."""
        names = ("id", "index", "state", "created", "finished", "progress", "report", "error")
        return {name: getattr(self, name) for name in names} | {"files": [name for name, _ in self.files]}


class Jobs:
    """The additions to one index, and the thread that does them. Thread-safe."""

    def __init__(self, index: Index, name: str, folder: Path, *, limits: ServeLimits | None = None) -> None:
        self._index, self._name = index, name
        self._limits = limits or ServeLimits()
        self._files, self._folder = folder / "files", folder / "jobs"
        for path in (self._files, self._folder):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._jobs = self._read()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._placing = threading.Lock()  # held while a file that was sent is put in place or removed
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; it resumes the jobs that a former server left."""
        for job in self._jobs.values():
            if job.state not in DONE:
                job.state = "queued"
                self._queue.put(job)
        self._thread = threading.Thread(target=self._work, name="ragkit-jobs")
        self._thread.start()

    def close(self) -> None:
        """Stop at the next step; the rest is resumed when the server is started again."""
        self._stopping.set()
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def submit_records(self, documents: Sequence[Metadata]) -> Job:
        """Add documents that were sent as JSON. Problem 429 if too many jobs wait."""
        job = self._new()
        job.records = True
        _write_json(self._records(job), list(documents))
        return self._submit(job)

    def submit_files(self, files: Sequence[tuple[str, BinaryIO]]) -> Job:
        """Add files that were sent. A file replaces a former one of the same name. Problem 429 if too many jobs wait."""
        job = self._new()
        with self._placing:
            for name, content in files:
                clean = clean_name(name)
                path = self._path(clean)
                _write_file(path, content, suffix=f".{job.id}.part")
                job.files.append((clean, str(path)))
            return self._submit(job)

    def delete(self, name: str) -> int:
        """Delete the documents of that source, or all of the file that was sent under that name; return how many.

        The file goes too, unless it was sent again meanwhile. Absolute server paths are not accepted as names.
        """
        identities = [row.identity for row in self._index.find(name) if row.source == name]
        is_path = name.startswith(("/", "~"))
        count = self._index.delete(identities if identities or is_path else name)
        sent = self._path(name)
        with self._placing:
            waiting = {path for job in list(self._jobs.values()) if job.state not in DONE for _, path in job.files}
            if count and str(sent) not in waiting:
                sent.unlink(missing_ok=True)
        return count

    def get(self, id: str) -> Job | None:
        return self._jobs.get(id)

    def listed(self) -> list[Job]:
        """Return all jobs, newest first."""
        return sorted(self._jobs.values(), key=lambda job: -job.created)

    def _new(self) -> Job:
        waiting = sum(job.state not in DONE for job in list(self._jobs.values()))
        if waiting >= self._limits.waiting_jobs:
            raise Problem(429, f"{waiting} additions to {self._name} are waiting", retry_after=10)
        return Job(uuid.uuid4().hex, self._name, time.time())

    def _submit(self, job: Job) -> Job:
        self._jobs[job.id] = job
        self._save(job)
        self._queue.put(job)
        return job

    def _work(self) -> None:
        while (job := self._queue.get()) is not None and not self._stopping.is_set():
            try:
                self._do(job)
            except _Stopped:
                return
            except Exception as error:
                log.exception("job %s failed", job.id)
                job.error, job.state = str(problem_of(error, folders={str(self._index.path): self._name})), "failed"
            job.finished = time.time()
            self._save(job)
            self._records(job).unlink(missing_ok=True)
            self._forget()

    def _do(self, job: Job) -> None:
        job.state = "running"
        self._save(job)
        report = None
        while report is None:
            try:
                report = self._index.add(self._target(job), progress=lambda step: self._on_progress(job, step))
            except IndexLocked:
                if self._stopping.wait(RETRY):
                    raise _Stopped from None
        job.report, job.state = _with_sent_names(report_fields(report), job), "done"

    def _target(self, job: Job) -> list[Json] | list[Source]:
        if job.records:
            return list(json.loads(self._records(job).read_text(encoding="utf-8")))
        return [Source(Path(path), self._files, name) for name, path in job.files]

    def _on_progress(self, job: Job, step: Progress) -> None:
        job.progress = {"stage": step.stage, "done": step.done, "total": step.total, "unit": step.unit}
        job.version += 1
        if self._stopping.is_set():
            raise _Stopped

    # On the disk

    def _path(self, name: str) -> Path:
        """Return the path of a file that was sent under a name."""
        return self._files / f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}{_suffix(name)}"

    def _records(self, job: Job) -> Path:
        return self._folder / f"{job.id}.documents"

    def _save(self, job: Job) -> None:
        job.version += 1
        _write_json(self._folder / f"{job.id}.json", asdict(job))

    def _read(self) -> dict[str, Job]:
        jobs = {}
        for path in self._folder.glob("*.json"):
            fields = json.loads(path.read_text(encoding="utf-8"))
            job = Job(**{**fields, "files": [(name, lies_at) for name, lies_at in fields["files"]]})
            jobs[job.id] = job
        return jobs

    def _forget(self) -> None:
        done = [job for job in self.listed() if job.state in DONE]
        for job in done[REMEMBERED:]:
            self._jobs.pop(job.id, None)
            (self._folder / f"{job.id}.json").unlink(missing_ok=True)


def report_fields(report: AddReport) -> Json:
    """Return a report as a JSON object."""
    kinds = ("added", "updated", "unchanged", "failed", "skipped")
    lists = {kind: [asdict(outcome) for outcome in getattr(report, kind)] for kind in kinds}
    counts = {"truncated": report.truncated, "pages": report.pages, "blank": report.blank}
    return {**lists, **counts, "seconds": round(report.seconds, 3)}


def _with_sent_names(report: Json, job: Job) -> Json:
    """Return the report with the names of files as they were sent, in place of their paths."""
    for name, path in job.files:
        for outcome in (*report["failed"], *report["skipped"]):
            outcome["reason"] = outcome["reason"].replace(path, name).replace(Path(path).name, name)
    return report


def clean_name(name: str) -> str:
    """Return the last part of a name that was sent, without unprintable characters: for people to read."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:200].strip() or "upload"


def _suffix(name: str) -> str:
    """Return the name's extension, in lower case, as loaders are chosen by it; empty if it is none of letters and digits."""
    match = re.search(r"\.[A-Za-z0-9]{1,10}$", name)
    return match[0].lower() if match else ""


def _write_file(path: Path, content: BinaryIO, *, suffix: str) -> None:
    """Write a file whole or not at all: it is complete on the disk before it takes its name."""
    new = path.with_name(f"{path.name}{suffix}")
    with new.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _write_json(path: Path, value: object) -> None:
    new = path.with_name(f"{path.name}.part")
    with new.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
