# keepmark: what a developer runs. `make help` says what each target does.
#
# There is one cargo profile (release) for everything, so that dependencies are compiled once.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# Tests find the guest's kernel and the built program through these.
export KEEPMARK_TEST_TOOLS ?= $(CURDIR)/.tools
# Tests spend much of their time waiting for guests, locks and deadlines, so there are four at once on two processors too.
export RUST_TEST_THREADS ?= $(shell n=$$(nproc); echo $$((n > 4 ? n : 4)))

# Installing, building and testing in turn, whatever -j says: cargo uses all processors itself.
.NOTPARALLEL:

.PHONY: race crash others attack mutants simulate sabotage help deps build lint test demo bench bench-growth fuzz clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install the system packages that building, testing and the demonstration need (Debian 12; as root or by sudo)
	@scripts/deps.sh

build: ## build the program: target/release/keepmark
	$(CARGO) build --release

# The program by itself too: without the features that only the tests' dependencies switch on in others.
lint: ## formatting and clippy, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	$(CARGO) clippy --release -p keepmark -- -D warnings
	$(CARGO) clippy --release -p keepmark --no-default-features -- -D warnings

# The tests' dependencies switch on features in others, so `build` before it would compile half of them twice.
test: deps lint ## everything: packages, lints, build, all tests
	$(CARGO) test --release --workspace --no-fail-fast

demo: deps build ## one guest, from the first full backup to the restored, booted copy
	@scripts/demo.sh

bench: deps build ## speed and memory against other programs, on a disk that the script makes
	@python3 -B benches/run.py

bench-growth: build ## how costs grow with the disk, the repository and the sequence
	$(CARGO) build --release -p keepmark-store --example synthesize
	@python3 -B benches/growth.py

crash: build ## kill keepmark, QEMU and the store's disk at every effect (as root; an hour; `make test` takes a share)
	KEEPMARK_CRASH=all $(CARGO) test --release -p keepmark --test crash -- --nocapture --skip others::

others: build ## at every effect of a backup somebody else acts: people, libvirt, other programs (as root; some hours; `make test` takes a share)
	KEEPMARK_CRASH=all $(CARGO) test --release -p keepmark --test crash -- --nocapture others::

attack: build ## thousands of hostile stores and monitors (`make test` takes a share)
	KEEPMARK_ATTACK=1000 $(CARGO) test --release -p keepmark --test attack -- --nocapture

race: build ## three writers, a pruner and a deleter on one repository, killed at random for ten minutes (`make test` takes one)
	KEEPMARK_RACE_SECONDS=600 $(CARGO) test --release -p keepmark --test race -- --nocapture

simulate: ## SEEDS=N [SEED=S]: simulated histories with faults at every effect; a failing one is told in words
	$(CARGO) run --release -p keepmark-engine --example simulate -- $(or $(SEEDS),1000) $(SEED)

sabotage: ## break one rule after the other and count the histories until the simulation notices
	$(CARGO) run --release -p keepmark-engine --features sabotage --example sabotage

mutants: ## change the decisions in `model` one by one: the crate's own tests must notice each (half an hour)
	[ -x target/tools/bin/cargo-mutants ] || $(CARGO) install cargo-mutants --version 27.1.0 --locked --root target/tools
	CARGO_PROFILE_DEV_DEBUG=0 target/tools/bin/cargo-mutants mutants --package keepmark-model --jobs 1 --output target

fuzz: ## longer property tests of everything that is parsed from outside
	PROPTEST_CASES=20000 $(CARGO) test --release -p keepmark-nbd -p keepmark-model --lib

clean: ## remove what was built (not the packages)
	$(CARGO) clean
