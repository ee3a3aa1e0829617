# make repro    set up the base and run the main job: teacher, dump, students, report
# make results  converged students, tests/benchmarks/converged.py: hours, resumed by the same command
# make test     set up the development extras too and pass the tests
# make lint     ruff and mypy
# make lowest   the lowest versions that pyproject.toml allows run a small job, in an environment of their own
# make heavy    tests of the extras transformers, tensorboard, mlflow, wandb and ray, installed beside the environment
# make setup    .venv alone, with the base
# Needs git, make and python3 (3.11 or newer); uses uv where it is installed.

PYTHON ?= python3
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# Compiled at once, on all processors: where nothing else writes byte code, every process would compile torch.
INSTALL = if command -v uv >/dev/null 2>&1; then \
		uv pip install --python $(VENV) -c constraints.txt -e $(1); \
	else \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
			-c constraints.txt -e $(1); \
	fi; \
	status=$$?; $(VENV)/bin/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1; exit $$status

.PHONY: setup develop repro results test heavy slow lint lowest clean

setup: $(VENV)/.base
	@echo "next: . $(VENV)/bin/activate"
develop: $(VENV)/.develop

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"python3 is {v.major}.{v.minor}; expected 3.11 or newer; call: make PYTHON=python3.11")'
	@if command -v uv >/dev/null 2>&1; then uv venv --quiet --seed --clear --python $(PYTHON) $(VENV); \
		else $(PYTHON) -m venv --clear $(VENV); fi
	@$(call INSTALL,.)
	@touch $@

$(VENV)/.develop: $(VENV)/.base
	@$(call INSTALL,'.[dev]')
	@touch $@

repro: setup
	$(RUN) dvc repro

results: setup
	$(RUN) python -m tests.benchmarks.converged build/results \
		--out tests/benchmarks/results/converged.json

test: develop
	$(RUN) pytest -n auto --dist worksteal

# Beside the environment, so that `make test` shows that nothing else needs it.
$(VENV)/heavy: $(VENV)/.develop
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ \
		-c constraints.txt transformers regex

# With their own dependencies, of the same versions where the environment has these too.
$(VENV)/trackers: $(VENV)/.develop
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --target $@ \
		-c constraints.txt tensorboard mlflow-skinny sqlalchemy alembic wandb

$(VENV)/ray: $(VENV)/.develop
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --target $@ \
		-c constraints.txt 'ray[client,train]'

heavy: $(VENV)/heavy $(VENV)/trackers $(VENV)/ray
	$(RUN) PYTHONPATH="$(CURDIR)/$(VENV)/heavy" pytest tests/pipeline/modalities/text/models \
		tests/stages/test_text_transformers.py
	$(RUN) PYTHONPATH="$(CURDIR)/$(VENV)/trackers" pytest tests/pipeline/tracking
	$(RUN) PYTHONPATH="$(CURDIR)/$(VENV)/ray" pytest tests/stages/test_on_ray.py

slow: develop
	$(RUN) pytest -m slow

lint: develop
	$(RUN) ruff format --check
	$(RUN) ruff check
	$(RUN) mypy

lowest: develop
	$(RUN) python .ci/lowest.py

clean:
	rm -rf $(VENV) build *.egg-info
