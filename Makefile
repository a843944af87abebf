# `make demo` and `make test` are all a newcomer needs; both set up what is missing first.
PYTHON ?= python3
BIN := .venv/bin
# Bytecode is written when a module is first used: compiling all of it takes longer than the rest of the installation.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile
MAKE_BOTH := @$(MAKE) --no-print-directory --jobs=2

# A stamp's name carries a digest of everything that a part of the installation depends on, so that it does nothing, quickly,
# while these files stay the same, whatever their time stamps say.
digest = $(shell cat $(sort $(1)) | sha256sum | cut -c1-16)
PACKAGE := .venv/package-$(call digest,requirements/package.txt)
KERNELS := .venv/kernels-$(call digest,requirements/package.txt pyproject.toml $(wildcard setup.py csrc/*.cpp csrc/*/*))
DEMO := .venv/demo-$(call digest,requirements/package.txt requirements/demo.txt)
TOOLS := .venv/tools-$(call digest,$(filter-out requirements/docs.txt,$(wildcard requirements/*.txt)))
DOCS := .venv/docs-$(call digest,$(wildcard requirements/*.txt))

.PHONY: interpreter setup setup-demo setup-tests demo test quick tests-of bench check format docs clean

setup: interpreter  ## the package, every extra, what tests, checks and documentation need
	$(MAKE_BOTH) $(KERNELS) $(DOCS)

setup-tests: interpreter  ## the package, every extra, what tests and checks need
	$(MAKE_BOTH) $(KERNELS) $(TOOLS)

setup-demo: interpreter  ## the package and what the demo needs
	$(MAKE_BOTH) $(KERNELS) $(DEMO)

# Where an environment is there already, the interpreter is looked at only if one was asked for.
interpreter:
	@$(if $(and $(wildcard $(PACKAGE)),$(filter file,$(origin PYTHON))),true,$(ASK_INTERPRETER))
ASK_INTERPRETER = \
	{ $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 6))" 2>/dev/null || \
	{ echo "truequant cannot be set up: '$(PYTHON)' is no Python 3 that runs here"; \
	echo "  fix: install it, or give another: make PYTHON=python3.12 demo"; exit 1; } >&2; } && \
	$(PYTHON) requirements/interpreter.py

$(PACKAGE):
	@echo "setting up .venv: torch first, then the other packages while the kernels compile; minutes, once"
	$(PYTHON) -m venv .venv
	@rm -f .venv/package-*
	$(INSTALL) -r requirements/package.txt || { $(BIN)/python requirements/interpreter.py torch || rm -rf .venv; exit 1; }
	@touch $@

$(KERNELS): $(PACKAGE)
	@rm -f .venv/kernels-*
	$(INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

$(DEMO): $(PACKAGE)
	@rm -f .venv/demo-*
	$(INSTALL) -r requirements/demo.txt
	@touch $@

$(TOOLS): $(PACKAGE)
	@rm -f .venv/tools-* .venv/demo-*
	$(INSTALL) $(addprefix -r ,$(filter-out %/docs.txt,$(wildcard requirements/*.txt)))
	@touch $(DEMO) $@

$(DOCS): $(TOOLS)
	@rm -f .venv/docs-*
	$(INSTALL) $(addprefix -r ,$(wildcard requirements/*.txt))
	@touch $@

demo: setup-demo  ## the main job on MNIST; options: make demo ARGS="--model resnet"
	$(BIN)/truequant demo $(ARGS)

test: setup-tests  ## every test, by one worker a core
	$(BIN)/python -m pytest -n logical --dist worksteal $(ARGS)

quick: setup-tests  ## the tests that take seconds
	$(BIN)/python -m pytest -n logical --dist worksteal -m "not slow and not emulated" $(ARGS)

tests-of: setup-tests  ## which tests reach a file: make tests-of FILE=truequant/fake/sites.py
	$(BIN)/python -m pip install --quiet coverage
	$(BIN)/python -m tests.mutants.of $(FILE)

bench: setup-tests  ## the short form of every benchmark of docs/performance.md
	for name in qat_step fake_quantize memory prepare scaling; do $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

check: setup-tests  ## lint, formatting, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## the documentation, into build/site; a warning is an error
	$(BIN)/mkdocs build --quiet

format: setup-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build out truequant/kernels/_native*.so .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
