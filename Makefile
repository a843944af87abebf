# `make demo` and `make test` are all a newcomer needs; both set up what is missing first.
PYTHON ?= python3
BIN := .venv/bin

# The stamp's name carries a digest of everything that an installation depends on, so that `make setup` does nothing,
# quickly, while these files stay the same, whatever their time stamps say.
INPUTS := $(sort pyproject.toml $(wildcard setup.py requirements/*.txt csrc/*))
STAMP := .venv/installed-$(shell cat $(INPUTS) | sha256sum | cut -c1-16)

.PHONY: setup demo test quick bench check format docs clean

setup: $(STAMP)

$(STAMP):
	$(PYTHON) -m venv .venv
	rm -f .venv/installed-*
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(addprefix -r ,$(wildcard requirements/*.txt))
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-build-isolation --no-deps --editable .
	touch $@

demo: setup  ## the main job on MNIST; options: make demo ARGS="--model resnet"
	$(BIN)/truequant demo $(ARGS)

test: setup  ## every test
	$(BIN)/python -m pytest -n logical --dist worksteal $(ARGS)

quick: setup  ## the tests that take seconds
	$(BIN)/python -m pytest -n logical --dist worksteal -m "not slow and not emulated" $(ARGS)

bench: setup  ## the short form of every benchmark of docs/performance.md
	for name in qat_step fake_quantize memory prepare scaling; do $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

check: setup  ## lint, formatting, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## the documentation, into build/site; a warning is an error
	$(BIN)/mkdocs build --quiet

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build out truequant/kernels/_native*.so .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
