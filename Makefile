# The door only: it makes .venv from the lock files; what it then calls are Invoke tasks (`invoke` lists them).
# `make demo` and `make test` are all that a new machine needs. PYTHON=python3.12 chooses another Python.

PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 python3.11 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done)
INVOKE := .venv/bin/python -m invoke
PIP := .venv/bin/python -m pip --disable-pip-version-check -q

.PHONY: demo test quick lint lock clean

demo: .venv/run
	@$(INVOKE) demo.run

test: .venv/test
	@$(INVOKE) test

quick: .venv/test
	@$(INVOKE) quick

lint: .venv/test
	@$(INVOKE) lint

lock: .venv/test
	@$(INVOKE) relock

# The demo's servers first: they would go on running without their files.
clean:
	@if [ -e .venv/run ] && [ -d var/demo ]; then $(INVOKE) demo.stop; fi
	rm -rf .venv var/demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.venv/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed: apt-get install python3 python3-venv" >&2; exit 2; }
	@git --version >/dev/null 2>&1 || { echo "git is needed: apt-get install git" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv is not installed: apt-get install $(notdir $(PYTHON))-venv" >&2; exit 2; }
	@echo "making .venv with $(PYTHON)" >&2
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; exit 2; }

# The package itself is installed in place with the build backend of the lock, so that nothing is downloaded unlocked.
.venv/run: .venv/bin/python requirements.lock requirements-build.lock pyproject.toml
	@echo "installing what requirements.lock names (once)" >&2
	@$(PIP) install --require-hashes -r requirements.lock -r requirements-build.lock
	@$(PIP) install --no-deps --no-build-isolation --no-index -e .
	@touch $@

.venv/test: .venv/run requirements-test.lock
	@echo "installing what requirements-test.lock names (once)" >&2
	@$(PIP) install --require-hashes -r requirements-test.lock
	@touch $@
