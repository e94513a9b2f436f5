"""Pages that were seen, over HTTP, MCP and in the frameworks: asked for by words and by pictures, shown with what was found."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("reportlab")

from ragkit import Index
from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.service import Service
from ragkit.apps.show import evidence
from ragkit.search.heat import heat_map
from ragkit.search.hit_json import hit_fields
from tests.apps.serve.conftest import application
from tests.index.test_pages import built, papers_in

SQUARE = (60, 300, 180, 420)  # in points from the top left: what is coloured on each page of signals.pdf


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    path = tmp_path_factory.mktemp("seen")
    with built(papers_in(path / "papers"), path / "library") as index:
        yield index


@pytest.fixture(scope="module")
def client(index: Index) -> Iterator[Any]:
    with application(Service({"library": index})) as client:
        yield client


def picture(colour: str) -> Image.Image:
    image = Image.new("RGB", (480, 640), "white")
    image.paste(Image.new("RGB", (120, 120), colour), (60, 300))
    return image


def sent(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def searched(client: Any, **body: Any) -> Any:
    answer = client.post("/v1/search", json={"query": "red", "k": 3, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["hits"]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.mark.parametrize("mode", ["pages", "hybrid"])
def test_hits_by_words_and_by_pictures_are_those_of_the_index(client: Any, index: Index, mode: str) -> None:
    image = picture("red")
    alone, both = {"image": sent(image)}, {"text": "otters", "image": sent(image)}
    for query, body in (("red", "red"), (image, alone), (("otters", image), both)):
        expected = [hit_fields(hit) for hit in index.search(query, 3, mode=mode)]
        assert searched(client, query=body, mode=mode) == json.loads(json.dumps(expected))
    [best] = searched(client, query={"image": sent(image)}, mode="pages", k=1)
    assert (best["kind"], best["document_id"], best["citation"]["pages"]) == ("page", "signals.pdf", [1])


def test_what_is_no_picture_is_refused_and_so_is_one_where_nothing_sees(client: Any, tmp_path: Path) -> None:
    for query, status in (({"image": "!!!"}, 400), ({"image": "https://example.com/a.png"}, 400), ({}, 422), ({"pdf": "a"}, 422)):
        answer = client.post("/v1/search", json={"query": query})
        assert answer.status_code == status, query
    cut, wide = base64.b64decode(sent(picture("red")))[:-500], sent(Image.new("RGB", (30_000, 1)))
    for image, told in ((base64.b64encode(cut).decode(), "cannot be decoded"), (wide, "times the other")):
        refused = client.post("/v1/search", json={"query": {"image": image}})
        assert refused.status_code == 400
        assert told in refused.json()["detail"]
        assert "the query" in refused.json()["detail"]
    with Index.open(tmp_path / "blind", model="hash:32") as blind:
        blind.add([{"id": "a", "text": "a"}])
        with application(Service({"blind": blind})) as asked:
            for body in ({"query": {"image": sent(picture("red"))}}, {"query": "a", "mode": "pages"}):
                assert asked.post("/v1/search", json=body).status_code == 400


@pytest.mark.parametrize("mode", ["pages", "hybrid"])
def test_explanations_sum_to_the_score_and_say_where_it_is_on_the_page(client: Any, mode: str) -> None:
    hits = searched(client, query="red otters", mode=mode, explain=True)
    for hit in hits:
        assert sum(one["share"] for one in hit["explanation"]) == pytest.approx(hit["score"], abs=1e-9)
    best = hits[0]
    maxsim = next(one["score"] for one in best["via"] if one["space"] == "page.multi")
    assert sum(one["share"] for one in best["matches"]) == pytest.approx(maxsim, rel=1e-5)
    assert np.sum(best["heat"]["cells"]) + best["heat"]["elsewhere"] == pytest.approx(maxsim, rel=1e-5)
    red = next(one for one in best["matches"] if one["query_word"] == "red")
    x0, y0, x1, y1 = red["boxes"][0]["points"]
    assert SQUARE[0] - 30 <= (x0 + x1) / 2 <= SQUARE[2] + 30
    assert SQUARE[1] - 30 <= (y0 + y1) / 2 <= SQUARE[3] + 30


def test_a_page_is_shown_with_boxes_with_its_map_or_plain(client: Any, index: Index) -> None:
    [hit] = searched(client, mode="pages", k=1)
    shown = {
        mark: pixels(client.get(f"/v1/pages/{hit['key']}.png", params={"query": "red", "mark": mark, "dpi": 72}).content)
        for mark in ("boxes", "heat", "none")
    }
    plain = shown["none"]
    explained = index.explain("red", hit["key"])
    expected = np.asarray(heat_map(Image.fromarray(plain.astype(np.uint8)), explained.relevance)).astype(int)
    np.testing.assert_array_equal(shown["heat"], expected)
    changed = np.argwhere((shown["boxes"] != plain).any(axis=-1))
    assert len(changed)
    [box] = [one.box for one in explained.citation.boxes][:1]
    assert np.abs(changed.min(axis=0)[::-1] - np.array([box.x0, box.y0])).max() <= 3  # 72 dpi: a pixel is a point
    [(page, found)] = evidence(index, "signals.pdf", query="red").heat.items()  # by the document's name it is the same
    assert page == 1
    np.testing.assert_array_equal(found.cells, explained.relevance.cells)
    for wrong in ({"mark": "heat"}, {"mark": "heat", "query": "red", "page": 3}, {"mark": "loud"}):
        assert client.get(f"/v1/pages/{hit['key']}.png", params=wrong).status_code in (400, 422), wrong


def test_a_page_is_shown_for_a_picture_and_for_a_text_with_one(client: Any, index: Index) -> None:
    [hit] = searched(client, mode="pages", k=1)
    plain = pixels(client.get(f"/v1/pages/{hit['key']}.png", params={"mark": "none", "dpi": 72}).content)
    page, image = Image.fromarray(plain.astype(np.uint8)), picture("red")
    by_words = pixels(client.get(f"/v1/pages/{hit['key']}.png", params={"query": "red", "mark": "heat", "dpi": 72}).content)
    for query, body in (
        (image, {"image": sent(image)}),
        (("otters", image), {"text": "otters", "image": sent(image)}),
        ("red", "red"),
    ):
        asked = {"query": body, "mark": "heat", "dpi": 72}
        for reference in (hit["key"], "signals.pdf"):
            answer = client.post(f"/v1/pages/{reference}.png", json=asked)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
            expected = heat_map(page, index.explain(query, hit["key"]).relevance)
            np.testing.assert_array_equal(pixels(answer.content), np.asarray(expected).astype(int))
        assert (pixels(answer.content) != by_words).any() == (body != "red")


def test_pictures_for_a_page_have_the_limits_of_those_for_embeddings(client: Any, index: Index, tmp_path: Path) -> None:
    [hit] = searched(client, mode="pages", k=1)
    limits = ServeLimits(input_bytes=1000)
    with application(Service({"library": index}, limits=limits)) as narrow:
        large = {"query": {"image": base64.b64encode(bytes(1001)).decode()}}
        for path, body in ((f"/v1/pages/{hit['key']}.png", large), ("/v1/search", large)):
            refused = narrow.post(path, json=body)
            assert (refused.status_code, refused.json()["code"]) == (400, "INPUT_TOO_LARGE")
    for query, status in (({"image": "!!!"}, 400), ({"image": "https://example.com/a.png"}, 400), ({}, 422), (None, 422)):
        assert client.post(f"/v1/pages/{hit['key']}.png", json={"query": query}).status_code == status, query
    for more, status in (({"k": 51}, 422), ({"dpi": 301}, 422), ({"page": 99}, 404), ({"index": "other"}, 404)):
        assert client.post(f"/v1/pages/{hit['key']}.png", json={"query": "red", **more}).status_code == status, more
    assert client.post("/v1/pages/nothing.png", json={"query": "red"}).status_code == 404
    with Index.open(tmp_path / "blind", model="hash:32") as blind:
        blind.add(Path(index.path).with_name("papers") / "signals.pdf")
        with application(Service({"blind": blind})) as asked:
            refused = asked.post("/v1/pages/signals.pdf.png", json={"query": {"image": sent(picture("red"))}})
            assert refused.status_code == 400
            assert "picture" in refused.json()["detail"]


def test_a_passage_found_by_its_picture_too_carries_where_on_the_page(client: Any, index: Index) -> None:
    pytest.importorskip("mcp")
    [hit] = searched(client, query="red otters", k=1, explain=True)
    [page] = searched(client, query="red otters", mode="pages", k=1)
    assert (hit["kind"], page["kind"]) == ("chunk", "page")
    assert next(one["boxes"] for one in hit["via"] if one["space"] == "page.multi") == page["citation"]["boxes"]
    assert hit["heat"]["page"] == 1
    import mcp

    from ragkit.apps.serve.mcp import make_server

    async def run() -> None:
        async with mcp.Client(make_server(Service({"library": index}))) as client:
            answer = await client.call_tool("search", {"query": "red otters", "k": 1})
            [found] = answer.structured_content["passages"]
            assert found["seen"] == [{"page": 1, "relative": one["relative"]} for one in page["citation"]["boxes"]]
            asked = {"reference": str(found["key"]), "query": "red", "mark": "heat", "dpi": 72}  # by the passage's own key
            shown = pixels(base64.b64decode((await client.call_tool("get_page_image", asked)).content[1].data))
            assert ((shown[..., 0] - shown[..., 2]) > 20).sum() > 100

    asyncio.run(run())
    for name in ("langchain", "llama_index", "haystack"):
        pytest.importorskip(f"ragkit.integrations.{name}")
    from ragkit.integrations.common import metadata

    [found] = index.search("red otters", 1)
    assert metadata(found)["citation"]["seen"] == page["citation"]["boxes"]


def test_mcp_finds_pages_and_shows_what_was_found(index: Index) -> None:
    mcp = pytest.importorskip("mcp")
    from ragkit.apps.serve.mcp import make_server

    async def run() -> None:
        async with mcp.Client(make_server(Service({"library": index}))) as client:
            answer = await client.call_tool("search", {"query": "green", "k": 1, "mode": "pages"})
            [found] = answer.structured_content["passages"]
            assert (found["kind"], found["source"], found["pages"]) == ("page", "signals.pdf", [2])
            asked = {"reference": str(found["key"]), "query": "green", "mark": "heat", "dpi": 72}
            shown = pixels(base64.b64decode((await client.call_tool("get_page_image", asked)).content[1].data))
            assert ((shown[..., 0] - shown[..., 2]) > 20).sum() > 100  # warm colours, of which the page itself has none
            spaces = (await client.call_tool("status", {})).structured_content["indexes"][0]["spaces"]
            assert {"page.dense", "page.multi"} <= set(spaces)

    asyncio.run(run())


def test_the_model_that_sees_the_pages_is_served_too(client: Any, index: Index) -> None:
    names = [one["id"] for one in client.get("/v1/models").json()["data"]]
    assert set(names) == {index.encoder.card.name, index.page_encoder.card.name}


def test_pages_reach_the_frameworks_with_kind_page_and_boxes(index: Index) -> None:
    pytest.importorskip("langchain_core")
    from ragkit.integrations.langchain import RagkitRetriever, RagkitVectorStore

    found = RagkitRetriever(index=index, k=5, mode="pages").invoke("blue")
    cited = found[0].metadata["citation"]
    [hit] = index.search("blue", 1, mode="pages")
    assert (cited["kind"], cited["source"], cited["pages"]) == ("page", "signals.pdf", [4])
    assert cited["boxes"] == hit_fields(hit)["citation"]["boxes"]
    assert found[0].id == "signals.pdf#page=4"
    assert len({one.id for one in found}) == len(found)
    [again] = RagkitVectorStore(index).get_by_ids([found[0].id])
    assert again.page_content == found[0].page_content
    with pytest.raises(ValueError, match="passage"):
        RagkitVectorStore(index).delete([found[0].id])


def test_pages_reach_llama_index_and_haystack_too(index: Index) -> None:
    llama, haystack = (pytest.importorskip(f"ragkit.integrations.{name}") for name in ("llama_index", "haystack"))
    [node] = llama.RagkitRetriever(index, k=1, mode="pages").retrieve("red")
    store = haystack.RagkitDocumentStore(index)  # an open index, or its folder
    [document] = haystack.RagkitRetriever(store, top_k=1, mode="pages").run(query="red")["documents"]
    for cited in (node.node.metadata["citation"], document.meta["citation"]):
        assert (cited["kind"], cited["pages"]) == ("page", [1])
        assert cited["boxes"]
