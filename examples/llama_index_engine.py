"""A LlamaIndex query engine over an index.

    pip install "ragkit[cpu,llama-index]"
    python examples/llama_index_engine.py library "Who pays?" --base-url http://127.0.0.1:11434/v1 --model qwen3

Any LlamaIndex model fits in the place of `Endpoint`; it is here so that nothing else is needed.
"""

from __future__ import annotations

import argparse
from typing import Any

from answer import complete
from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.query_engine import RetrieverQueryEngine

from ragkit import Index
from ragkit.integrations.llama_index import RagkitRetriever


class Endpoint(CustomLLM):
    """An OpenAI-compatible chat endpoint as a model that completes prompts."""

    base_url: str
    model: str

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=complete([{"role": "user", "content": prompt}], base_url=self.base_url, model=self.model))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        whole = self.complete(prompt)
        yield CompletionResponse(text=whole.text, delta=whole.text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("question")
    parser.add_argument("--base-url", default="https://api.openai.com/v1")
    parser.add_argument("--model", default="gpt-4o-mini")
    given = parser.parse_args()

    with Index.open(given.index, create=False) as index:
        model = Endpoint(base_url=given.base_url, model=given.model)
        answer = RetrieverQueryEngine.from_args(RagkitRetriever(index, 5), llm=model).query(given.question)
    print(answer)
    for number, node in enumerate(answer.source_nodes, start=1):
        print(f"[{number}] {node.metadata['citation']['text']}  {node.score:.3f}")


if __name__ == "__main__":
    main()
