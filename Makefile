# Two commands: `make demo` and `make test`. Each makes its own environment in .venv first.
# While you work, `make check`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := out/demo
# A network for images of 8 x 8. 20 times the CMI of what DM makes alone is a tenth of DM's loss.
DEMO_DM := --ipc 2 --iterations 150 --batch_real 64 --network convnet:depth=2
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
CXX_FILES := $(filter csrc/%,$(SOURCES))

.PHONY: demo test check bench docs docs-serve lint format sanitize clean

demo: $(READY)  ## the main job, small: distil digits, evaluate, report; four minutes on two idle cores
	rm -rf $(DEMO)
	# One image of each digit, distilled by DSA.
	$(BIN)/cmidd distill dsa --ipc 1 --iterations 60 --batch_real 64 --out $(DEMO)/dsa
	# Two images of each digit, distilled by DM.
	$(BIN)/cmidd distill dm $(DEMO_DM) --out $(DEMO)/dm
	# The bank: the networks in whose feature space CMI is measured.
	$(BIN)/cmidd pretrain --networks 2 --epochs 10 --out $(DEMO)/bank.safetensors
	# Two images of each digit again, by DM with CMI.
	$(BIN)/cmidd distill dm $(DEMO_DM) --bank $(DEMO)/bank.safetensors --cmi_weight 20 --out $(DEMO)/dm-cmi
	# Fresh networks, trained on these images or on as many random real ones, and tested.
	$(BIN)/cmidd evaluate $(DEMO)/dsa --random_real 1 --epochs 300 --together 5 \
		--out $(DEMO)/evaluation-1.json
	$(BIN)/cmidd evaluate $(DEMO)/dm $(DEMO)/dm-cmi --random_real 2 --epochs 300 --together 5 \
		--out $(DEMO)/evaluation-2.json
	$(BIN)/cmidd report $(DEMO)/dsa $(DEMO)/dm $(DEMO)/dm-cmi --evaluations $(DEMO)/evaluation-1.json \
		$(DEMO)/evaluation-2.json --bank $(DEMO)/bank.safetensors --out $(DEMO)/report.html

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
	$(BIN)/python -m bench.kernels.overhead --without-kernels --name overhead-cuda
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
