"""A LangChain RAG chain over an index: retrieve, prompt, answer, with the documents it stands on.

    pip install "ragkit[cpu,langchain]"
    python examples/langchain_chain.py library "Who pays?" --base-url http://127.0.0.1:11434/v1 --model qwen3

Any LangChain chat model fits in the place of `model`; here it is the endpoint of `answer.py`, so that nothing else is needed.
"""

from __future__ import annotations

import argparse
from typing import Any

from answer import RULES, complete
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

from ragkit import Index
from ragkit.integrations.langchain import RagkitRetriever

PROMPT = ChatPromptTemplate.from_messages([("system", RULES), ("user", "{passages}\n\nQuestion: {question}")])


def numbered(documents: list[Document]) -> str:
    return "\n".join(
        f"[{number}] {document.metadata['citation']['text']}: {document.page_content}"
        for number, document in enumerate(documents, start=1)
    )


def chain(retriever: RagkitRetriever, model: Runnable[Any, Any]) -> Runnable[str, dict[str, Any]]:
    """A question in; the question, the documents and the answer out."""
    answer = PROMPT | model | StrOutputParser()
    return {"documents": retriever, "question": RunnablePassthrough()} | RunnablePassthrough.assign(
        passages=lambda found: numbered(found["documents"])
    ).assign(answer=answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("question")
    parser.add_argument("--base-url", default="https://api.openai.com/v1")
    parser.add_argument("--model", default="gpt-4o-mini")
    given = parser.parse_args()

    def model(prompt: PromptValue) -> str:
        roles = {"human": "user"}
        turns = [{"role": roles.get(one.type, one.type), "content": str(one.content)} for one in prompt.to_messages()]
        return complete(turns, base_url=given.base_url, model=given.model)

    with Index.open(given.index, create=False) as index:
        result = chain(RagkitRetriever(index=index, k=5), RunnableLambda(model)).invoke(given.question)
    print(result["answer"])
    for number, document in enumerate(result["documents"], start=1):
        print(f"[{number}] {document.metadata['citation']['text']}")


if __name__ == "__main__":
    main()
