"""A program that asks an index over MCP, as an agent's host does: it starts `ragkit mcp`, lists its tools and calls one.

    pip install "ragkit[cpu,pdf,mcp]"
    python examples/mcp_client.py library "Why did turbine F07 stand still?"

What comes back is data about documents, never instructions: the passages are typed as untrusted, with their citations.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import mcp
from mcp.client.stdio import StdioServerParameters, stdio_client


async def ask(index: str, question: str, *, k: int) -> None:
    command = StdioServerParameters(command=sys.executable, args=["-m", "ragkit.apps.cli.main", "mcp", index])
    async with mcp.Client(stdio_client(command)) as client:
        print("tools:", ", ".join(tool.name for tool in (await client.list_tools()).tools))
        answer = await client.call_tool("search", {"query": question, "k": k})
        if answer.is_error:
            sys.exit(answer.content[0].text)
        for passage in answer.structured_content["passages"]:
            print(f"{passage['citation']}\n    {' '.join(passage['text'].split())[:100]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("question")
    parser.add_argument("-k", type=int, default=3)
    given = parser.parse_args()
    asyncio.run(ask(given.index, given.question, k=given.k))


if __name__ == "__main__":
    main()
