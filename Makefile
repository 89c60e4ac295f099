# Everything a person or CI does with this project. `make demo` and `make test` start from a bare machine with Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
export OMP_NUM_THREADS ?= 2
# Spinning threads starve their neighbours where there are few cores.
export OMP_WAIT_POLICY ?= passive
export RAY_USAGE_STATS_ENABLED = 0

# Tests that start Ray run one after another: actors and endpoints have only seconds to come up.
ON_RAY := tests/serve tests/experiments/test_tune_memory.py $(addprefix tests/recollect/,retrieval/test_embed.py test_cli.py test_cluster.py test_ingest.py test_launch.py test_remote.py test_tune.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-holding test-cluster test-failures test-bucket check bench bench-serve bench-scaling docs clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## create .venv with the exact versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (about two minutes and 6 GB; torch comes with its CUDA libraries and runs without a GPU)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c "import torch, torchvision; assert torch.__version__.startswith('2.14.1') and torchvision.__version__.startswith('0.29.2'), (torch.__version__, torchvision.__version__)"
	@touch $(READY)

demo: $(READY)  ## the whole line: data, search, training, evaluation, report, endpoint   [DATA=folder] [DEMO_KEEP=1]
	$(BIN)/python -m experiments.demo $(if $(DATA),--data '$(DATA)') $(if $(DEMO_KEEP),--keep) $(DEMO_ARGS)

test: $(READY)  ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not slow and not cluster' -n 2 --dist loadfile --durations=10 $(addprefix --ignore=,$(ON_RAY))
	$(BIN)/python -m pytest -q -m 'not slow and not cluster' --durations=10 $(ON_RAY)

test-slow: $(READY)  ## the slow tests
	$(BIN)/python -m pytest -q -m 'slow and not cluster'

test-cluster: $(READY)  ## three hosts in namespaces: ray up, ray submit, serving, a host that dies   [CLUSTER_PAGE=file.md]
	$(BIN)/python -m pytest -q -m cluster tests/cluster

test-failures: $(READY)  ## random kills, full and unwritable disks   [KILLS=6] [SEED=0]
	KILLS=$(or $(KILLS),6) SEED=$(or $(SEED),0) $(BIN)/python -m pytest -q -s -m slow tests/failures

# The server's botocore wants an older dateutil than we pin, so it has an environment of its own.
test-bucket: $(READY)  ## storage in S3, against a server on this machine
	test -x $(VENV)-s3/bin/moto_server || { $(PYTHON) -m venv $(VENV)-s3 && \
	  $(VENV)-s3/bin/python -m pip install --quiet 'moto[s3]==5.2.5' boto3==1.44.8 flask==3.1.3 flask-cors==6.0.5; }
	S3_SERVER=$(CURDIR)/$(VENV)-s3/bin/moto_server $(BIN)/python -m pytest -q tests/recollect/test_s3.py tests/failures/test_storage.py

test-holding: $(READY)  ## load while replicas die, bundles are rolled out and indexes swapped: minutes   [RECOLLECT_HOLD_S=60]
	$(BIN)/python -m pytest -q -s tests/serve/test_holding.py

check: $(READY)  ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=platform:. $(BIN)/lint-imports --no-cache

bench: $(READY)  ## speed of the step, the memory and the feed, as JSON and Markdown
	$(BIN)/python -m benchmarks.speed

bench-scaling: $(READY)  ## workers, Ray's overheads, bytes of the all-reduce -> docs/results/scaling.md, docs/scaling.md
	$(BIN)/python -m benchmarks.scaling

bench-serve: $(READY)  ## the endpoint beside the bare pipeline and an empty deployment -> docs/results/serving.md
	$(BIN)/python -m benchmarks.serve

docs: $(READY)  ## check that the documentation's links and commands are real
	$(BIN)/python -m pytest -q tests/test_docs.py

clean:  ## remove what the other verbs made (not the virtual environment)
	rm -rf runs dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
