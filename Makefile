# The commands of this project. Only make and a Python >= 3.11 are needed: everything else is installed into .venv,
# exactly what the lock files say, checked by hash. Name a Python with `make run PYTHON=/path/to/python3`.

SHELL = /bin/sh
PYTHON =
VENV = .venv
BIN = $(VENV)/bin
ARGS =
T =
KIND =
AT_ONCE = 3
BENCH =
EXAMPLES = 2000
LOCK = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

# Dozens of our processes start in one run of the tests: what one has compiled, the next need not compile again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test check docs-test bench bench-effects bench-siem weather fuzz crash properties lock test-containers test-sinks test-orchestrators compose-test

help: ## What can be made
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 24

run: ## Set everything up and run the service (ARGS="--port 9000" passes options)
	@$(call installed,embedded)
	@exec $(BIN)/authwatch up $(ARGS)

test: ## Set everything up and run the tests (T=tests/unit runs a part)
	@$(call installed,dev)
	@$(BIN)/python -m pytest $(T)

check: ## What CI runs: lint, format, types, import contract, tests (three files of tests at a time, on two cores; AT_ONCE=1 one)
	@$(call installed,dev)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder $(T)

docs-test: ## Load every rule shown in docs/rules.md and parse every command (also a part of make check)
	@$(call installed,dev)
	@$(BIN)/python -m pytest tests/unit/test_docs_rules.py

test-sinks: ## The SIEM sinks against real servers too: fetches rsyslog from Debian's packages into .cache, for nobody but the tests
	@$(call installed,dev)
	@[ -e .cache/rsyslog/unpacked/usr/sbin/rsyslogd ] || { \
	  command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "make: no apt-get and dpkg here: install rsyslog and rsyslog-gnutls yourself" >&2; exit 1; }; \
	  rm -rf .cache/rsyslog && mkdir -p .cache/rsyslog && cd .cache/rsyslog && \
	  apt-get -q download rsyslog rsyslog-gnutls $$(apt-cache depends rsyslog rsyslog-gnutls | sed -n 's/^ *Depends: \(libestr0\|libfastjson4\|liblognorm5\)$$/\1/p' | sort -u) && \
	  mkdir unpacking && for package in *.deb; do dpkg -x "$$package" unpacking || exit 1; done && mv unpacking unpacked; }
	@$(BIN)/python -m pytest tests/plug_ins/test_sinks_conform.py tests/plug_ins/test_syslog.py \
	  tests/plug_ins/test_syslog_rsyslog.py tests/plug_ins/test_s3.py tests/plug_ins/test_s3_moto.py

test-containers: ## The tests, on servers in containers
	@$(call installed,dev)
	@AUTHWATCH_TEST_SERVERS=containers $(BIN)/python -m pytest $(T)

test-orchestrators: ## Real Prefect, Airflow and n8n, installed into .cache/orchestrators: every hard case (KIND=prefect runs one)
	@$(call installed,dev)
	@AUTHWATCH_ORCHESTRATORS=1 $(BIN)/python -m pytest -s -vv tests/orchestrators$(if $(KIND),/test_$(KIND).py)

compose-test: ## The image and docker-compose.yml, run for real on a Docker engine
	@$(call installed,dev)
	@$(BIN)/python tests/up/compose_run.py

bench: ## The speed figures, each with its control in the same run, into bench/RESULTS.md (BENCH=short tries it)
	@$(call installed,embedded)
	@AUTHWATCH_BENCH="$${AUTHWATCH_BENCH:-$(BENCH)}" $(BIN)/python -m bench.run

bench-effects: ## Open actions drained by one worker, and what a dead destination costs the others (BENCH=short tries it)
	@$(call installed,embedded)
	@AUTHWATCH_BENCH="$${AUTHWATCH_BENCH:-$(BENCH)}" $(BIN)/python -m bench.effects

bench-siem: ## The copy for a SIEM: pushed, fetched, a sink that was down, kills, a million events in order (BENCH=short tries it)
	@$(call installed,embedded)
	@AUTHWATCH_BENCH="$${AUTHWATCH_BENCH:-$(BENCH)}" $(BIN)/python -m bench.siem

weather: ## Slack answers 429 for ten minutes, a pager is down for an hour, 30 times faster than life (WEATHER=full waits)
	@$(call installed,dev)
	@$(BIN)/python -m bench.weather

fuzz: ## The front door and the API under generated input, the long form (about four minutes)
	@$(call installed,dev)
	@AUTHWATCH_FUZZ_EXAMPLES=$${AUTHWATCH_FUZZ_EXAMPLES:-1500} $(BIN)/python -m pytest -s --timeout 600 tests/fuzz

crash: ## The crash suite in full: kills at every step of every effect, 500 under load; AUTHWATCH_CRASH_SEED, _KILLS and _EVENTS choose
	@$(call installed,dev)
	@$(BIN)/python -m pytest -m "slow or not slow" tests/crash/test_effects.py tests/crash/test_siem.py
	@AUTHWATCH_CRASH_KILLS=$${AUTHWATCH_CRASH_KILLS:-500} AUTHWATCH_CRASH_EVENTS=$${AUTHWATCH_CRASH_EVENTS:-20000} \
	  AUTHWATCH_CRASH_RESULT=$${AUTHWATCH_CRASH_RESULT:-bench/crash.md} $(BIN)/python -m pytest -s tests/crash/test_crash.py

properties: ## Any order, duplicates, batches and crashes give the same episodes (EXAMPLES=2000; SEED=1 repeats a run)
	@$(call installed,dev)
	@seed=$${SEED:-$$(date +%s)}; echo "seed $$seed: make properties EXAMPLES=$(EXAMPLES) SEED=$$seed runs the same again"; \
	  AUTHWATCH_PROPERTIES=$(EXAMPLES) $(BIN)/python -m pytest -s --hypothesis-seed=$$seed tests/properties

lock: ## Write the lock files anew from pyproject.toml
	@$(call installed,dev)
	$(LOCK) --extra build pyproject.toml -o requirements.lock
	$(LOCK) --extra build --extra embedded -c requirements.lock pyproject.toml -o requirements-embedded.lock
	$(LOCK) --extra dev -c requirements-embedded.lock pyproject.toml -o requirements-dev.lock
	$(LOCK) --extra build --extra s3 -c requirements-dev.lock pyproject.toml -o requirements-image.lock

# $(call installed,embedded|dev): a .venv that holds what that lock says. A stamp with the lock's checksum makes the next
# call return at once. What holds for dev holds for embedded too, whose versions are the same.
define installed
set -eu; \
here=$$(pwd -P); \
lock=requirements-$(1).lock; \
sum_of() { cat "requirements-$$1.lock" pyproject.toml | cksum; }; \
stamped() { [ "$$(cat "$(VENV)/.installed-$$1" 2>/dev/null)" = "$$(sum_of "$$1")" ]; }; \
whole() { \
  grep -qF "$$here/$(VENV)" "$(VENV)/bin/activate" 2>/dev/null && [ ! -e $(VENV)/.installing ] && \
  $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
}; \
if ! whole; then \
  suits() { "$$1" -c 'import sys, venv, ensurepip, ssl; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
  found=; \
  for python in $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3.14 python3 python); do \
    if suits "$$python"; then found=$$python; break; fi; \
  done; \
  if [ -z "$$found" ]; then \
    echo "make: $(if $(PYTHON),$(PYTHON) is not,there is no) Python 3.11 or newer with its venv module here: install one (on Debian and Ubuntu: python3 and python3-venv), or name it with PYTHON=/path/to/python3" >&2; \
    exit 1; \
  fi; \
  if [ -e $(VENV) ] && [ ! -w $(VENV) ]; then \
    echo "make: $$here/$(VENV) does not work for this user, who may not replace it either: use a clone of your own" >&2; \
    exit 1; \
  fi; \
  echo "creating $(VENV) with $$("$$found" --version)" >&2; \
  rm -rf $(VENV); \
  "$$found" -m venv "$$here/$(VENV)"; \
fi; \
if ! stamped $(1) && ! { [ $(1) = embedded ] && stamped dev; }; then \
  echo "installing what $$lock says ($$(grep -c '^[a-z].*==' $$lock) packages at most; log: $(VENV)/pip.log)" >&2; \
  rm -f $(VENV)/.installed-*; \
  : > $(VENV)/.installing; \
  { \
    PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off --require-hashes -r $$lock && \
    PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off -q --no-deps --no-build-isolation -e . ; \
    echo "exit status $$?"; \
  } 2>&1 | tee $(VENV)/pip.log | { \
    count=0; \
    while IFS= read -r line; do \
      case $$line in \
        Collecting\ *) count=$$((count + 1)); name=$${line#Collecting }; echo "  $$count $${name%% *}" >&2;; \
        Installing\ collected*) echo "  unpacking" >&2;; \
        ERROR*|WARNING*|*rror:*) echo "  $$line" >&2;; \
      esac; \
    done; \
  }; \
  if [ "$$(tail -n 1 $(VENV)/pip.log)" != "exit status 0" ]; then \
    echo "make: the installation failed; the end of $(VENV)/pip.log:" >&2; \
    tail -n 15 $(VENV)/pip.log >&2; \
    exit 1; \
  fi; \
  sum_of $(1) > $(VENV)/.installed-$(1); \
  rm -f $(VENV)/.installing; \
fi
endef
