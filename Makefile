# weir: build, run and test. "make help" lists the targets.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 5s
ARGS     ?=

# All packages but those whose tests have a target of their own: the end-to-end
# tests, and those that need root for a network.
PACKAGES = $$($(GO) list ./... | grep -vE '/(e2e|chaos/wire|chaos/broken)$$')

.DEFAULT_GOAL := help
.PHONY: help build run test test-go test-e2e test-chaos test-imports fuzz chaos chaos-etcd bin/chaos all-chaos bench bench-go lint vet staticcheck fmt-check tools docs clip clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build bin/weir, a static binary with its version inside
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/weir ./cmd/weir

run: build ## Build, then run a whole local cluster in the foreground (options in ARGS="--listen 0.0.0.0")
	bin/weir cluster $(ARGS)

test: ## Everything that must be green: tools, lint, import rules, tests with -race, fuzzing, end-to-end tests
	@scripts/progress.sh tools    $(MAKE) --no-print-directory tools
	@scripts/progress.sh lint     $(MAKE) --no-print-directory lint
	@scripts/progress.sh imports  $(MAKE) --no-print-directory test-imports
	@scripts/progress.sh go       $(MAKE) --no-print-directory test-go
	@scripts/progress.sh e2e      $(MAKE) --no-print-directory test-e2e
	@scripts/progress.sh chaos+fuzz $(MAKE) --no-print-directory -j3 --output-sync=target all-chaos fuzz
	@echo "make test: all green"

test-go: ## Unit tests of all packages with the race detector, in random order
	CGO_ENABLED=1 $(GO) test -p 4 -race -shuffle=on -count=1 -timeout 10m $(PACKAGES)

test-e2e: ## End-to-end tests: real processes, ffmpeg, ffprobe, rtmpdump, Chromium (one test: ARGS="-run TestName")
	CGO_ENABLED=1 $(GO) test -race -shuffle=on -count=1 -timeout 15m -parallel 4 -v $(ARGS) ./e2e

test-chaos: ## Test the chaos checker, as root: broken builds of weir must fail it
	$(GO) test -count=1 -timeout 9m -parallel 5 -v $(ARGS) ./internal/chaos/wire ./internal/chaos/broken

test-imports: ## Check the import rules: which package of ours may import which
	$(GO) test -count=1 ./internal/importrules

fuzz: ## Run each fuzz target for FUZZTIME (default 5s), behind whatever else runs
	GO="$(GO)" nice -n 19 scripts/fuzz.sh $(FUZZTIME)

chaos: bin/chaos ## Run a cluster under faults for 60 s, as root, and check it (options in ARGS="-seed 7 -for 30m"; docs/chaos.md)
	bin/chaos $(ARGS)

chaos-etcd: bin/chaos
	bin/chaos -engine etcd -for 30s

bin/chaos: build
	$(GO) build -o bin/chaos ./scripts/chaos

# They wait more than they work: the checker runs twice at the same time, and
# fuzzing fits beside all of them.
all-chaos: test-chaos
	$(MAKE) --no-print-directory chaos chaos-etcd

bench: build ## Measure what players cost an edge, in eight minutes, and write docs/performance-table.md (fewer players: BENCH_SCALE=25)
	scripts/bench.sh $(ARGS) > docs/performance-table.md.new
	mv docs/performance-table.md.new docs/performance-table.md

bench-go: ## Run the Go benchmarks with allocation counts, and those of whole clusters
	$(GO) test -run '^$$' -bench . -benchmem -timeout 20m ./...

lint: vet staticcheck fmt-check ## vet, staticcheck and the gofmt check

vet: ## go vet
	$(GO) vet ./...

staticcheck: ## staticcheck, at the version that go.mod names
	$(GO) tool staticcheck ./...

fmt-check: ## Fail if gofmt would change a file
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi

tools: ## Install what the tests need (through apt-get, if it may), or say what is missing
	@scripts/test-tools.sh

docs: ## Write docs/configuration.md from the configuration types
	$(GO) run ./scripts/confdoc > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md

clip: ## Make the looping test clip again (needs ffmpeg with libx264)
	scripts/make-clip.sh

clean: ## Remove what the other targets made
	rm -rf bin dist docs/configuration.md.new docs/performance-table.md.new
