"""Search, documents, pages, jobs and reranking over HTTP, each against the Index itself."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from ragkit import Index
from ragkit.apps.serve.jobs import Jobs, clean_name
from ragkit.apps.serve.keys import Key, digest
from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.service import Service
from ragkit.search.hit_json import hit_fields
from ragkit.testing import HashEncoder
from tests.conftest import NOTES, record, records

QUERY = "fish sold at the harbour"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "library", model=HashEncoder(dims=64), chunk_tokens=16) as index:
        index.add(records())
        yield index


@pytest.fixture
def client(index: Index, tmp_path: Path, client_of: Callable[..., Any]) -> Any:
    jobs = Jobs(index, "library", tmp_path / "state")
    return client_of(Service({"library": index}, jobs={"library": jobs}, limits=ServeLimits(k=50)))


def finished(client: Any, job: dict[str, Any]) -> dict[str, Any]:
    for _ in range(300):
        found = client.get(f"/v1/jobs/{job['id']}").json()
        if found["state"] in ("done", "failed"):
            return found
        time.sleep(0.02)
    raise AssertionError(found)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_hits_are_those_of_the_index(client: Any, index: Index, mode: str) -> None:
    answer = client.post("/v1/search", json={"query": QUERY, "k": 4, "mode": mode, "filters": {"lang": "en"}})
    expected = [hit_fields(hit) for hit in index.search(QUERY, 4, mode=mode, filters={"lang": "en"})]
    assert answer.json()["hits"] == json.loads(json.dumps(expected))
    assert answer.json()["hits"]


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_an_explanations_shares_sum_to_the_score(client: Any, mode: str) -> None:
    for hit in client.post("/v1/search", json={"query": QUERY, "mode": mode, "explain": True}).json()["hits"]:
        assert sum(one["share"] for one in hit["explanation"]) == pytest.approx(hit["score"], abs=1e-9)


def test_late_interaction_is_asked_for_like_any_space(tmp_path: Path, client_of: Callable[..., Any]) -> None:
    with Index.open(tmp_path / "multi", model="hash:64+multi16", multi=True, chunk_tokens=16) as index:
        index.add(records())
        client = client_of(Service({"multi": index}))
        for body in ({"mode": "multi"}, {"rerank": "maxsim"}, {"weights": {"chunk.multi": 3, "chunk.lexical": 0.5}}):
            answer = client.post("/v1/search", json={"query": QUERY, "k": 3, "explain": True} | body).json()
            expected = index.search(QUERY, 3, **body)
            assert [(hit["key"], hit["score"]) for hit in answer["hits"]] == [(hit.key, hit.score) for hit in expected]
            for hit in answer["hits"]:
                assert sum(one["share"] for one in hit["explanation"]) == pytest.approx(hit["score"], abs=1e-9)
        assert {"chunk.multi"} < {one["space"] for one in answer["hits"][0]["explanation"]}
        for wrong in ({"weights": {"chunk.nothing": 1}}, {"weights": {"chunk.multi": -1}}, {"mode": "multi", "rerank": "maxsim"}):
            assert client.post("/v1/search", json={"query": QUERY} | wrong).status_code == 400


def test_hits_are_widened_and_refined(client: Any, index: Index) -> None:
    wide = client.post("/v1/search", json={"query": QUERY, "k": 1, "before": 1, "after": 1}).json()["hits"][0]
    assert wide["text"] == index.search(QUERY, 1)[0].expand(before=1, after=1).text
    diverse = client.post("/v1/search", json={"query": QUERY, "k": 3, "diversity": 0.9, "phrasings": ["harbour"]}).json()
    expected = index.search(QUERY, 3, diversity=0.9, phrasings=["harbour"])
    assert [hit["key"] for hit in diverse["hits"]] == [hit.key for hit in expected]


def test_all_is_looked_at_where_that_is_asked_for(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [], Index.search

    def search(self: Index, *given: Any, **settings: Any) -> Any:
        asked.append(settings["exact"])
        return real(self, *given, **settings)

    monkeypatch.setattr(Index, "search", search)
    for body in ({}, {"exact": True}):
        assert client.post("/v1/search", json={"query": QUERY} | body).status_code == 200
    assert asked == [False, True]


@pytest.mark.parametrize(
    "body",
    [
        {"k": 51},
        {"dims": 65},
        {"filters": {"a": {"$no": 1}}},
        {"filters": {"operator": "AND", "conditions": 3}},
        {"expand": "page", "before": 1},
        {"rerank": "nobody"},
        {"index": ""},
    ],
)
def test_what_makes_no_sense_is_a_400(client: Any, body: dict[str, Any]) -> None:
    answer = client.post("/v1/search", json={"query": QUERY} | body)
    assert answer.status_code in (400, 404), answer.text


def test_a_filter_nested_too_deep_is_refused(client: Any) -> None:
    filters: dict[str, Any] = {"lang": "en"}
    for _ in range(9):
        filters = {"$not": filters}
    assert client.post("/v1/search", json={"query": QUERY, "filters": {"$and": [{"lang": "en"}]}}).status_code == 200
    for _ in range(20):
        filters = {"$not": filters}
    answer = client.post("/v1/search", json={"query": QUERY, "filters": filters})
    assert "nested more than 10 deep" in answer.json()["detail"]


def test_documents_are_listed_in_pages_and_read_in_parts(client: Any) -> None:
    first = client.get("/v1/documents", params={"limit": 3}).json()
    rest = client.get("/v1/documents", params={"limit": 3, "after": first["next"]}).json()
    assert [one["id"] for one in (*first["data"], *rest["data"])] == list(NOTES)
    assert rest["next"] is None
    english = client.get("/v1/documents", params={"filters": '{"lang": "en"}'}).json()["data"]
    assert [one["id"] for one in english] == ["bridge", "bread"]
    assert client.get("/v1/documents/otter").json()["text"] == NOTES["otter"]
    part = client.get("/v1/documents/otter", params={"start": 3, "end": 9}).json()
    assert part["text"] == NOTES["otter"][3:9]
    assert client.get("/v1/documents/nobody").status_code == 404


def test_added_documents_are_found_and_deleted_ones_are_not(client: Any) -> None:
    answer = client.post(
        "/v1/documents", json={"documents": [{"id": "new", "text": "Zeppelins land at dawn.", "meta": {"lang": "en"}}]}
    )
    assert answer.status_code == 202
    job = finished(client, answer.json())
    assert [one["source"] for one in job["report"]["added"]] == ["new"]
    assert client.post("/v1/search", json={"query": "zeppelins dawn", "k": 1}).json()["hits"][0]["document_id"] == "new"
    assert client.delete("/v1/documents/new").json() == {"deleted": 1}
    assert client.delete("/v1/documents/new").status_code == 404
    assert client.post("/v1/search", json={"query": "zeppelins dawn", "k": 1}).json()["hits"][0]["document_id"] != "new"


def test_events_end_with_the_report(client: Any) -> None:
    job = client.post("/v1/documents", json={"documents": [record("late", "Late news.")]}).json()
    events = client.get(f"/v1/jobs/{job['id']}/events")
    assert events.headers["content-type"].startswith("text/event-stream")
    last = events.text.strip().split("\n\n")[-1].splitlines()
    assert last[1] == "event: done"
    assert json.loads(last[2].removeprefix("data: "))["report"]["added"][0]["source"] == "late"


def test_a_sent_files_name_is_only_shown(client: Any, tmp_path: Path) -> None:
    files = [("files", ("../../etc/Vögel und mehr.md", b"# Birds\n\nSwifts sleep on the wing.", "text/markdown"))]
    job = finished(client, client.post("/v1/documents/files", files=files).json())
    [added] = job["report"]["added"]
    assert added["source"] == clean_name("../../etc/Vögel und mehr.md")
    hit = client.post("/v1/search", json={"query": "swifts wing", "k": 1}).json()["hits"][0]
    assert hit["document_id"] == added["source"]
    stored = [path for path in (tmp_path / "state").rglob("*") if path.is_file() and path.suffix == ".md"]
    assert [len(path.stem) for path in stored] == [32]
    assert str(tmp_path) not in client.get(f"/v1/documents/{added['source']}").text
    again = [("files", ("Vögel und mehr.md", b"# Birds\n\nSwifts drink on the wing.", "text/markdown"))]
    assert len(finished(client, client.post("/v1/documents/files", files=again).json())["report"]["updated"]) == 1


def test_a_sent_file_that_fails_is_named_as_it_was_sent(client: Any) -> None:
    job = finished(client, client.post("/v1/documents/files", files=[("files", ("hostname", b"a"))]).json())
    [failed] = job["report"]["failed"]
    assert failed["source"] == "hostname"
    assert "no loader takes 'hostname'" in failed["reason"]


def test_names_lose_what_no_name_should_have() -> None:
    assert clean_name("..\\a/b\\c\x00\n\u202ed.pdf") == "cd.pdf"
    assert (clean_name(""), clean_name("a/"), len(clean_name("x" * 999))) == ("upload", "upload", 200)


def test_a_job_that_was_stopped_goes_on_with_the_next_server(index: Index, tmp_path: Path) -> None:
    first = Jobs(index, "library", tmp_path / "state")  # never started: stopped before anything was done
    job = first.submit_records([record("left", "Left over.")])
    path = first.submit_files([("left.txt", io.BytesIO(b"A file that was left."))])
    second = Jobs(index, "library", tmp_path / "state")
    second.start()
    for one in (job.id, path.id):
        for _ in range(300):
            found = second.get(one)
            if found.state == "done" and found.finished:
                break
            time.sleep(0.02)
        assert found.state == "done"
    second.close()
    assert {"left", "left.txt"} <= {row.source for row in index.documents()}
    third = Jobs(index, "library", tmp_path / "state")
    assert third.get(job.id).state == "done"


def test_pages_are_png_with_the_evidence_marked(tmp_path: Path, client_of: Callable[..., Any]) -> None:
    reportlab = pytest.importorskip("reportlab.pdfgen.canvas")
    from PIL import Image

    drawing = reportlab.Canvas(str(tmp_path / "report.pdf"))
    for line in ("The harbour sells fish on Fridays.", "Bread needs a long cold rise."):
        drawing.drawString(72, 700, line)
        drawing.showPage()
    drawing.save()
    with Index.open(tmp_path / "pdfs", model=HashEncoder(64)) as index:
        index.add(tmp_path / "report.pdf")
        client = client_of(Service({"pdfs": index}))
        hit = client.post("/v1/search", json={"query": "bread cold rise", "k": 1}).json()["hits"][0]
        marked = client.get(f"/v1/pages/{hit['key']}.png", params={"page": 2})
        assert marked.headers["content-type"] == "image/png"
        pixels = np.asarray(Image.open(io.BytesIO(marked.content)).convert("RGB")).reshape(-1, 3).astype(int)
        assert ((pixels[:, 0] - pixels[:, 2]) > 60).sum() > 200  # orange
        plain = client.get("/v1/pages/report.pdf.png", params={"page": 1, "query": "bread"})
        assert plain.status_code == 200
        for wrong in ("/v1/pages/999999.png", "/v1/pages/report.pdf.png?page=3", "/v1/pages/nobody.png"):
            assert client.get(wrong).status_code == 404
        assert client.post("/v1/documents", json={"documents": [{"text": "a"}]}).status_code == 403  # only read
        (tmp_path / "report.pdf").write_bytes(b"another")
        changed = client.get("/v1/pages/report.pdf.png", params={"page": 1})
        assert changed.status_code == 409
        assert str(tmp_path) not in changed.text


def test_reranking_is_by_the_models_own_cosines(client: Any) -> None:
    texts = list(NOTES.values())
    answer = client.post(
        "/v1/rerank", json={"query": QUERY, "documents": [texts[0], {"text": texts[1]}, *texts[2:]], "top_n": 3}
    ).json()
    encoder = HashEncoder(64)
    cosines = encoder.encode_document(texts).dense @ encoder.encode_query([QUERY]).dense[0]
    assert [one["index"] for one in answer["results"]] == np.argsort(-cosines, kind="stable")[:3].tolist()
    assert [one["relevance_score"] for one in answer["results"]] == pytest.approx(
        sorted(cosines.tolist(), reverse=True)[:3], abs=1e-6
    )
    assert answer["results"][0]["document"]["text"] == texts[answer["results"][0]["index"]]


def test_reranking_by_a_reranker(index: Index, client_of: Callable[..., Any]) -> None:
    client = client_of(Service({"library": index}, rerankers={"length": lambda query, texts: [len(text) for text in texts]}))
    answer = client.post(
        "/v1/rerank", json={"model": "length", "query": "a", "documents": ["a", "ccc", "bb"], "return_documents": False}
    )
    assert answer.json()["results"] == [{"index": i, "relevance_score": s} for i, s in ((1, 3.0), (2, 2.0), (0, 1.0))]
    hits = client.post("/v1/search", json={"query": QUERY, "rerank": "length", "k": 2}).json()["hits"]
    assert [hit["scale"] for hit in hits] == ["rerank"] * 2


def keyed(name: str, **fields: Any) -> tuple[Key, dict[str, str]]:
    secret = f"rk_{name}_0123456789abcdef"
    return Key(name=name, sha256=digest(secret), **fields), {"Authorization": f"Bearer {secret}"}


def test_a_keys_filter_can_only_be_narrowed(index: Index, client_of: Callable[..., Any]) -> None:
    key, headers = keyed("english", filters={"lang": "en"})
    admin, everything = keyed("admin", scope="admin")
    client = client_of(Service({"library": index}, keys=[key, admin]))
    for filters in (None, {}, {"lang": "de"}, {"$or": [{"lang": "de"}, {"lang": "en"}]}, {"$not": {"lang": "en"}}):
        hits = client.post("/v1/search", json={"query": QUERY, "k": 50, "filters": filters}, headers=headers).json()["hits"]
        assert {hit["document_id"] for hit in hits} <= {"bridge", "bread"}
    assert [one["id"] for one in client.get("/v1/documents", headers=headers).json()["data"]] == ["bridge", "bread"]
    assert client.get("/v1/documents/otter", headers=headers).status_code == 404
    assert client.get("/v1/documents/otter", headers=everything).status_code == 200
    assert client.get("/v1/pages/otter.png", headers=headers).status_code == 404
    otter = next(hit.key for hit in index.search("otters", 5) if hit.document_id == "otter")
    assert "nothing to show" in client.get(f"/v1/pages/{otter}.png", headers=headers).json()["detail"]
    [seen] = client.get("/v1/indexes", headers=headers).json()["data"]
    assert seen["documents"] == 2


def test_a_keys_index_is_its_only_one(index: Index, tmp_path: Path, client_of: Callable[..., Any]) -> None:
    with Index.open(tmp_path / "other", model=HashEncoder(64)) as other:
        other.add([{"id": "secret", "text": "A secret."}])
        key, headers = keyed("bound", index="library", scope="admin")
        client = client_of(Service({"library": index, "other": other}, keys=[key]))
        assert client.post("/v1/search", json={"query": "secret", "index": "other"}, headers=headers).status_code == 403
        assert client.post("/v1/search", json={"query": "secret"}, headers=headers).json()["index"] == "library"
        assert [one["name"] for one in client.get("/v1/indexes", headers=headers).json()["data"]] == ["library"]


@pytest.mark.parametrize("key", ["9" * 19, "9" * 23, "9" * 5000, "٣", "-1", "\0"])
def test_a_key_that_no_unit_can_have_is_a_404(client: Any, key: str) -> None:
    assert client.get(f"/v1/pages/{quote(key)}.png").status_code == 404


def test_documents_have_no_other_name_than_their_source(index: Index, client: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "secret.md"
    path.write_text("# Plans\n\nNobody knows.")
    index.add(path)
    [row] = index.find(str(path))
    for name in (str(path), f"/{path}", row.identity):
        assert client.get(f"/v1/documents/{name}").status_code == 404, name
        assert client.get(f"/v1/pages/{name}.png", params={"query": "plans"}).status_code == 404, name
        assert client.delete(f"/v1/documents/{name}").status_code == 404, name
    assert client.get(f"/v1/documents/{row.source}").status_code == 200
    assert client.delete(f"/v1/documents/{row.source}").json() == {"deleted": 1}
    assert path.exists()


def test_a_deleted_documents_file_is_deleted_too_unless_it_was_sent_again(client: Any, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("one.md", "# One\n\nRivers.")
        file.writestr("two.md", "# Two\n\nLakes.")

    def sent(name: str, content: bytes) -> list[Path]:
        finished(client, client.post("/v1/documents/files", files=[("files", (name, content))]).json())
        return [path for path in (tmp_path / "state" / "files").iterdir() if path.is_file()]

    [page] = sent("birds.md", b"# Birds\n\nSwifts sleep on the wing.")
    assert client.delete("/v1/documents/birds.md").json() == {"deleted": 1}
    assert not page.exists()
    [whole] = sent("both.zip", archive.getvalue())
    one = next(row["id"] for row in client.get("/v1/documents").json()["data"] if row["id"].startswith("both.zip"))
    assert client.delete(f"/v1/documents/{one.replace('#', '%23')}").json() == {"deleted": 1}
    assert whole.exists()
    assert client.delete("/v1/documents/both.zip").json() == {"deleted": 1}
    assert not whole.exists()


@pytest.mark.parametrize("body", [{"query": "a" * 101}, {"query": {"text": "a" * 101}}, {"query": "a", "phrasings": ["a" * 101]}])
def test_a_query_over_the_limit_is_refused(index: Index, client_of: Callable[..., Any], body: dict[str, Any]) -> None:
    client = client_of(Service({"library": index}, limits=ServeLimits(query_characters=100)))
    refused = client.post("/v1/search", json=body)
    assert (refused.status_code, refused.json()["code"]) == (400, "INPUT_TOO_LONG")
    assert client.get("/v1/pages/otter.png", params={"query": "a" * 101}).json()["code"] == "INPUT_TOO_LONG"


def test_hits_that_are_widened_beyond_an_answer_are_refused(index: Index, client_of: Callable[..., Any]) -> None:
    client = client_of(Service({"library": index}, limits=ServeLimits(answer_characters=300)))
    assert client.post("/v1/search", json={"query": QUERY, "k": 2}).status_code == 200
    refused = client.post("/v1/search", json={"query": QUERY, "k": 20, "expand": "section"})
    assert refused.status_code == 400
    assert "ask for fewer" in refused.json()["detail"]


def test_errors_name_no_folder_of_the_server(index: Index, client_of: Callable[..., Any], tmp_path: Path) -> None:
    def broken(query: str, texts: list[str]) -> list[float]:
        raise ValueError(f"{index.path} has no unit 7")

    client = client_of(Service({"library": index}, rerankers={"broken": broken}))
    refused = client.post("/v1/search", json={"query": QUERY, "rerank": "broken"})
    assert (refused.status_code, refused.json()["detail"]) == (400, "library has no unit 7")
