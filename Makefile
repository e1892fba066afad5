# `make help` lists the targets. Needs Rust, Python 3.9+ and a network for the first run. `test` also needs rsync and sshd,
# `test-compose` (and with it `ci`) Docker or root; the others need neither.

CARGO ?= cargo
PYTHON ?= python3
export PYTHON
# The binaries are run where cargo puts them: `cargo run --package` would build the dependencies again, with the features
# of that one package.
TARGET := $(or $(CARGO_TARGET_DIR),target)

define build-demo
@echo "Building marketferry; the first time that takes about 5 minutes on two cores"
$(CARGO) build --profile demo --locked --workspace --bin demo --bin uploader --bin puller
endef

.DEFAULT_GOAL := help
.PHONY: help setup demo stack chaos bench bench-scan build test test-compose lint fmt ci secrets certs remote-bundle \
	backup restore

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install the pinned servers into .servers (the other targets do it by themselves)
	$(PYTHON) tests/servers/setup.py

demo: setup ## Ship generated archives (or DATA=path, only read) through real servers and show the result
	$(build-demo)
	$(TARGET)/demo/demo $(if $(DATA),--data "$(DATA)")

stack: setup ## Keep the servers up and print what to export; DIR=path keeps their data
	$(build-demo)
	$(TARGET)/demo/demo stack $(if $(DIR),--dir "$(DIR)")

chaos: setup ## Break servers and processes at random for MINUTES=n (SEED=s repeats a run), then compare every row
	$(CARGO) build --locked --workspace
	$(TARGET)/debug/chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

bench-scan: setup ## Measure rescans of a data_dir of N=100000 small archives (up to 2000000) on real servers
	$(CARGO) build --release --locked --workspace --bins
	$(TARGET)/release/bench-scan $(if $(N),--archives $(N))

# Decoding alone: `cargo bench --package puller`.
bench: setup ## Measure against the peers: QUICK=1 tries it out; ONLY=ingest/day-1m ROUNDS=n ROWS=n (docs/PERFORMANCE.md)
	$(PYTHON) tests/bench/setup.py
	$(CARGO) build --release --locked --workspace --bins
	$(TARGET)/release/bench --json "$(TARGET)/bench.json" $(if $(QUICK),--quick) $(if $(ONLY),--only "$(ONLY)") \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ROWS),--rows $(ROWS))

build: ## Build both binaries for production: target/release/uploader and target/release/puller
	$(CARGO) build --release --locked --workspace --bins

# Binaries and tests in one build: built apart, the dependencies would be compiled twice, with other features. Scenarios wait
# more than they compute, so that two cores have time for three.
test: export RUST_TEST_THREADS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); if [ $$n -lt 3 ]; then echo 3; else echo $$n; fi)
test: setup ## Run all tests on the real servers (they also need rsync and sshd, see tests/servers/setup.py)
	$(PYTHON) tests/servers/setup.py --rsync
	$(CARGO) build --locked --workspace --lib --bins --tests
	$(PYTHON) tests/slowest.py $(TARGET)/scenario-times.txt $(CARGO) test --locked --workspace

test-compose: ## Start, scale, break and upgrade the compose stacks; needs Docker, or root on Debian to install it
	$(PYTHON) tests/compose/run.py $(if $(ONLY),--only "$(ONLY)")

secrets: ## Make what the compose stack logs in with, in ./secrets; SIDE=remote for the uploader's site
	$(PYTHON) deploy/make_secrets.py $(if $(SIDE),--side "$(SIDE)")

certs: ## Make a private CA and the certificate of NATS, in ./secrets, for NATS_PUBLIC_HOST of .env
	$(PYTHON) deploy/make_certs.py $(if $(DAYS),--days "$(DAYS)")

remote-bundle: ## Pack what the remote site needs of this one's secrets; unpack it in the checkout there
	umask 077 && tar -cf remote-bundle.tar secrets/uploader.nk secrets/ca.pem

backup: ## Back the stack's ClickHouse up into ./backups (TO=folder)
	$(PYTHON) deploy/backup.py backup $(if $(TO),--to "$(TO)")

restore: ## Restore the stack's ClickHouse: FROM=backups/….tar (REPLACE=1 drops what is there)
	$(PYTHON) deploy/backup.py restore "$(FROM)" $(if $(REPLACE),--replace)

# The quick checks run first, the build last: it is the one of `test`. Links to private items work in the pages of private
# items, so rustdoc need not warn of them.
lint: export RUSTDOCFLAGS := -D warnings -A rustdoc::private_intra_doc_links
lint: ## Check order of rooms, words, dependencies, format, clippy, documentation and help texts
	$(PYTHON) -m unittest discover --quiet --start-directory tests/lint --pattern 'test_*.py'
	$(PYTHON) tests/lint/rooms.py
	$(PYTHON) tests/lint/words.py
	$(PYTHON) tests/lint/deny.py
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) doc --workspace --no-deps --document-private-items --locked
	$(CARGO) build --locked --workspace --lib --bins --tests
	$(PYTHON) tests/lint/help.py --target $(TARGET)/debug

fmt: ## Format the code
	$(CARGO) fmt --all

# The demo runs with the binaries of the tests: those of `make demo` would take ten minutes more to build.
ci: lint test ## All that must pass before a change goes in
	$(TARGET)/debug/demo
	$(MAKE) test-compose
