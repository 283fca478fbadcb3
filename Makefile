# Python 3.11 to 3.13; another one: make env PYTHON=/path/to/python3.12
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c '$(SUITABLE)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STORAGE ?= runs
TESTED := torch==2.14.1 torchvision==0.29.1 ray==2.60.0

.PHONY: env demo test test-all lint docs lock

env: .venv/made  ## the environment, in .venv: made once, made again when pyproject.toml or the lock has changed

.venv/made: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found; name one: make env PYTHON=/path/to/python3.12" >&2; exit 2; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

data/elpv/data.csv: | env
	$(BIN)/python data/elpv.py

demo: env data/elpv/data.csv  ## real images to one joint model, in minutes
	$(BIN)/ovr-ray run jobs/recipes/quickstart.yaml --set storage=$(STORAGE)

test: env  ## the fast tests
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: env  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: env  ## the pages of the Python API, in build/api
	$(BIN)/python docs/api.py

lock:  ## constraints.txt anew: the newest releases beside those that the project was tested with
	venv=$$(mktemp -d) && trap "rm -rf $$venv" EXIT && $(PYTHON) -m venv $$venv && \
	$$venv/bin/python -m pip install --quiet --disable-pip-version-check '.[dev,aws]' $(TESTED) && \
	$$venv/bin/python -m pip freeze --exclude ovr-ray > constraints.txt
