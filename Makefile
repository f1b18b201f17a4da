# kdns. `make run` serves the sample cluster on 127.0.0.1:1053, `make test` runs every check; both make their own
# environment in .venv and need python3 (3.11 or newer) and make. `make run` installs what the server runs on, `make test` also
# what the tests need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS := $(VENV)/.runs
# The environment's own pip where it has one, else the system's (22.3 or newer): to put one in takes ten seconds.
PIP = $$([ -x $(BIN)/pip3 ] && echo $(BIN)/python -m pip || echo $(PYTHON) -m pip --python $(BIN)/python)
# The image, from the one place that names it; `make image IMAGE=...` builds another.
IMAGE ?= $(shell sed -n 's/^ *newName: *//p' deploy/components/image/kustomization.yaml):$(shell sed -n 's/^ *newTag: *//p' deploy/components/image/kustomization.yaml)
ENGINE ?= $(shell command -v docker || command -v podman || command -v buildah)
# The image's Python; both architectures, as the lists name every file of a version.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.13 --generate-hashes --no-header --no-annotate --upgrade
# Test processes: tests wait more than they work.
WORKERS ?= 3
# Some build machines forbid caches of bytecode. Every process would then compile all of kdns: 1.5 s of CPU for each of
# the hundreds that the tests start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run image push test test-compiled compiled wheel coverage lint types layers unit fuzz torture soak bench bench-scale bench-files bench-overload image-proof lock sbom docs tools clean help

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make run    - serve Corefile.example on 127.0.0.1:1053
run: $(RUNS)
	exec $(BIN)/python -m kdns -conf Corefile.example

## make image  - build the image with docker, podman or buildah
image:
	@[ -n "$(ENGINE)" ] || { echo "make image needs docker, podman or buildah; none is installed (make image-proof builds without one)"; exit 1; }
	$(ENGINE) build -f docker/Dockerfile -t $(IMAGE) .

## make push   - push it to the registry in its name (deploy/components/image)
push: image
	$(ENGINE) push $(IMAGE)

## make test   - lint, types, layers, and every test
test: $(READY) tools lint types layers unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports --no-cache

unit: $(READY)
	$(BIN)/python -m pytest -rs -n $(WORKERS)

## make compiled - build/compiled: a copy of the checkout with the hot modules compiled by mypyc (needs a C compiler)
compiled: $(READY)
	$(BIN)/python hatch_build.py build/compiled

## make test-compiled - every test on the compiled build
test-compiled: tools compiled
	cd build/compiled && ../../$(BIN)/python -m pytest -n $(WORKERS)

## make wheel  - dist/: a wheel with compiled modules (needs a C compiler)
wheel: $(READY)
	KDNS_COMPILE=1 $(BIN)/python -m build --wheel --outdir dist .

## make coverage - what lines the tests run, with a floor
coverage: $(READY) tools
	$(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term:skip-covered

## make fuzz   - drives each harness of tests/fuzz for FUZZ_SECONDS (600) by coverage; needs Atheris (Linux on x86-64)
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= dispatcher upstream corefile expression http
fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,fuzz]'
	set -e; for target in $(FUZZ_TARGETS); do \
	  $(BIN)/python -m tests.fuzz.run $$target -max_total_time=$(FUZZ_SECONDS); \
	done

## make torture - clients, upstreams and API servers that misbehave, row by row (tests/torture/tables.txt), then floods of them, and attacks on TLS, HTTP and QUIC: tables, beside CoreDNS where it is on PATH; some 15 minutes
torture: $(READY) tools
	$(BIN)/python -m pytest -q -n $(WORKERS) $$($(BIN)/python -m tests.torture.tables)
	$(BIN)/python -m tests.torture.load; code=$$?; $(BIN)/python -m tests.torture.encrypted && exit $$code

## make soak   - mixed traffic, reloads and changes for SOAK_MINUTES (30): memory, files and tasks must stay as they are
SOAK_MINUTES ?= 30
soak: $(READY)
	$(BIN)/python -m tests.torture.soak $(SOAK_MINUTES)

## make bench  - CPU a query of both builds beside the floor in C; results go to benchmarks/results.md
bench: $(READY) compiled
	sh benchmarks/tools.sh
	$(BIN)/python -m benchmarks.run

## make bench-scale - a cluster of 150,000 endpoints: start, memory, relist, churn; results go to benchmarks/scale.md
bench-scale: $(READY)
	sh benchmarks/tools.sh
	$(BIN)/python -m benchmarks.scale

## make bench-files - a hosts file and a list of 1,000,000 lines and a Corefile of 2,000 blocks read again under load
bench-files: $(READY)
	$(BIN)/python -m benchmarks.files

## make bench-overload - five times the queries that can be answered: how many replies come in time, with `shed` and without
bench-overload: $(READY)
	sh benchmarks/tools.sh
	$(BIN)/python -m benchmarks.overload

## make image-proof - builds the image without an engine, and runs it as a Pod would (root; see docker/prove.sh)
image-proof:
	sh docker/prove.sh

## make lock   - docker/requirements.txt and build-requirements.txt: all that the image installs, with hashes
lock: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet uv
	$(LOCK) --extra auth --extra quic pyproject.toml -o docker/requirements.txt
	$(BIN)/python -c 'from hatch_build import NEEDS; print("hatchling>=1.27", *NEEDS, sep="\n")' | $(LOCK) - -o docker/build-requirements.txt

## make sbom   - dist/kdns.cdx.json: what the image installs, as CycloneDX
sbom: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet cyclonedx-bom
	mkdir -p dist
	$(BIN)/cyclonedx-py requirements docker/requirements.txt --pyproject pyproject.toml --output-reproducible -o dist/kdns.cdx.json

## make docs   - docs/manuals.md, from the plugins' docstrings; the chart's list of what is not built
docs: $(READY)
	$(BIN)/python -c 'from kdns.cli.plugins import not_built; print("\n".join(not_built()))' > deploy/helm/kdns/not-built.txt
	$(BIN)/python -c 'from kdns.cli.plugins import all_manuals; print(all_manuals(), end="")' > docs/manuals.md

# What tests/tools.sh lists, by the system's package manager where we may; tests name what they skip without it. kubectl and
# helm are yours to install: CONTRIBUTING.md.
tools:
	@sh tests/tools.sh

# The environment; progress is pip's. What is in the checkout runs from it: to build and install it takes a third longer.
$(RUNS): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kdns needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12"; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv --without-pip $(VENV)
	@$(PYTHON) -m pip --python $(BIN)/python --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null || \
	  { echo "$(PYTHON) cannot make an environment: install its venv module (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "Installing what kdns runs on into $(VENV): some 30 MB to fetch"
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > $(VENV)/runs.txt
	$(PIP) install --disable-pip-version-check --no-compile --requirement $(VENV)/runs.txt
	@touch $@

$(READY): $(RUNS)
	@echo "Installing what the tests need into $(VENV): pytest, mypy, ruff and their like"
	@[ -x $(BIN)/pip3 ] || $(BIN)/python -m ensurepip >/dev/null
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

## make clean  - remove the environment and what tools left
clean:
	rm -rf $(VENV) build dist .fuzz .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
