"""npm's MCP conformance runner (@modelcontextprotocol/conformance) against /mcp: `make conformance`, with npx and the registry.

The runner has 32 scenarios. Few are of any server; most call tools, resources and prompts of the runner's own example. So it is
run twice: against the server as it is, and against the same server with that example's tools added, which shows that the
transport, the gate in front of it and the kinds of content are sound. What fails then is listed here, with the reason; the runner
fails the run for a scenario that fails and is not listed, and for one that is listed and passes.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp")

from ragkit import Index
from ragkit.apps.serve import mcp as tools
from ragkit.apps.serve.service import Service
from ragkit.testing import HashEncoder
from tests.apps.serve.conftest import served
from tests.conftest import records

RUNNER = ["-p", "node@22", "-p", "@modelcontextprotocol/conformance@0.1.16", "conformance"]  # older ones of node it cannot read
NO_REQUESTS = "asks the client something in the middle of a call, which takes a session: our tools ask nothing, and keep none"
NO_STREAM = "tells something in the middle of a call; ours answer with one JSON object"
NEVER = {
    "logging-set-level": "no capability of ours: a server's log is its keeper's",
    "tools-call-with-logging": NO_STREAM,
    "tools-call-with-progress": NO_STREAM,
    "tools-call-sampling": NO_REQUESTS,
    "tools-call-elicitation": NO_REQUESTS,
    "elicitation-sep1034-defaults": NO_REQUESTS,
    "elicitation-sep1330-enums": NO_REQUESTS,
    "server-sse-polling": "resumes a stream of a session; a warning, since there is none",
    "server-sse-multiple-streams": "several streams of a session; a warning, since there is none",
    "resources-subscribe": "no capability of ours: nothing is told unasked",
    "resources-unsubscribe": "no capability of ours: nothing is told unasked",
}
OF_THE_EXAMPLE = (
    "completion-complete",
    "tools-call-image",
    "tools-call-audio",
    "tools-call-embedded-resource",
    "tools-call-mixed-content",
    "json-schema-2020-12",
    "resources-read-text",
    "resources-read-binary",
    "resources-templates-read",
    "prompts-get-simple",
    "prompts-get-with-args",
    "prompts-get-embedded-resource",
    "prompts-get-with-image",
)
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==")
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
    "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
    "additionalProperties": False,
}


def add_example(server: Any) -> None:
    """The runner's example server, as its scenarios describe it, on another server."""
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.mcpserver.prompts.base import UserMessage
    from mcp.types import AudioContent, Completion, EmbeddedResource, ImageContent, TextContent, TextResourceContents

    image = ImageContent(type="image", data=base64.b64encode(PIXEL).decode(), mime_type="image/png")

    def embedded(uri: str, kind: str, text: str) -> EmbeddedResource:
        return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=kind, text=text))

    answers: dict[str, list[Any]] = {
        "test_simple_text": [TextContent(type="text", text="This is a simple text response for testing.")],
        "test_image_content": [image],
        "test_audio_content": [AudioContent(type="audio", data=base64.b64encode(b"RIFF").decode(), mime_type="audio/wav")],
        "test_embedded_resource": [embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")],
        "test_multiple_content_types": [
            TextContent(type="text", text="Multiple content types test:"),
            image,
            embedded("test://mixed-content-resource", "application/json", json.dumps({"test": "data", "value": 123})),
        ],
    }

    def answering(content: list[Any]) -> Any:
        return lambda: content

    for name, content in answers.items():
        server.add_tool(answering(content), name=name, description=name, structured_output=False)

    def fails() -> str:
        raise ToolError("This tool intentionally returns an error for testing")

    server.add_tool(fails, name="test_error_handling", description="fails")
    server.add_tool(lambda: "a", name="json_schema_2020_12_tool", description="Tool with JSON Schema 2020-12 features")
    server._tool_manager.get_tool("json_schema_2020_12_tool").parameters = SCHEMA
    server.resource("test://static-text", name="text", mime_type="text/plain")(
        lambda: "This is the content of the static text resource."
    )
    server.resource("test://static-binary", name="binary", mime_type="image/png")(lambda: PIXEL)

    @server.resource("test://template/{id}/data", mime_type="application/json")
    def template(id: str) -> str:
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})

    server.prompt("test_simple_prompt", description="test_simple_prompt")(lambda: "This is a simple prompt for testing.")

    @server.prompt("test_prompt_with_arguments", description="test_prompt_with_arguments")
    def with_arguments(arg1: str, arg2: str) -> str:
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt("test_prompt_with_embedded_resource", description="test_prompt_with_embedded_resource")
    def with_resource(resourceUri: str) -> list[Any]:  # noqa: N803
        content = embedded(resourceUri, "text/plain", "Embedded resource content for testing.")
        return [UserMessage(content), UserMessage("Please process the embedded resource above.")]

    server.prompt("test_prompt_with_image", description="test_prompt_with_image")(
        lambda: [UserMessage(image), UserMessage("Please analyze the image above.")]
    )

    @server.completion()
    async def complete(ref: Any, argument: Any, context: Any) -> Completion:
        return Completion(values=[one for one in ("paris", "park", "party") if one.startswith(argument.value)])


@pytest.mark.slow
@pytest.mark.parametrize("example", [False, True], ids=["as it is", "with the example's tools"])
def test_the_runner_finds_nothing_that_is_not_listed(example: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("npx") is None:
        pytest.skip("npx is not installed, and the runner is a program of npm's")
    make = tools.make_server

    def with_example(service: Service, **settings: Any) -> Any:
        server = make(service, **settings)
        add_example(server)
        return server

    if example:
        monkeypatch.setattr(tools, "make_server", with_example)
    expected = [*NEVER, *(() if example else OF_THE_EXAMPLE)]
    (tmp_path / "expected.yml").write_text("server:\n" + "".join(f"  - {name}\n" for name in expected))
    with Index.open(tmp_path / "library", model=HashEncoder(dims=64)) as index:
        index.add(records())
        with served(Service({"library": index})) as url:
            command = ["npx", "--yes", *RUNNER, "server", "--url", f"{url}/mcp", "--suite", "all"]
            told = subprocess.run(
                [*command, "--expected-failures", str(tmp_path / "expected.yml")],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
    if "Total:" not in told.stdout and "ENOTFOUND" in told.stderr + told.stdout:
        pytest.skip("the npm registry cannot be reached")
    print("\n".join(line for line in told.stdout.splitlines() if line.strip()[:1] in ("✓", "✗", "~", "T", "B")))
    assert told.returncode == 0, told.stdout[-6000:] + told.stderr[-2000:]
