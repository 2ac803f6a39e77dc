# A line or two a target; `make help` lists them.
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
CKRUN := target/$(HOST)/release/ckrun
PREFIX ?= /usr/local

.PHONY: help build run test test-all bench lint install install-criu deps deps-test deps-all

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

build: deps ## the static binary, target/HOST/release/ckrun, and its emulator
	cargo build --release --locked -p ckrun -p ckrun-softemu

run: build oci-bundles/hello/rootfs ## an example bundle, and a job that moves from one emulator to another
	$(CKRUN) run oci-bundles/hello/
	oci-bundles/move/run $(CKRUN) $(CKRUN)-softemu

test: deps deps-test ## the tests, on the real kernel and with the real clients; needs root
	cargo build --locked -p ckrun
	cargo test --locked --workspace --no-fail-fast

test-all: deps deps-test deps-all ## those and the heavy ones (real programs, a thousand checkpoints), with a summary
	$(MAKE) -C plugins/verilated test
	cargo build --locked -p ckrun
	integration/test-all

bench: build deps-test deps-all ## times against the installed runc, crun and criu: lifecycle, checkpoint and restart; moves
	integration/bench/lifecycle $(CKRUN)
	integration/bench/checkpoint $(CKRUN)
	integration/bench/services/run $(CKRUN)
	integration/bench/move $(CKRUN) $(CKRUN)-softemu
	integration/bench/intercept $(CKRUN)

lint: deps ## formatting and clippy, warnings denied
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

install: build ## the binary, its emulator and the completions for bash, to PREFIX
	install -D -m 0755 $(CKRUN) $(DESTDIR)$(PREFIX)/bin/ckrun
	install -D -m 0755 $(CKRUN)-softemu $(DESTDIR)$(PREFIX)/bin/ckrun-softemu
	$(CKRUN) completions bash | install -D -m 0644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/ckrun

install-criu: install ## besides, ckrun under the name criu, for podman's checkpoints; not over a real one
	test "$$(readlink $(DESTDIR)$(PREFIX)/bin/criu)" = ckrun || ln -s ckrun $(DESTDIR)$(PREFIX)/bin/criu

deps: ## what building and `make run` need of Debian
	@integration/install-packages integration/packages-build.txt

deps-test: ## what the tests need of Debian
	@integration/install-packages integration/packages.txt

deps-all: ## what the heavy tests need of Debian
	@integration/install-packages integration/packages-all.txt

oci-bundles/hello/rootfs:
	oci-bundles/make-rootfs $@
