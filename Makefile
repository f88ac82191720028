# Every target works on a fresh Debian 12 as root: what is missing is installed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run build test check race sim fuzz e2e vm bench microbench install clean

VOLUME ?= ./volume
SIZE   ?= 1G
SEED   ?= 1
N      ?= 10000
FUZZTIME ?= 20s
TESTFLAGS ?=

REPORT := ./bin/testreport

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: install build ## serve three replicas, mount ext4 on them at ./mnt, show the status; Ctrl-C ends it (VOLUME= SIZE= PORT=)
	@VOLUME="$(VOLUME)" SIZE="$(SIZE)" scripts/run

build: ## bin/trivet
	@mkdir -p bin
	go build -o bin/trivet ./cmd/trivet

test: install build check bin/testreport ## everything that CI runs: checks, all tests, the short end-to-end tests
	@set -o pipefail; go test -json -tags invariants -timeout 25m -count=1 $(TESTFLAGS) ./... | $(REPORT)

check: install ## formatting, vet, staticcheck, the rules of style, the scripts' syntax
	@scripts/check

race: install bin/testreport ## all but the end-to-end tests under the race detector
	@set -o pipefail; go test -json -race -tags invariants -timeout 30m $(TESTFLAGS) \
	  $$(go list ./... | grep -v '^trivet/e2e') | $(REPORT)

sim: ## the deterministic simulation: N seeds from SEED on
	go test -tags invariants -timeout 0 -count=1 ./sim -run '^TestSim' -args -sim.seed=$(SEED) -sim.n=$(N)

fuzz: ## every fuzz target for FUZZTIME
	FUZZTIME=$(FUZZTIME) scripts/fuzz

e2e: install build bin/testreport ## the long end-to-end tests: 260 kills, every filesystem, half an hour of reclaim, the virtual machine
	@set -o pipefail; TRIVET_LONG=1 go test -json -tags invariants -timeout 3h -count=1 $(TESTFLAGS) ./e2e/... | $(REPORT)

vm: install build bin/testreport ## the real nbd.ko in a virtual machine
	@set -o pipefail; TRIVET_LONG=1 go test -json -tags invariants -timeout 30m -count=1 -run '^TestVM' $(TESTFLAGS) ./e2e | $(REPORT)

bench: install ## Trivet beside nbdkit, one table with ratios (ARGS='-jobs fsync -rounds 5'; see go run ./perf -h)
	go run ./perf $(ARGS)

microbench: ## Go benchmarks with allocations
	go test -run '^$$' -bench . -benchmem ./device/... ./shard/... ./journal/...

install: ## the Debian packages that the other targets need; nothing when they are there
	@scripts/install

clean: ## what was built and cached, not the volume
	rm -rf bin .cache

.PHONY: bin/testreport
bin/testreport:
	@mkdir -p bin && go -C tools build -o ../bin/testreport ./testreport
