# One word runs each thing; `make` alone lists them. Everything made here stands in .venv and .demo.

PYTHON ?= python3
# The version is held so that the CPU build is the newest that pip can find, and not gigabytes of CUDA.
TORCH ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
EXTRAS := cpu,pdf,pdfium,office,server,mcp,dev
BIN := .venv/bin
READY := .venv/.ready
# One thread per worker: two workers whose torch and FAISS each took all cores would wait for each other.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=
BENCHES := encode dense maxsim render safety serve

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-long crash kill flip sanitize fuzz fuzz-load fuzz-guided conformance hostile lint types bench docs pages clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1	/' | expand -t 20
	@echo "Another Python: make PYTHON=python3.12 demo. Some of the tests: make test ARGS=tests/load"

demo: $(READY)  ## index an example corpus, ask it questions, print cited hits
	@rm -rf .demo
	@printf '\n== Fourteen documents of a small wind farm\n'
	$(BIN)/python examples/make_corpus.py .demo/corpus
	@printf '\n== An index of them\n'
	$(BIN)/ragkit add .demo/library .demo/corpus
	@printf '\n== Questions\n'
	$(BIN)/ragkit search .demo/library "Why did turbine F07 stand still for more than five weeks?" -k 3
	@echo
	$(BIN)/ragkit search .demo/library "What was the irritating sound that residents complained about?" -k 2
	@echo
	$(BIN)/ragkit search .demo/library "Which month brought the least energy?" -k 1
	@echo
	$(BIN)/ragkit search .demo/library "May AX-2290-A be fitted?" -k 1
	@echo
	$(BIN)/ragkit search .demo/library "Warum stehen die Windräder an warmen Sommerabenden still?" -k 1
	@printf '\n== The evidence, marked on its page\n'
	$(BIN)/ragkit show .demo/library report.pdf --query "Who decides which village projects get money?" --page 6 --output .demo/evidence.png
	@printf '\n== Scans without a text, found by what they look like\n'
	@$(BIN)/python examples/visual/pages.py .demo/scans > /dev/null
	$(BIN)/python pipelines/visual.py .demo/visual .demo/scans "purple star" "page about delivery" "where is the orange pie chart"
	@echo
	$(BIN)/ragkit show .demo/visual scans.pdf --query "purple star" --output .demo/visual.png
	@printf '\nAsk more: %s search .demo/library "..."\n' $(BIN)/ragkit

test: $(READY)  ## run the default tests
	$(PYTEST) -m "not slow" $(ARGS)

test-long: $(READY)  ## run the long proofs and measurements too
	$(PYTEST) $(ARGS)

crash: $(READY)  ## kill, fail and lose the power at every change that add, replace, delete, compact, rebuild and backup make
	$(BIN)/python -m pytest -s -m slow tests/care/test_interrupted.py tests/care/test_signals.py -k "not random" $(ARGS)

flip: $(READY)  ## flip every byte of every file of a small index, and mend every two damages at once
	$(BIN)/python -m pytest -s -m slow tests/care/test_flips.py tests/care/test_repair.py $(ARGS)

kill: $(READY)  ## kill a writer a thousand times, at any moment
	$(BIN)/python -m pytest -s -m slow tests/care/test_interrupted.py -k random $(ARGS)

# Beside the tree, so that the extension in use stays as it is.
sanitize: $(READY)  ## the MaxSim kernel's tests under the sanitizers of addresses and undefined behaviour
	rm -rf .sanitize && mkdir .sanitize && cp -r ragkit tests pyproject.toml setup.py README.md LICENSE .sanitize/
	cd .sanitize && CFLAGS="-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined" \
		LDFLAGS="-fsanitize=address,undefined" ../$(BIN)/python setup.py build_ext --force --inplace
	cd .sanitize && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONPATH=. ../$(BIN)/python -m pytest tests/store/vectors/test_maxsim.py -k "not compiles and not without_the" $(ARGS)
	rm -rf .sanitize

fuzz: $(READY)  ## ask a server over 10,000 requests that its OpenAPI document allows, or does not
	CASES=16000 $(BIN)/python -m pytest -s --timeout 0 tests/apps/serve/test_openapi.py $(ARGS)

fuzz-load: $(READY)  ## random input to what reads documents and what children say, fifty times as much as in the tests
	RAGKIT_FUZZ=50 $(BIN)/python -m pytest -s --timeout 0 tests/load -k "any or plain_reading or covers" $(ARGS)

fuzz-guided: $(READY)  ## the same guided by coverage, a minute for each of 24 formats (installs atheris; SECONDS=60)
	$(PIP) install "atheris>=3.0"
	RAGKIT_SECONDS=$(or $(SECONDS),60) $(BIN)/python -m tests.load.guided

conformance: $(READY)  ## ask the MCP server what npm's conformance runner asks
	$(BIN)/python -m pytest -s -m slow tests/apps/serve/test_conformance.py $(ARGS)

hostile: $(READY)  ## feed 2,000 hostile files to the sandbox, by each PDF engine
	$(BIN)/python -m pytest -s -m slow tests/load/test_hostile.py $(ARGS)

pages: $(READY)  ## what page images bring and cost: drawn pages, fewer patches, a file of 5,000 pages
	$(BIN)/python benchmarks/pages.py drawn $(ARGS)
	$(BIN)/python benchmarks/visual.py reduce --encoder examples/visual/encoder
	$(BIN)/python benchmarks/pages.py long

lint: $(READY)  ## ruff
	$(BIN)/ruff check .

types: $(READY)  ## mypy, strict, on ragkit/
	$(BIN)/mypy

bench: $(READY)  ## run the benchmarks that need no data of yours; the head of each in benchmarks/ says how to run it
	@for name in $(BENCHES); do echo "== $$name"; $(BIN)/python "benchmarks/$$name.py" $(ARGS) || exit 1; done

docs: $(READY)  ## run the examples that stand in the documents
	$(PYTEST) tests/docs $(ARGS)

clean:  ## remove the demo and the caches; .venv stays
	rm -rf .demo build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The one set-up. torch comes first and alone: it is taken from its makers' index of CPU builds, and everything else from
# the usual one. pip keeps an installed torch that satisfies the extras, so the second line never replaces the first.
$(READY): pyproject.toml setup.py $(wildcard ragkit/store/vectors/kernel/*)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "ragkit needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 demo" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "No virtual environment could be made. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "== Installing into .venv, once: torch for CPU, then ragkit with its extras (some minutes, about 2 GB)"
	$(PIP) install --retries 1 --extra-index-url $(TORCH_INDEX) "$(TORCH)"
	$(PIP) install --editable ".[$(EXTRAS)]"
	@touch $@
