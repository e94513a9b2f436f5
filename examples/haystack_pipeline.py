"""A Haystack pipeline over an index: retriever, prompt builder, chat generator.

    pip install "ragkit[cpu,haystack]"
    python examples/haystack_pipeline.py library "Who pays?" --base-url http://127.0.0.1:11434/v1 --model qwen3

The key is read from OPENAI_API_KEY.
"""

from __future__ import annotations

import argparse

from answer import RULES
from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage

from ragkit.integrations.haystack import RagkitDocumentStore, RagkitRetriever

PASSAGES = """{% for document in documents %}[{{ loop.index }}] {{ document.meta.citation.text }}: {{ document.content }}
{% endfor %}
Question: {{ question }}"""


def pipeline(store: RagkitDocumentStore, *, base_url: str, model: str) -> Pipeline:
    made = Pipeline()
    made.add_component("retriever", RagkitRetriever(store, top_k=5))
    template = [ChatMessage.from_system(RULES), ChatMessage.from_user(PASSAGES)]
    made.add_component("prompt", ChatPromptBuilder(template, required_variables=["documents", "question"]))
    made.add_component("model", OpenAIChatGenerator(model=model, api_base_url=base_url))
    made.connect("retriever.documents", "prompt.documents")
    made.connect("prompt.prompt", "model.messages")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("question")
    parser.add_argument("--base-url", default="https://api.openai.com/v1")
    parser.add_argument("--model", default="gpt-4o-mini")
    given = parser.parse_args()

    made = pipeline(RagkitDocumentStore(given.index), base_url=given.base_url, model=given.model)
    asked = {"retriever": {"query": given.question}, "prompt": {"question": given.question}}
    result = made.run(asked, include_outputs_from={"retriever"})
    print(result["model"]["replies"][0].text)
    for number, document in enumerate(result["retriever"]["documents"], start=1):
        print(f"[{number}] {document.meta['citation']['text']}")


if __name__ == "__main__":
    main()
