# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
BIN := .venv/bin

.PHONY: demo test browser test-lowest chaos lint bench clean

demo: .venv/ready
	$(BIN)/python -m asgi_sessions demo

test: .venv/ready browser
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

# A real browser for tests/browser: Debian's, installed where it is missing and may be. Elsewhere those tests are skipped.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; } \
	|| echo "no chromium and no way to install it: the tests in a browser will be skipped"

# redis-py's private names that we use are pinned by tests; here on the oldest version that we allow, and of SQLAlchemy, too.
test-lowest: .venv-lowest/ready
	.venv-lowest/bin/python -m pytest -n auto --dist worksteal tests/test_redis_link.py tests/test_redis_store.py \
	tests/test_store_contract.py tests/test_mix_up.py tests/test_cluster_client.py tests/test_sql_store.py

# Trouble on purpose, for a minute on each store, with another seed each time. `make test` has a few seconds of it.
chaos: .venv/ready
	CHAOS_SECONDS=60 $(BIN)/python -m pytest tests/chaos -s --timeout 300 $(PYTEST_ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright

bench: .venv-bench/ready
	.venv-bench/bin/python -m benchmarks.report $(BENCH_ARGS)

clean:
	rm -rf .venv .venv-bench .venv-lowest .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* dist

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# Apart from .venv: the peers' own requirements must not decide what the suite runs on.
.venv-bench/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

.venv-lowest/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' 'redis[hiredis]==5.1.1' 'sqlalchemy==2.0.31'
	touch $@
