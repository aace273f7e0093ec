# Two commands: `make demo` and `make test`. Each makes its own environment in .venv first.
# While you work, `make check`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := out/demo
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
CXX_FILES := $(filter csrc/%,$(SOURCES))

.PHONY: demo test check bench docs docs-serve lint format sanitize clean

demo: $(READY)  ## the main job, small: distil scikit-learn's digits and report, in about two minutes
	rm -rf $(DEMO)
	$(BIN)/cmidd pretrain --networks 4 --epochs 12 --out $(DEMO)/bank.safetensors
	$(BIN)/cmidd distill dm --iterations 200 --out $(DEMO)/dm
	$(BIN)/cmidd distill dm --iterations 200 --out $(DEMO)/dm-cmi --bank $(DEMO)/bank.safetensors
	$(BIN)/cmidd evaluate $(DEMO)/dm $(DEMO)/dm-cmi --random_real 10 --all_real --all_real_epochs 80 --repeats 3 --epochs 200 \
		--out $(DEMO)/evaluation.json
	$(BIN)/cmidd report $(DEMO)/dm $(DEMO)/dm-cmi --evaluations $(DEMO)/evaluation.json \
		--bank $(DEMO)/bank.safetensors --out $(DEMO)/report.html

# Threads of OpenMP sleep where they wait: those of two tests would spin each other off the cores.
test: $(READY)  ## the whole test suite
	CMIKERNELS_REQUIRE_NATIVE=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -n auto --maxprocesses=4 \
		$(PYTEST_ARGS)

# The fast half: without kernels that are interpreted, builds, reports, other processes and the
# memory of a process, and with fewer of hypothesis' examples.
check: $(READY)  ## style, types and the fast half of the tests, in about two minutes
	$(MAKE) lint
	HYPOTHESIS_PROFILE=quick OMP_WAIT_POLICY=passive $(BIN)/pytest -q -x -n auto --maxprocesses=4 \
		-m "not slow" -k "not triton and not cuda and not reference" \
		--ignore-glob '*test_build.py' --ignore-glob '*test_process.py' \
		--ignore-glob '*test_memory.py' --ignore tests/cmidd/report \
		tests/cmikernels tests/cmidd $(PYTEST_ARGS)

bench: $(READY)  ## record the kernels' measurements of docs/results; leave the machine alone
	$(BIN)/python -m bench.kernels --sweeps ipc channels classes
	$(BIN)/python -m bench.kernels.accuracy
	$(BIN)/python -m bench.kernels.overhead
	$(BIN)/python -m bench.render

docs: $(READY)  ## the site, into site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY)  ## the site in a browser, built anew when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=python $(BIN)/lint-imports --no-cache
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

sanitize: $(READY)  ## the native core under AddressSanitizer and UndefinedBehaviorSanitizer
	tests/sanitize.sh $(BIN)/python

# An older pip, such as that of a fresh environment, knows no dependency groups.
$(READY): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --group dev \
		-C cmake.define.CMIKERNELS_EMULATE_CUDA=ON -e ".[cmidd,hub]"
	touch $@

clean:
	rm -rf $(VENV) build dist out site
