# make bench   measure NEO and its GPU-only baseline on this machine (sets up everything first)
# make test    run the tests                     make check   lint, types, import floors, format, line counts
# make test-native   the native tests again, under AddressSanitizer, UBSan and ThreadSanitizer
# make fmt     format all code                   make setup   only set up .venv
VENV := .venv
PY_SOURCES := harness engines neo_engine pacpu workloads results reports src tests tools benchmarks
NATIVE_SOURCES = $(shell git ls-files '*.cpp' '*.h')

.PHONY: help bench test test-native check fmt setup clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,/^VENV/s/^# //p' Makefile

setup:
	@tools/setup.sh dev

# 4 says that a run was invalid, e.g. because a busy machine delayed the client: the table tells which and why.
bench:
	@tools/setup.sh engine
	@$(VENV)/bin/neobench run --engine neo,gpu_only --workload carperai --model tiny \
		--device-blocks 54 --host-memory 256MiB --rate 3,5,7,9 --num-requests 100 || [ $$? -eq 4 ]

# What measures or drives a machine runs alone; the rest shares it.
test: setup
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile tests/unit
	$(VENV)/bin/python -m pytest --ignore tests/unit

test-native: setup
	@tools/test_native.sh

check: setup
	$(VENV)/bin/ruff check $(PY_SOURCES)
	$(VENV)/bin/ruff format --check $(PY_SOURCES)
	$(VENV)/bin/clang-format --dry-run --Werror $(NATIVE_SOURCES)
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python tools/line_counts.py

fmt: setup
	$(VENV)/bin/ruff check --fix-only $(PY_SOURCES)
	$(VENV)/bin/ruff format $(PY_SOURCES)
	$(VENV)/bin/clang-format -i $(NATIVE_SOURCES)

clean:
	rm -rf $(VENV) .cache build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
