# `make demo` shows the main job, `make demo-bot` a call to a bot, `make test` proves all; each sets up all
# that it needs.

PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest
COMPILED := $(CURDIR)/.venv-compiled/bin
PURELIB = import sysconfig; print(sysconfig.get_path("purelib"))
PYTHONS ?= 3.12 3.13 3.14
PYTEST := $(BIN)/python -m pytest
# Where a variable names the machine's certificates, to read them takes 25 ms each time; no unit test needs them.
UNIT_PYTEST = SSL_CERT_FILE=/dev/null $(PYTEST)
# Before anything is installed.
TELLING = $(PYTHON) -m testbed.progress
PIP_INSTALL = $(BIN)/pip install --disable-pip-version-check -c constraints.txt
# Tests wait more than they work, most of all for Asterisk's audio: more processes than cores.
unit slow quick tools page nats coverage oldest compiled python-%: PROCESSES ?= 6
asterisk: PROCESSES ?= 10
# All in tests/system needs an Asterisk, tests/page a browser; tests/tools is about testbed/, bench/ and examples/.
UNIT = --ignore tests/system --ignore tests/page --ignore tests/tools -p no:rerunfailures
# Where there are such tests; to collect all of them would take longer than to run these.
SERIAL = $(shell grep -rl --include='*.py' --exclude-dir=system --exclude-dir=page --exclude-dir=tools 'mark\.serial' tests)
# What needs a NATS server is the cluster's: `make nats`.
NATS = $(shell grep -rl --include='*.py' 'mark\.nats' tests)
SLOW = $(shell grep -rl --include='*.py' --exclude-dir=system --exclude-dir=page --exclude-dir=tools 'mark\.slow' tests)
ASTERISK_TESTS = tests/system $(shell grep -rl --include='*.py' 'mark\.asterisk' tests/tools)
PARALLEL = -n $(PROCESSES) --dist worksteal

# What is compiled once need not be compiled by each process of a test run.
types unit slow quick tools page nats coverage oldest compiled asterisk python-%: export PYTHONDONTWRITEBYTECODE =

.NOTPARALLEL:
.PHONY: demo demo-bot test style types clients unit slow quick tools page nats screenshots coverage oldest compiled pythons asterisk fuzz
.PHONY: bench bench-capacity bench-asterisk bench-bots bench-viewers bench-cluster bench-control
.PHONY: cluster faults attacks sample-config dashboard deb package-test first-hour wheel wheels clean

# Less than the tests need, and so sooner there.
demo: .venv/runs
	@echo "Starting the demo ..."
	@$(BIN)/python -m testbed.demo

# Likewise, with a bot that hears and speaks offline.
demo-bot: .venv/runs .venv/stt
	@echo "Starting the demo ..."
	@$(BIN)/python -m testbed.demo_bot

test: style types clients quick page asterisk

style: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# Beside mypy, which takes as long, all tests are compiled: later each process would do that by itself.
types: .venv/installed
	@$(PYTEST) --collect-only -q >/dev/null & \
	  echo $(BIN)/mypy; $(BIN)/mypy; failed=$$?; wait; exit $$failed

unit: .venv/installed
	$(UNIT_PYTEST) $(UNIT) $(PARALLEL) -m "not asterisk and not serial and not slow and not nats"

# What else needs neither an Asterisk nor a browser, and takes as long again: what starts programs or
# makes up many inputs.
slow: .venv/installed
	$(UNIT_PYTEST) -p no:rerunfailures $(PARALLEL) -m "slow and not asterisk and not serial" $(SLOW)
	$(UNIT_PYTEST) $(UNIT) $(SERIAL) -m "not asterisk and serial"

# Both in one: to collect the tests takes its time.
quick: .venv/installed
	$(UNIT_PYTEST) $(UNIT) $(PARALLEL) -m "not asterisk and not serial and not nats"
	$(UNIT_PYTEST) $(UNIT) $(SERIAL) -m "not asterisk and serial"

# The testbed, the bench and the examples, which are no part of the package.
tools: .venv/installed
	$(PYTEST) -p no:rerunfailures $(PARALLEL) -m "not asterisk and not serial" tests/tools
	$(PYTEST) -p no:rerunfailures -m "not asterisk and serial" tests/tools

# In a real browser, with a stand-in for the daemon; where none can be had they are skipped.
page: PROCESSES = 3
page: .venv/installed .venv-node/installed
	-$(BIN)/python -m testbed.chromium get
	$(PYTEST) -p no:rerunfailures $(PARALLEL) -m "not serial" -rs tests/page
	$(PYTEST) -p no:rerunfailures -m serial -rs tests/page

# Those of the README.
screenshots: .venv/installed
	$(BIN)/python -m tests.page.screenshots docs/images

# Apart from `unit`, which would take twice as long.
coverage: .venv/installed
	$(PYTEST) $(UNIT) $(PARALLEL) -m "not asterisk and not serial" --cov

# With the oldest version of each dependency that setup.cfg allows.
oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest $(PARALLEL) -m "not asterisk and not serial" \
	  tests/relay tests/asterisk tests/forks tests/link tests/cluster tests/doors

# What relays a frame, as it is compiled for a wheel: installed, beside a copy of the tests and of nothing that they test.
compiled: .venv-compiled/installed
	rm -rf build/compiled && mkdir -p build/compiled
	cp -a pyproject.toml docs etc examples testbed tests build/compiled
	cd build/compiled && $(COMPILED)/python -m audiofork --version | grep compiled
	cd build/compiled && AUDIOFORK_TESTBED_NATS_SERVER=$(CURDIR)/.venv/bin/nats-server SSL_CERT_FILE=/dev/null \
	  $(COMPILED)/python -m pytest -p no:rerunfailures $(PARALLEL) \
	  -m "not asterisk and not serial and not nats" tests/relay tests/link tests/fuzz tests/test_audiosocket.py

# With other versions of Python, as far as they can be had; `make python-3.13` takes one.
pythons: .venv/installed
	found=$$($(BIN)/python -m testbed.pythons $(PYTHONS)) && \
	  for python in $$found; do $(MAKE) python-$${python##*python} || exit 1; done

python-%: .venv-%/installed
	.venv-$*/bin/python -m pytest $(UNIT) $(PARALLEL) -m "not asterisk and not serial"

# `make asterisk ASTERISK=PREFIX` takes the build that is installed there. What is skipped is told.
ifdef ASTERISK
asterisk: export AUDIOFORK_TESTBED_ASTERISK = $(ASTERISK)
endif
asterisk: .venv/installed .venv/stt clients
	$(BIN)/python -m testbed.asterisk get  # what is fetched once may take longer than a test may
	-$(BIN)/python -m testbed.chromium get
	$(PYTEST) $(PARALLEL) -m "asterisk and not serial and not cluster and not nats" -rs $(ASTERISK_TESTS)
	$(PYTEST) -m "asterisk and serial and not cluster" -rs $(ASTERISK_TESTS)

# The parts of a cluster, and the whole of one beside real Asterisks.
nats: .venv/installed
	$(BIN)/python -m testbed.asterisk get
	$(PYTEST) $(PARALLEL) -m "nats and not cluster" -rs $(NATS)

# As root: what the hosts of a cluster do when networks between them are cut; judges time.
cluster: .venv/installed
	$(BIN)/python -m testbed.asterisk get
	$(PYTEST) -m cluster -rs -s tests/system

# Servers that others wrote, for the tests of formats; those that cannot be had are skipped.
clients: .venv-pipecat/installed .venv-vocode/installed .venv-galcymedia/installed .venv-node/installed

fuzz: .venv/installed
	$(BIN)/python -m tests.fuzz.million

faults: .venv/installed
	$(BIN)/python -m testbed.faults

attacks: .venv/installed
	$(BIN)/python -m testbed.attacks

# `make bench BASE=REV` compares with a revision.
bench: .venv/installed
	$(BIN)/python -m $(if $(BASE),bench.ab --base $(BASE),bench.run)

bench-capacity: .venv/installed
	$(BIN)/python -m bench.capacity

bench-asterisk: .venv/installed
	$(BIN)/python -m bench.beside_asterisk

bench-bots: .venv/installed
	$(BIN)/python -m bench.bots

bench-viewers: .venv/installed
	$(BIN)/python -m bench.viewers

bench-cluster: .venv/installed
	$(BIN)/python -m bench.cluster

bench-control: .venv/installed
	$(BIN)/python -m bench.control_plane

sample-config: .venv/installed
	$(BIN)/python -c "from audiofork import config_sample; print(config_sample.sample(), end='')" > etc/audiofork.ini

# For Grafana; a test compares it with its source, testbed/dashboard.py.
dashboard: .venv/installed
	$(BIN)/python -m testbed.dashboard

# For the system that this runs on; `make deb SUITE=bookworm`, as root, for another release of Debian.
deb: $(if $(SUITE),.venv/installed)
	$(if $(SUITE),$(BIN)/python -m testbed.package.build $(SUITE),packaging/build-deb)

# As root: boots a Debian system from a folder, with systemd as PID 1, and a network of loopback alone.
package-test: SUITE ?= trixie
package-test: .venv/installed
	$(BIN)/python -m testbed.asterisk get
	AUDIOFORK_PACKAGE=$$($(BIN)/python -m testbed.package.build $(SUITE)) && export AUDIOFORK_PACKAGE && \
	  AUDIOFORK_PACKAGE_SUITE=$(SUITE) unshare --net --mount sh -c \
	  'ip link set lo up && exec $(PYTEST) -s -m package tests/system/test_package.py'

# As root: README's way to the first fork, on a Debian system made for it. DEB=1 takes the package; SYSTEMD=no runs the
# system as containers do (sid's systemd wants a machine with unified cgroups). Beside sid's own Asterisk; on another release the build that AUDIOFORK_TESTBED_ASTERISK names.
first-hour: SUITE ?= sid
first-hour: .venv/installed
	$(BIN)/python -m testbed.package.first_hour $(SUITE) $(if $(DEB),--deb) $(if $(filter no,$(SYSTEMD)),--no-systemd)

# The wheel out of the sdist, so that both are whole; then it is installed and run.
wheel:
	$(PYTHON) -m venv build/tools
	build/tools/bin/pip install --quiet --disable-pip-version-check build twine
	rm -f dist/audiofork-*
	build/tools/bin/python -m build --outdir dist
	build/tools/bin/twine check --strict dist/audiofork-*
	$(PYTHON) -m venv --clear build/installed
	build/installed/bin/pip install --quiet --disable-pip-version-check dist/audiofork-*.whl
	build/installed/bin/audiofork --version

# Besides, one for each other version of Python that can be had, with its headers.
wheels: wheel .venv/installed
	for python in $$($(BIN)/python -m testbed.pythons $(PYTHONS)); do \
	  $$python -m venv --clear build/other && \
	  AUDIOFORK_PURE=0 build/other/bin/pip wheel --quiet --disable-pip-version-check --no-deps \
	    --wheel-dir dist dist/audiofork-*.tar.gz || echo "None for $$python"; done

.venv/runs: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(TELLING) "Making a virtual environment, .venv" $(PYTHON) -m venv .venv || \
	  { echo "No virtual environment: apt install python3-venv"; exit 1; }
	@$(TELLING) "Installing audiofork into it" $(PIP_INSTALL) -e .
	@touch $@

.venv/installed: .venv/runs
	@$(TELLING) "Installing what its tests need" $(PIP_INSTALL) -e '.[dev]'
	@touch $@

# For the tests of the example that need speech; where there is no wheel yet they are skipped.
.venv/stt: .venv/runs examples/live-transcription/requirements.txt examples/voice-bot/requirements.txt
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 14))'; then \
	  $(TELLING) "Installing what hears speech" $(PIP_INSTALL) \
	    -r examples/live-transcription/requirements.txt -r examples/voice-bot/requirements.txt; fi
	@touch $@

# The versions that are pinned have wheels up to Python 3.12.
.venv-pipecat/installed .venv-vocode/installed .venv-galcymedia/installed: .venv-%/installed: testbed/clients/%.txt
	$(PYTHON) -m venv --clear .venv-$*
	@if .venv-$*/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then \
	  $(TELLING) "Installing $*" \
	    .venv-$*/bin/pip install --disable-pip-version-check --only-binary :all: --no-deps -r $<; fi
	@touch $@

.venv-node/installed: testbed/clients/package.json testbed/clients/package-lock.json
	mkdir -p .venv-node
	cp $^ .venv-node
	if command -v npm > /dev/null; then cd .venv-node && npm ci --no-audit --no-fund && touch installed; \
	  else echo "No npm (apt install nodejs npm): tests that need it are skipped"; fi

# Of the dev tools those that the tests use are the usual ones.
$(OLDEST)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	sed -nE '/^install_requires/,/^$$/s/^ *([a-z-]+) >= ([0-9.]+).*/\1==\2/p; /^cluster =/,/^[a-z]+ =$$/s/^ *(nats-py)\[nkeys\] >= ([0-9.]+).*/\1==\2/p' \
	  setup.cfg | sort -u > $(OLDEST)/constraints.txt
	grep -E '^(pytest|hypothesis|trustme|cryptography)' constraints.txt >> $(OLDEST)/constraints.txt
	@$(TELLING) "Installing the oldest versions" \
	  $(OLDEST)/bin/pip install --disable-pip-version-check -c $(OLDEST)/constraints.txt -e '.[dev]'
	@touch $@

# What else the tests need is in .venv: its packages come after ours, and what is editable there is not found.
.venv-compiled/installed: setup.py packaging/backend.py setup.cfg constraints.txt $(shell find audiofork -name '*.py') | .venv/installed
	$(PYTHON) -m venv --clear --without-pip .venv-compiled
	@$(TELLING) "Compiling and installing audiofork" env AUDIOFORK_PURE=0 \
	  $(BIN)/pip --disable-pip-version-check --python $(COMPILED)/python install --no-deps .
	@$(BIN)/python -c '$(PURELIB)' > $$($(COMPILED)/python -c '$(PURELIB)')/tools.pth
	@touch $@

.PRECIOUS: .venv-%/installed
.venv-%/installed: setup.cfg constraints.txt | .venv/installed
	$$($(BIN)/python -m testbed.pythons $*) -m venv --clear .venv-$*
	@$(TELLING) "Installing for Python $*" \
	  .venv-$*/bin/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info recordings .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -prune -exec rm -rf {} +
