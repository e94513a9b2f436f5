"""/v1/documents: add as a job, list, read, delete; /v1/jobs: how far additions are; /v1/pages: pages with the evidence marked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse

from ragkit.apps.serve.answers import RESPONSES, Asker, Json, Serving
from ragkit.apps.serve.inputs import InputItem, fetched, query_of, urls_of
from ragkit.apps.serve.jobs import DONE, Job, Jobs
from ragkit.apps.serve.keys import Key
from ragkit.apps.serve.problems import Problem
from ragkit.apps.serve.service import Service, narrowed
from ragkit.apps.show import Mark, evidence, page_png
from ragkit.core.errors import StorageError
from ragkit.core.types import Span
from ragkit.index.index import Index
from ragkit.store.values import DocumentRow

router = APIRouter(tags=["documents"])
CHARACTERS = 100_000  # of a document's text in one answer
WATCH = 0.2  # seconds between two looks at a job
IndexName = Annotated[str | None, Query(description="where the server has several indexes")]


class DocumentFields(BaseModel):
    id: str
    title: str
    mime: str
    lang: str
    meta: dict[str, Any]
    characters: int
    units: int


class DocumentText(DocumentFields):
    text: str
    start: int
    end: int


class Listing(BaseModel):
    object: Literal["list"]
    data: list[DocumentFields]
    next: int | None = Field(description="`after` of the next request; null at the end")


class Deleted(BaseModel):
    deleted: int


class Record(BaseModel):
    text: str
    id: str = ""
    title: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)


class AddRequest(BaseModel):
    documents: Annotated[list[Record], Field(min_length=1)]
    index: str | None = None


class Step(BaseModel):
    stage: str | None = None
    done: int | None = None
    total: int | None = None
    unit: str | None = None


class JobFields(BaseModel):
    id: str
    index: str
    state: Literal["queued", "running", "done", "failed"]
    created: float
    finished: float | None
    progress: Step
    report: dict[str, Any] | None
    error: str | None
    files: list[str]


class JobList(BaseModel):
    object: Literal["list"]
    data: list[JobFields]


@router.get("/v1/documents", responses={200: {"model": Listing}, **RESPONSES}, response_class=Json)
async def documents(
    service: Serving,
    key: Asker,
    index: IndexName = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    filters: Annotated[str | None, Query(description="a filter as JSON")] = None,
) -> Json:
    """The documents, oldest version first."""
    _, found = service.index(index, key)
    within = narrowed(_json_object(filters), key, depth=service.limits.filter_depth)
    return Json(await service.run(_listing, found, within, limit, after))


def _json_object(text: str | None) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Problem(400, "filters is not JSON", field="filters") from None
    if not isinstance(value, dict):
        raise Problem(400, "filters is a JSON object", field="filters")
    return value


def _listing(index: Index, filters: Mapping[str, Any] | None, limit: int, after: int) -> dict[str, Any]:
    rows = list(islice((row for row in index.documents(filters) if row.id > after), limit + 1))
    more = rows[limit - 1].id if len(rows) > limit else None
    return {"object": "list", "data": [_row(row) for row in rows[:limit]], "next": more}


def _row(row: DocumentRow) -> dict[str, Any]:
    """What a client learns of a document: where it lies on the server's disk is none of it."""
    return {
        "id": row.source,
        "title": row.title,
        "mime": row.mime,
        "lang": row.lang,
        "meta": dict(row.meta),
        "characters": row.characters,
        "units": row.units,
    }


@router.post("/v1/documents", status_code=202, responses={202: {"model": JobFields}, **RESPONSES}, response_class=Json)
async def add(asked: AddRequest, service: Serving, key: Asker) -> Json:
    """Add documents, or new versions of those with the same id. The answer is a job."""
    jobs = _jobs(service, asked.index, key)
    records = [one.model_dump() for one in asked.documents]
    job = await asyncio.to_thread(jobs.submit_records, records)
    return Json(job.fields(), status_code=202)


@router.post("/v1/documents/files", status_code=202, responses={202: {"model": JobFields}, **RESPONSES}, response_class=Json)
async def add_files(
    service: Serving, key: Asker, files: Annotated[list[UploadFile], File()], index: Annotated[str | None, Form()] = None
) -> Json:
    """Add files of any kind that ragkit reads. They are parsed in child processes with limits. The answer is a job."""
    jobs = _jobs(service, index, key)
    job = await asyncio.to_thread(jobs.submit_files, [(one.filename or "", one.file) for one in files])
    return Json(job.fields(), status_code=202)


def _jobs(service: Service, index: str | None, key: Key | None) -> Jobs:
    name, _ = service.index(index, key)
    if name not in service.jobs:
        raise Problem(403, f"this server adds nothing to {name}")
    return service.jobs[name]


@router.get("/v1/documents/{id:path}", responses={200: {"model": DocumentText}, **RESPONSES}, response_class=Json)
async def document(
    id: str,
    service: Serving,
    key: Asker,
    index: IndexName = None,
    start: Annotated[int, Query(ge=0, le=2**31)] = 0,
    end: Annotated[int | None, Query(ge=0, le=2**31)] = None,
) -> Json:
    """A document with its text, or the part of it from `start` to `end`, in characters; at most 100,000 at a time."""
    _, found = service.index(index, key)
    return Json(await service.run(document_fields, found, id, key, start, end))


def document_fields(index: Index, id: str, key: Key | None, start: int, end: int | None) -> dict[str, Any]:
    """A document's row and a part of its text. Problem 404."""
    row = visible(index, id, key)
    first = min(start, row.characters)
    last = max(first, min(row.characters if end is None else end, row.characters, first + CHARACTERS))
    return {**_row(row), "text": index.text(row, Span(first, last)), "start": first, "end": last}


def visible(index: Index, id: str, key: Key | None) -> DocumentRow:
    """The one document of that name that a key sees. Problem 404. Where it lies on this machine is no name of it here."""
    rows = [row for row in index.find(id) if row.source == id and sees(index, row, key)]
    if len(rows) != 1:
        raise Problem(404, f"there is no document {id[:200]!r}" if not rows else f"{id[:200]!r} names several documents")
    return rows[0]


def sees(index: Index, row: DocumentRow, key: Key | None) -> bool:
    """Whether a document is within what the key is bound to."""
    if key is None or key.filters is None:
        return True
    both = {"operator": "AND", "conditions": [key.filters, {"field": "id", "operator": "==", "value": row.source}]}
    return any(one.id == row.id for one in index.documents(both))


@router.delete("/v1/documents/{id:path}", responses={200: {"model": Deleted}, **RESPONSES}, response_class=Json)
async def delete(id: str, service: Serving, key: Asker, index: IndexName = None) -> Json:
    """Delete a document, and the file that was sent of it."""
    name, _ = service.index(index, key)
    if name not in service.jobs:
        raise Problem(403, f"this server changes nothing in {name}")
    count = await service.run(service.jobs[name].delete, id)
    if not count:
        raise Problem(404, f"there is no document {id[:200]!r}")
    return Json({"deleted": count})


@router.get("/v1/jobs", responses={200: {"model": JobList}, **RESPONSES}, response_class=Json)
async def jobs(service: Serving, key: Asker, index: IndexName = None) -> Json:
    """Additions, newest first."""
    _needs_whole(key)
    return Json({"object": "list", "data": [job.fields() for job in _jobs(service, index, key).listed()[:100]]})


@router.get("/v1/jobs/{id}", responses={200: {"model": JobFields}, **RESPONSES}, response_class=Json)
async def job(id: str, service: Serving, key: Asker) -> Json:
    """How far an addition is, and what came of it."""
    return Json(_job(service, id, key).fields())


@router.get(
    "/v1/jobs/{id}/events",
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **RESPONSES},
    response_class=StreamingResponse,
)
async def events(id: str, service: Serving, key: Asker) -> StreamingResponse:
    """The same as server-sent events: one for each change, the last one when it is done or has failed."""
    return StreamingResponse(_watched(service, _job(service, id, key)), media_type="text/event-stream")


async def _watched(service: Service, job: Job) -> AsyncIterator[str]:
    seen = -1
    while True:
        if job.version != seen:
            seen = job.version
            yield f"id: {seen}\nevent: {job.state}\ndata: {json.dumps(job.fields())}\n\n"
            if job.state in DONE and job.finished is not None:
                return
        if service.stopping.is_set():
            return
        await asyncio.sleep(WATCH)


def _job(service: Service, id: str, key: Key | None) -> Job:
    _needs_whole(key)
    for name, jobs in service.jobs.items():
        found = jobs.get(id)
        if found is not None and (key is None or key.index in (None, name)):
            return found
    raise Problem(404, f"there is no job {id[:100]!r}")


def _needs_whole(key: Key | None) -> None:
    if key is not None and key.filters is not None:
        raise Problem(403, f"the key {key.name!r} is bound to a filter, and jobs name documents beyond it")


PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    **RESPONSES,
}


@router.get("/v1/pages/{reference:path}.png", responses=PNG, response_class=Response)
async def page(
    reference: str,
    service: Serving,
    key: Asker,
    index: IndexName = None,
    page: Annotated[int | None, Query(ge=1, le=1_000_000, description="the first with evidence if left out")] = None,
    query: Annotated[str | None, Query(description="mark what a question finds: in a document, or on a page seen")] = None,
    k: Annotated[int, Query(ge=1, le=50)] = 1,
    dpi: Annotated[int, Query(ge=18, le=300)] = 110,
    mark: Annotated[Mark, Query(description="heat: only the map of where on a page seen the question was found")] = "all",
) -> Response:
    """A page with the evidence marked. `reference` is the key of a hit, or a document's id."""
    _, found = service.index(index, key)
    wanted = None if query is None else query_of(query, {}, service.limits)
    png = await service.run(marked_page, found, reference, key, page=page, query=wanted, k=k, dpi=dpi, mark=mark)
    return Response(png, media_type="image/png")


class PageRequest(BaseModel):
    """What to mark on a page."""

    query: Annotated[str | InputItem, Field(description="a text; or {image}, {text, image} where the index sees pages")]
    index: str | None = Field(None, description="its name, where the server has several")
    page: int | None = Field(None, ge=1, le=1_000_000, description="the first with evidence if left out")
    k: int = Field(1, ge=1, le=50)
    dpi: int = Field(110, ge=18, le=300)
    mark: Mark = Field("all", description="heat: only the map of where on a page seen the query was found")


@router.post("/v1/pages/{reference:path}.png", responses=PNG, response_class=Response)
async def page_for(reference: str, asked: PageRequest, service: Serving, key: Asker) -> Response:
    """The same for a query that is a picture, or a text with one. It changes nothing."""
    _, found = service.index(asked.index, key)
    files = {} if isinstance(asked.query, str) else await fetched(urls_of([asked.query]), service.fetcher, service.limits)

    def drawn() -> bytes:  # the picture is decoded in there too: so few at a time
        query = query_of(asked.query, files, service.limits)
        return marked_page(found, reference, key, page=asked.page, query=query, k=asked.k, dpi=asked.dpi, mark=asked.mark)

    return Response(await service.run(drawn), media_type="image/png")


def marked_page(
    index: Index,
    reference: str,
    key: Key | None,
    *,
    page: int | None,
    query: Any = None,
    k: int = 1,
    dpi: int = 110,
    mark: Mark = "all",
) -> bytes:
    """PNG. Problem 404 for what is not there, or not for this key; ValueError for a query that the index cannot answer."""
    nothing = Problem(404, f"there is nothing to show by {reference[:200]!r}")
    try:
        found = evidence(index, reference)
    except ValueError as error:
        raise nothing from error
    if not (reference.isdecimal() or found.row.source == reference) or not sees(index, found.row, key):
        raise nothing
    if query is not None:
        found = evidence(index, reference, query=query, k=k)
    numbers = [one.number for one in index.pages(found.row)]
    wanted = page or next(iter((*(found.heat if mark == "heat" else ()), *found.pages)), None)
    if wanted is None or wanted not in numbers:
        raise Problem(404, f"{found.row.source} has no such page: it has {len(numbers)}")
    try:
        return page_png(index, found, page=wanted, dpi=dpi, mark=mark)
    except StorageError as error:
        raise Problem(409, f"the file of {found.row.source} is not there, or is not what was indexed") from error
