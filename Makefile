# The usual tasks; `make help` lists them. Each is a command or two that can as well be run by hand.

STACK := deploy/local/stack.sh

.DEFAULT_GOAL := help
.PHONY: help demo demo-stack test up down status bench fmt lint install

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: install ## two services, their data in one lake, a kill -9, and the proof that nothing was lost; leaves nothing running
	$(STACK) run --with postgres,mongodb deploy/demo/run.sh embedded

demo-stack: install ## the same story with Kafka as the log, PostgreSQL as the catalog and MinIO as the warehouse
	$(STACK) run --with postgres,mongodb,kafka,minio deploy/demo/run.sh stack

# Built before the servers start: a change that does not compile need not wait for them. Most tests wait for servers more than they
# compute, so there are more of them at once than cores; those that keep the cores busy take turns by themselves.
test: install ## unit and end-to-end tests on real servers, which are stopped again unless they ran before
	cargo test --workspace --no-run
	LAKEWARD_TEST_PYTHON="$$(deploy/local/python.sh)" && export LAKEWARD_TEST_PYTHON && \
	RUST_TEST_THREADS="$${RUST_TEST_THREADS:-$$(( 2 * $$(nproc) ))}" $(STACK) run cargo test --workspace

bench: install ## the figures of bench/, as ratios
	$(STACK) run --with postgres,mongodb,kafka,minio bench/run.sh

up: install ## start PostgreSQL, MongoDB, Kafka, MinIO and a schema registry on 127.0.0.1, and leave them running
	$(STACK) up

down: ## stop them; their data stay (stack.sh clean deletes them)
	$(STACK) down

status: ## which of them run
	@$(STACK) status

fmt: ## format all code
	cargo fmt --all

lint: ## formatting and clippy, as CI does
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

install:
	@deploy/local/install.sh
