"""A server on this machine that speaks Jina's and OpenAI's embedding contracts, strictly: a field it does not know is an error.

    with EmbeddingsServer() as server:
        server.url                                  # http://127.0.0.1:<port>/v1
        server.script.append((429, {"Retry-After": "1"}, {"detail": "slow down", "code": "RATE_REQUEST_LIMIT_EXCEEDED"}))
        server.requests                             # (headers, body) of each

Behind it the model-free encoder makes texts' vectors, another for queries than for documents; an image's is its pixels, small.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import threading
import time
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from ragkit.encode.late import late_chunk_strings
from ragkit.testing import HashEncoder

KEY = "a-key"
MOST_ITEMS = 2048
JINA_FIELDS = {
    "jina-embeddings-v3": {"dimensions", "task", "late_chunking", "normalized", "truncate"},
    "jina-embeddings-v4": {"dimensions", "task", "late_chunking", "truncate", "return_multivector", "return_tokenized_input"},
    "jina-clip-v1": {"normalized", "truncate"},
}
TASKS = {
    "jina-embeddings-v3": ("retrieval.query", "retrieval.passage", "text-matching", "classification", "separation"),
    "jina-embeddings-v4": ("retrieval.query", "retrieval.passage", "text-matching", "code.query", "code.passage"),
}
OPENAI_FIELDS = {"dimensions", "encoding_format", "user"}
WIDTHS = {
    "jina-embeddings-v3": 1024, "jina-embeddings-v4": 2048, "jina-clip-v1": 768, "text-embedding-3-small": 1536, "own": 48,
    "jina-other": 40,
}  # fmt: skip

Answer = tuple[int, dict[str, str], Any]  # status, headers, body: JSON, bytes as they are, or None to hang up


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class EmbeddingsServer:
    def __init__(self, *, max_tokens: int = 64, key: str = KEY) -> None:
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.script: deque[Answer] = deque()  # answers to give instead, first in, first out
        self.delay = 0.0
        self.seed = 0  # of the model-free encoder: another one is another model
        self.max_tokens = max_tokens
        self.key = key
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server._serve(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> EmbeddingsServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body in self.requests]

    def encoder(self, model: str) -> HashEncoder:
        multi = 128 if model == "jina-embeddings-v4" else 0
        roles = model != "jina-clip-v1"
        return HashEncoder(WIDTHS[model], multi_dims=multi, max_tokens=self.max_tokens, asymmetric=roles, seed=self.seed)

    def image_vector(self, image: Image.Image, width: int) -> np.ndarray:
        small = np.asarray(image.convert("RGB").resize((16, 16)), dtype=np.float32).reshape(-1) - 100
        vector = np.resize(small, width)
        return vector / np.linalg.norm(vector)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        content = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.requests.append((dict(handler.headers), json.loads(content)))
            planned = self.script.popleft() if self.script else None
        time.sleep(self.delay)
        status, headers, body = planned or self._answer(handler, json.loads(content))
        with self.lock:
            self.at_once -= 1  # before the answer goes out: whoever has it may ask again at once
        if body is None:
            handler.close_connection = True
            return
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        with suppress(BrokenPipeError, ConnectionResetError):  # the other side has waited long enough
            handler.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(raw)

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> Answer:
        openai = str(body.get("model")) in ("text-embedding-3-small", "own")
        try:
            if handler.path != "/v1/embeddings":
                raise Refusal(404, "NOT_FOUND", handler.path)
            if handler.headers.get("Authorization") != (f"Bearer {self.key}" if self.key else None):
                raise Refusal(401, "AUTH_INVALID_API_KEY", "the key is not known")
            return 200, {}, self._openai(body) if openai else self._jina(body)
        except Refusal as refusal:
            if openai:
                error = {"message": refusal.message, "type": "invalid_request_error", "param": None, "code": refusal.code}
                return refusal.status, {}, {"error": error}
            shown = {"detail": refusal.message, "code": refusal.code, "request_id": "1"}
            if refusal.status == 422:
                shown = {
                    "detail": "invalid",
                    "errors": [{"field": "body", "message": refusal.message, "type": "", "input": None}],
                }
            return refusal.status, {}, shown

    def _openai(self, body: dict[str, Any]) -> dict[str, Any]:
        known = OPENAI_FIELDS - ({"dimensions"} if body["model"] == "own" else set())
        if extra := set(body) - {"model", "input"} - known:
            raise Refusal(400, "unknown_parameter", f"Unrecognized request argument supplied: {extra}")
        inputs = [body["input"]] if isinstance(body["input"], str) else body["input"]
        if not inputs or not all(isinstance(text, str) and text for text in inputs):
            raise Refusal(400, "invalid_request_error", "'$.input' is invalid")
        encoder = self.encoder(body["model"])
        for count in encoder.count_tokens(inputs):
            if count > self.max_tokens:
                raise Refusal(400, "context_length_exceeded", f"maximum context length is {self.max_tokens} tokens, got {count}")
        self._check_count(inputs)
        rows = encoder.encode_document(inputs, truncate_dim=body.get("dimensions")).dense
        shown = [_shown(row, "base64" if body.get("encoding_format") == "base64" else "float") for row in rows]
        total = int(encoder.count_tokens(inputs).sum())
        data = [{"object": "embedding", "index": i, "embedding": one} for i, one in enumerate(shown)]
        usage = {"prompt_tokens": total, "total_tokens": total}
        return {"object": "list", "data": data[::-1], "model": body["model"], "usage": usage}

    def _jina(self, body: dict[str, Any]) -> dict[str, Any]:
        model = body.get("model")
        if model not in WIDTHS:
            raise Refusal(400, "INPUT_MODEL_NOT_FOUND", f"no model {model}")
        known = JINA_FIELDS.get(model, {"truncate"})
        if extra := set(body) - {"model", "input", "embedding_type"} - known:
            raise Refusal(422, "", f"extra fields not permitted: {sorted(extra)}")
        if "task" in body and body["task"] not in TASKS[model]:
            raise Refusal(422, "", f"task {body['task']!r}")
        if body.get("return_multivector") and "dimensions" in body:
            raise Refusal(422, "", "return_multivector and dimensions exclude each other")
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        self._check_count(inputs)
        items = [self._item(item, images=model != "jina-embeddings-v3" and model in JINA_FIELDS) for item in inputs]
        encoder, truncate = self.encoder(model), bool(body.get("truncate"))
        texts = [item for item in items if isinstance(item, str)]
        late = bool(body.get("late_chunking"))
        counts = encoder.count_tokens(["".join(texts)] if late else texts)
        if len(counts) and counts.max() > self.max_tokens and not truncate:
            raise Refusal(400, "INPUT_TOO_LONG", f"input is too long: {counts.max()} tokens, {self.max_tokens} are allowed")
        data = self._vectors(encoder, items, body, late=late, truncate=truncate)
        usage = {"total_tokens": int(counts.sum()), "prompt_tokens": int(counts.sum())}
        return {"object": "list", "model": model, "data": data, "usage": usage}

    def _vectors(
        self, encoder: HashEncoder, items: list[Any], body: dict[str, Any], *, late: bool, truncate: bool
    ) -> list[dict[str, Any]]:
        kind, width = body.get("embedding_type") or "float", body.get("dimensions")
        encode = encoder.encode_query if str(body.get("task")).endswith(".query") else encoder.encode_document
        if late:
            rows = late_chunk_strings(encoder, items, truncate_dim=width)
            return [{"object": "embedding", "index": i, "embedding": _shown(row, kind)} for i, row in enumerate(rows)]
        data = []
        for i, item in enumerate(items):
            if isinstance(item, str):
                found = encode([item], truncate_dim=width, truncate=truncate)
                dense, multi = found.dense[0], None if found.multi is None else found.multi[0]
            else:
                dense = self.image_vector(item, width or encoder.card.dims)
                multi = self.image_vector(item, 256).reshape(2, 128)
            if body.get("return_multivector"):
                data.append({"object": "embeddings", "index": i, "embeddings": multi.tolist()})
            else:
                data.append({"object": "embedding", "index": i, "embedding": _shown(dense, kind)})
        return data

    def _item(self, item: Any, *, images: bool) -> Any:
        if isinstance(item, str):
            return item
        if isinstance(item, dict) and set(item) == {"text"}:
            return item["text"]
        if not images or not isinstance(item, dict) or set(item) != {"image"}:
            raise Refusal(422, "", f"input {str(item)[:80]!r}")
        if len(item["image"]) > 8_000_000:
            raise Refusal(413, "INPUT_TOO_LARGE", "over 8 MB")
        try:
            image = Image.open(io.BytesIO(base64.b64decode(item["image"], validate=True)))
            image.load()
        except (OSError, binascii.Error) as error:
            raise Refusal(400, "INPUT_INVALID_IMAGE", str(error)) from error
        return image

    def _check_count(self, inputs: list[Any]) -> None:
        if len(inputs) > MOST_ITEMS:
            raise Refusal(400, "INPUT_TOO_MANY", f"{len(inputs)} inputs")


def _shown(row: np.ndarray, kind: str) -> Any:
    return base64.b64encode(row.astype("<f4").tobytes()).decode() if kind == "base64" else row.astype(float).tolist()
