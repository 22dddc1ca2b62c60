# The only door: every target stands alone and does first what it needs.
# `make help` prints the comments that follow two hashes.

# The distribution's own, which users have; a newer one in PATH would hide what fails with it.
PYTHON ?= /usr/bin/python3
KERNEL ?= build/kernel/debian.deb
IPXE ?= build/ipxe/ipxe.efi
COUNT ?= 10
RESTORES ?= 500
COMMANDS ?= 10000
BENCH ?=
PYTEST_ARGS ?=
# Two for each processor: a test that boots a machine waits for it half of its time.
WORKERS ?= $(shell echo $$((2 * $$(nproc) < 16 ? 2 * $$(nproc) : 16)))

venv := .venv
bin := $(venv)/bin
ready := $(venv)/.ready
runtime := $(venv)/.runtime
headers := build/kernel/headers/build
second := build/kernel/cloud.deb
second_headers := build/kernel/cloud-headers/build
arm64 := build/kernel/arm64.deb
arm64_older := build/kernel/arm64-6.1.deb
arm64_headers := build/kernel/arm64-headers/build
kunit := build/kernel/kunit
trixie := build/kernel/trixie.deb
debian_disk := build/disks/debian.qcow2
ipxe_disk := build/ipxe/ipxe-disk.tar
ipxe_disk_arm64 := build/ipxe-arm64/ipxe-disk.tar
trixie_ipxe := build/ipxe/trixie/ipxe.efi
etcd := build/etcd/etcd.cpio
registry := build/registry/docker-registry
# What shares a machine stays together, in the order of tests/schedule.py.
parallel = $(if $(filter-out 1,$(WORKERS)),-n $(WORKERS))
sources := kboot tests bench conftest.py .ci/build_ipxe_disk.py .ci/fetch_foreign.py

# Many images for CI set it. The tests start hundreds of processes, and each would compile kboot anew.
unexport PYTHONDONTWRITEBYTECODE

MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup kernel kunit-kernel ipxe-disk ipxe-disk-arm64 demo test test-kubevirt test-hosts check format bench bench-docs \
	soak build clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  KERNEL=PATH     the kernel package to boot ($(KERNEL))"
	@echo "  IPXE=PATH       the ipxe.efi for UEFI machines on a cluster ($(IPXE))"
	@echo "  WORKERS=N       test in so many processes at once ($(WORKERS))"
	@echo "  PYTEST_ARGS=... more arguments for pytest, as in: make test PYTEST_ARGS='-k console -x'"
	@echo "  BENCH=NAME      one benchmark; COUNT=N rounds of soak ($(COUNT)); PYTHON=python3.12"

setup: $(ready) ## install Debian packages and a Python environment in .venv

# What kboot needs to boot kernels, and nothing of what its tests need.
$(runtime): pyproject.toml .ci/install-packages
	@.ci/install-packages runtime
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'setup: kboot needs Python 3.11 or newer; say PYTHON=PATH' >&2; exit 1; }
	@test -x $(bin)/python || $(PYTHON) -m venv $(venv)
	@$(bin)/python -m pip install --quiet --disable-pip-version-check --retries 5 -e .
	@touch $@

$(ready): $(runtime)
	@.ci/install-packages
	@$(bin)/python -m pip install --quiet --disable-pip-version-check --retries 5 -e '.[dev]'
	@touch $@

kernel: $(KERNEL) $(second) $(second_headers) ## fetch real Debian kernels and the headers of one, once

# Only this one: a mistyped KERNEL=PATH must not be fetched as if it were the user's kernel.
build/kernel/debian.deb: | $(runtime)
	@.ci/fetch-kernel $@

# Another kernel, for machines that change theirs.
$(second): | $(ready)
	@.ci/fetch-kernel $@ linux-image-cloud-amd64

# From the mirror, as this host's apt knows no packages for another architecture.
$(arm64): .ci/fetch_foreign.py | $(ready)
	@$(bin)/python .ci/fetch_foreign.py aarch64 trixie:linux-image-cloud-arm64 $@

$(arm64_older): .ci/fetch_foreign.py | $(ready)
	@$(bin)/python .ci/fetch_foreign.py aarch64 bookworm:linux-image-arm64 $@

# With them, the soak's crashes are built.
$(arm64_headers): $(arm64_older) .ci/fetch_foreign.py
	@$(bin)/python .ci/fetch_foreign.py aarch64 bookworm:headers:$(arm64_older) $(@D)
	@touch -h $@

# Debian 13's kernel, for the root file system of another release.
$(trixie): .ci/fetch_foreign.py | $(ready)
	@$(bin)/python .ci/fetch_foreign.py x86_64 trixie:linux-image-amd64 $@

# A Debian that boots from its disk. Not for `make test`: it takes minutes, and root.
$(debian_disk): | $(ready)
	@nice $(bin)/python -m tests.debian_disk $@

kunit-kernel: $(kunit) ## build a small kernel with KUnit, and kselftests for it, once

# Not for `make test`: building it takes minutes.
$(kunit): | $(ready)
	@.ci/install-packages kunit
	@nice .ci/build-kunit-kernel $@

# Modules are built with them, for a search of the soak's.
$(headers): build/kernel/debian.deb .ci/fetch-headers
	@.ci/fetch-headers build/kernel/debian.deb $(@D)
	@touch -h $@

# Only of this kernel: the module that the tests crash it with is built for no other.
$(second_headers): $(second) .ci/fetch-headers
	@.ci/fetch-headers $(second) $(@D)
	@touch -h $@

# The same for the other architecture that clusters have.
ipxe-disk-arm64: $(ipxe_disk_arm64) ## the same for nodes that are arm64

build/ipxe-arm64/ipxe.efi: .ci/fetch_foreign.py | $(ready)
	@$(bin)/python .ci/fetch_foreign.py aarch64 ipxe $@

$(ipxe_disk_arm64): build/ipxe-arm64/ipxe.efi .ci/build_ipxe_disk.py kboot/kubevirt/ipxe_disk.py | $(ready)
	@$(bin)/python .ci/build_ipxe_disk.py $< $(@D)

ipxe-disk: $(ipxe_disk) ## build the disk that UEFI machines on a cluster boot iPXE from
	@echo "for a volume claim:  $(dir $(ipxe_disk))ipxe.img"
	@echo "for a registry:      $(ipxe_disk) (see docs/kubevirt.md, UEFI)"

# Only this one, as with KERNEL.
build/ipxe/ipxe.efi: .ci/fetch-ipxe | $(ready)
	@.ci/fetch-ipxe $@

# Debian 13's, beside this host's: both are tested.
$(trixie_ipxe): .ci/fetch-ipxe | $(ready)
	@.ci/fetch-ipxe $@ trixie

# What images are pushed to.
$(registry): .ci/fetch-registry | $(ready)
	@.ci/fetch-registry $@

$(ipxe_disk): $(IPXE) .ci/build_ipxe_disk.py kboot/kubevirt/ipxe_disk.py | $(ready)
	@$(bin)/python .ci/build_ipxe_disk.py $(IPXE) $(@D)

# As somebody would who follows docs/fleets.md.
$(etcd): docs/examples/etcd/initramfs.sh | $(ready)
	@mkdir -p $(@D)
	@sh $< $@

demo: $(runtime) $(KERNEL) ## boot a real kernel and run the acceptance suite on it
	$(bin)/kboot boot $(KERNEL)
	$(bin)/kboot test $(KERNEL)

test: $(ready) $(KERNEL) $(second) $(second_headers) $(arm64) $(ipxe_disk) $(trixie_ipxe) $(registry) ## run the tests, with real boots of a real kernel
	KBOOT_TEST_KERNEL=$(abspath $(KERNEL)) $(bin)/python -m pytest $(parallel) $(PYTEST_ARGS)

# Settings for your cluster (namespace, cluster_patch, cluster_ipxe_disk...) are taken from kboot.toml and KBOOT_*.
test-kubevirt: $(ready) $(KERNEL) ## run what must hold on every cluster, on that of your kubeconfig
	$(bin)/kboot doctor --backend kubevirt
	$(bin)/kboot test --backend kubevirt $(KERNEL)
	KBOOT_TEST_KERNEL=$(abspath $(KERNEL)) $(bin)/python -m pytest --kboot-backend=kubevirt \
		tests/kubevirt/test_any_cluster.py $(PYTEST_ARGS)
	$(bin)/python -m tests.kubevirt.measure_push

test-hosts: ## make demo and test in fresh Debian 12, 13 and sid (SUITES, TARGETS, MIRROR); as root
	@WORKERS=$(WORKERS) PYTEST_ARGS='$(PYTEST_ARGS)' .ci/test-hosts

check: $(ready) ## look for mistakes without running anything: ruff and mypy
	$(bin)/ruff format --check $(sources)
	$(bin)/ruff check $(sources)
	$(bin)/mypy $(sources)

format: $(ready) ## format the code
	$(bin)/ruff format $(sources)
	$(bin)/ruff check --fix $(sources)

bench: $(ready) $(KERNEL) ## measure against references; print a table, write build/bench.json and its plot
	KBOOT_TEST_KERNEL=$(abspath $(KERNEL)) $(bin)/python -m bench $(BENCH)
	$(bin)/python -m bench.plot

bench-docs: $(ready) ## put the last run's plot into docs/performance.svg
	$(bin)/python -m bench.plot --docs

soak: $(ready) $(KERNEL) $(headers) $(second) $(second_headers) $(arm64) $(arm64_older) $(arm64_headers) $(ipxe_disk) $(ipxe_disk_arm64) $(trixie_ipxe) $(registry) $(kunit) $(trixie) $(debian_disk) $(etcd) ## run the tests COUNT times over, then many restores, commands, restarts and kills
	@.ci/install-packages soak
	@for round in $$(seq $(COUNT)); do \
		echo "== soak: round $$round of $(COUNT)"; \
		KBOOT_TEST_KERNEL=$(abspath $(KERNEL)) \
			$(bin)/python -m pytest -q -x $(PYTEST_ARGS) || exit 1; \
	done
	$(bin)/python -m tests.soak_restores $(KERNEL) $(RESTORES)
	$(bin)/python -m tests.soak_restores $(KERNEL) $(RESTORES) disks
	$(bin)/python -m tests.soak_console $(KERNEL) $(COMMANDS)
	$(bin)/python -m tests.soak_ipxe 1000
	$(bin)/python -m tests.soak_ipxe_scripts $(second) $(dir $(trixie_ipxe))
	$(bin)/python -m tests.soak_machines $(KERNEL)
	$(bin)/python -m tests.soak_architectures $(arm64) $(arm64_older)
	$(bin)/python -m tests.soak_fleet $(KERNEL)
	$(bin)/python -m tests.soak_fleet_systems $(KERNEL)
	ROUNDS=10 $(bin)/python -m pytest -s -p no:cacheprovider --kernel=$(abspath $(KERNEL)) \
		--kboot-initrd=$(abspath $(etcd)) docs/examples/etcd
	$(bin)/python -m tests.soak_pool $(KERNEL)
	$(bin)/python -m tests.soak_cluster
	$(bin)/python -m tests.soak_cluster_fleet
	$(bin)/python -m tests.soak_cluster_pool
	$(bin)/python -m tests.soak_disks $(KERNEL)
	$(bin)/python -m tests.soak_systems $(KERNEL) $(trixie)
	$(bin)/python -m tests.soak_boot_disk $(debian_disk) $(KERNEL)
	$(bin)/python -m tests.soak_ktap
	$(bin)/python -m tests.soak_kunit $(kunit)
	$(bin)/python -m tests.soak_bisect build/kernel/debian.deb $(headers) $(second) $(second_headers)

build: $(ready) ## build the wheel and the source archive into build/dist
	$(bin)/python -m build --no-isolation --outdir build/dist

clean: ## remove what make has made, the fetched kernel too
	rm -rf build $(venv) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find kboot tests bench -name __pycache__ -type d -exec rm -rf {} +
