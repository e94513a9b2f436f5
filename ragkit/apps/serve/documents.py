"""/v1/documents: add as a job, list, read, delete; /v1/jobs: the progress of additions; /v1/pages: pages with marked evidence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import islice
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse

from ragkit.apps.serve.answers import RESPONSES, Asker, JsonAnswer, Serving
from ragkit.apps.serve.inputs import InputItem, fetched, query_of, urls_of
from ragkit.apps.serve.jobs import DONE, Job, Jobs
from ragkit.apps.serve.keys import Key
from ragkit.apps.serve.problems import Problem
from ragkit.apps.serve.service import Service, narrowed
from ragkit.apps.show import Evidence, Mark, evidence, page_png
from ragkit.core.errors import StorageError
from ragkit.core.types import Json, Span
from ragkit.index.index import Index
from ragkit.search.filters import Filters
from ragkit.search.queries import Query as Question
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
    meta: Json
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
    meta: Json = Field(default_factory=dict)


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
    report: Json | None
    error: str | None
    files: list[str]


class JobList(BaseModel):
    object: Literal["list"]
    data: list[JobFields]


@router.get("/v1/documents", responses={200: {"model": Listing}, **RESPONSES}, response_class=JsonAnswer)
async def documents(
    service: Serving,
    key: Asker,
    index: IndexName = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    filters: Annotated[str | None, Query(description="a filter as JSON")] = None,
) -> JsonAnswer:
    """List the documents, oldest version first."""
    _, chosen = service.index(index, key)
    narrow = narrowed(_json_object(filters), key, depth=service.limits.filter_depth)
    return JsonAnswer(await service.run(_listing, chosen, narrow, limit, after))


def _json_object(text: str | None) -> Filters | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Problem(400, "filters is not JSON", field="filters") from None
    if not isinstance(value, dict):
        raise Problem(400, "filters is a JSON object", field="filters")
    return value


def _listing(index: Index, filters: Filters | None, limit: int, after: int) -> Json:
    rows = list(islice((row for row in index.documents(filters) if row.id > after), limit + 1))
    more = rows[limit - 1].id if len(rows) > limit else None
    return {"object": "list", "data": [_row(row) for row in rows[:limit]], "next": more}


def _row(row: DocumentRow) -> Json:
    """Return what a client may know about a document: not its path on the server's disk."""
    return {
        "id": row.source,
        "title": row.title,
        "mime": row.mime,
        "lang": row.lang,
        "meta": dict(row.meta),
        "characters": row.characters,
        "units": row.units,
    }


@router.post("/v1/documents", status_code=202, responses={202: {"model": JobFields}, **RESPONSES}, response_class=JsonAnswer)
async def add(body: AddRequest, service: Serving, key: Asker) -> JsonAnswer:
    """Add documents, or new versions of those with the same id. The answer is a job."""
    jobs = _jobs(service, body.index, key)
    records = [record.model_dump() for record in body.documents]
    job = await asyncio.to_thread(jobs.submit_records, records)
    return JsonAnswer(job.fields(), status_code=202)


@router.post(
    "/v1/documents/files", status_code=202, responses={202: {"model": JobFields}, **RESPONSES}, response_class=JsonAnswer
)
async def add_files(
    service: Serving, key: Asker, files: Annotated[list[UploadFile], File()], index: Annotated[str | None, Form()] = None
) -> JsonAnswer:
    """Add files of any kind that ragkit reads. They are parsed in child processes with limits. The answer is a job."""
    jobs = _jobs(service, index, key)
    job = await asyncio.to_thread(jobs.submit_files, [(file.filename or "", file.file) for file in files])
    return JsonAnswer(job.fields(), status_code=202)


def _jobs(service: Service, index: str | None, key: Key | None) -> Jobs:
    name, _ = service.index(index, key)
    if name not in service.jobs:
        raise Problem(403, f"this server adds nothing to {name}")
    return service.jobs[name]


@router.get("/v1/documents/{id:path}", responses={200: {"model": DocumentText}, **RESPONSES}, response_class=JsonAnswer)
async def document(
    id: str,
    service: Serving,
    key: Asker,
    index: IndexName = None,
    start: Annotated[int, Query(ge=0, le=2**31)] = 0,
    end: Annotated[int | None, Query(ge=0, le=2**31)] = None,
) -> JsonAnswer:
    """Return a document with its text, or the part of it from `start` to `end`, in characters; at most 100,000 at a time."""
    _, chosen = service.index(index, key)
    return JsonAnswer(await service.run(document_fields, chosen, id, key, start, end))


def document_fields(index: Index, id: str, key: Key | None, start: int, end: int | None) -> Json:
    """Return the fields of a document and a part of its text. Problem 404."""
    row = visible(index, id, key)
    first = min(start, row.characters)
    last = max(first, min(row.characters if end is None else end, row.characters, first + CHARACTERS))
    return {**_row(row), "text": index.text(row, Span(first, last)), "start": first, "end": last}


def visible(index: Index, id: str, key: Key | None) -> DocumentRow:
    """Return the document of that name, if the key sees it. Problem 404. Absolute server paths are not accepted as names."""
    rows = [row for row in index.find(id) if row.source == id and sees(index, row, key)]
    if len(rows) != 1:
        raise Problem(404, f"there is no document {id[:200]!r}" if not rows else f"{id[:200]!r} names several documents")
    return rows[0]


def sees(index: Index, row: DocumentRow, key: Key | None) -> bool:
    """Return whether a document matches the filter that the key is bound to."""
    if key is None or key.filters is None:
        return True
    both = {"operator": "AND", "conditions": [key.filters, {"field": "id", "operator": "==", "value": row.source}]}
    return any(match.id == row.id for match in index.documents(both))


@router.delete("/v1/documents/{id:path}", responses={200: {"model": Deleted}, **RESPONSES}, response_class=JsonAnswer)
async def delete(id: str, service: Serving, key: Asker, index: IndexName = None) -> JsonAnswer:
    """Delete a document, and its file if it was sent as one."""
    name, _ = service.index(index, key)
    if name not in service.jobs:
        raise Problem(403, f"this server changes nothing in {name}")
    count = await service.run(service.jobs[name].delete, id)
    if not count:
        raise Problem(404, f"there is no document {id[:200]!r}")
    return JsonAnswer({"deleted": count})


@router.get("/v1/jobs", responses={200: {"model": JobList}, **RESPONSES}, response_class=JsonAnswer)
async def jobs(service: Serving, key: Asker, index: IndexName = None) -> JsonAnswer:
    """List additions, newest first."""
    _refuse_filtered(key)
    return JsonAnswer({"object": "list", "data": [job.fields() for job in _jobs(service, index, key).listed()[:100]]})


@router.get("/v1/jobs/{id}", responses={200: {"model": JobFields}, **RESPONSES}, response_class=JsonAnswer)
async def job(id: str, service: Serving, key: Asker) -> JsonAnswer:
    """Return the progress of an addition, and its report once it is done."""
    return JsonAnswer(_job(service, id, key).fields())


@router.get(
    "/v1/jobs/{id}/events",
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **RESPONSES},
    response_class=StreamingResponse,
)
async def events(id: str, service: Serving, key: Asker) -> StreamingResponse:
    """Send the same as server-sent events: one for each change, the last one when the addition is done or has failed."""
    return StreamingResponse(_watched(service, _job(service, id, key)), media_type="text/event-stream")


async def _watched(service: Service, job: Job) -> AsyncIterator[str]:
    sent = -1
    while True:
        if job.version != sent:
            sent = job.version
            yield f"id: {sent}\nevent: {job.state}\ndata: {json.dumps(job.fields())}\n\n"
            if job.state in DONE and job.finished is not None:
                return
        if service.stopping.is_set():
            return
        await asyncio.sleep(WATCH)


def _job(service: Service, id: str, key: Key | None) -> Job:
    _refuse_filtered(key)
    for name, jobs in service.jobs.items():
        job = jobs.get(id)
        if job is not None and (key is None or key.index in (None, name)):
            return job
    raise Problem(404, f"there is no job {id[:100]!r}")


def _refuse_filtered(key: Key | None) -> None:
    if key is not None and key.filters is not None:
        raise Problem(403, f"the key {key.name!r} is bound to a filter, and jobs name documents outside it")


PNG: dict[int | str, Json] = {
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
    query: Annotated[
        str | None, Query(description="mark what this question finds, in a document or on the image of a page")
    ] = None,
    k: Annotated[int, Query(ge=1, le=50)] = 1,
    dpi: Annotated[int, Query(ge=18, le=300)] = 110,
    mark: Annotated[Mark, Query(description="heat: only the map of where on the page's image the question was found")] = "all",
) -> Response:
    """Return a page with the evidence marked. `reference` is the key of a hit, or a document's id."""
    _, chosen = service.index(index, key)
    question = None if query is None else query_of(query, {}, service.limits)
    png = await service.run(marked_page, chosen, reference, key, page=page, query=question, k=k, dpi=dpi, mark=mark)
    return Response(png, media_type="image/png")


class PageRequest(BaseModel):
    """What to mark on a page."""

    query: Annotated[str | InputItem, Field(description="a text; or {image}, {text, image} where the index sees pages")]
    index: str | None = Field(None, description="its name, where the server has several")
    page: int | None = Field(None, ge=1, le=1_000_000, description="the first with evidence if left out")
    k: int = Field(1, ge=1, le=50)
    dpi: int = Field(110, ge=18, le=300)
    mark: Mark = Field("all", description="heat: only the map of where on the page's image the query was found")


@router.post("/v1/pages/{reference:path}.png", responses=PNG, response_class=Response)
async def page_for(reference: str, body: PageRequest, service: Serving, key: Asker) -> Response:
    """Return the same for a query that is a picture, or a text with one. It changes nothing."""
    _, index = service.index(body.index, key)
    files = {} if isinstance(body.query, str) else await fetched(urls_of([body.query]), service.fetcher, service.limits)

    def draw() -> bytes:  # the picture is decoded here, too: in one of a few threads
        query = query_of(body.query, files, service.limits)
        return marked_page(index, reference, key, page=body.page, query=query, k=body.k, dpi=body.dpi, mark=body.mark)

    return Response(await service.run(draw), media_type="image/png")


def marked_page(
    index: Index,
    reference: str,
    key: Key | None,
    *,
    page: int | None,
    query: Question | None = None,
    k: int = 1,
    dpi: int = 110,
    mark: Mark = "all",
) -> bytes:
    """Return a page as PNG. Problem 404 for what does not exist, or not for this key; 409 if the file of the page is gone or was
    changed; ValueError for a query that the index cannot answer."""
    shown = _evidence(index, reference, key)
    if query is not None:
        shown = evidence(index, reference, query=query, k=k)
    numbers = [each.number for each in index.pages(shown.row)]
    with_evidence = (*(shown.heat if mark == "heat" else ()), *shown.pages)
    number = page or next(iter(with_evidence), None)
    if number is None or number not in numbers:
        raise Problem(404, f"{shown.row.source} has no such page: it has {len(numbers)}")
    try:
        return page_png(index, shown, page=number, dpi=dpi, mark=mark)
    except StorageError as error:
        raise Problem(409, f"the file of {shown.row.source} is not there, or is not what was indexed") from error


def _evidence(index: Index, reference: str, key: Key | None) -> Evidence:
    """Return the evidence that a hit's key or a document's id names, if the key sees the document. Problem 404."""
    problem = Problem(404, f"there is nothing to show by {reference[:200]!r}")
    try:
        shown = evidence(index, reference)
    except ValueError as error:
        raise problem from error
    if not (reference.isdecimal() or shown.row.source == reference) or not sees(index, shown.row, key):
        raise problem
    return shown
