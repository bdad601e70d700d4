# `make demo` and `make test` work in a fresh clone; everything they need comes first.
#   make demo DEMO_ARGS="--drive FILE.csv --kills 3"     make test TEST_ARGS="-k link"
PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
TEST_ARGS ?=
COMPAT_ARGS ?=
BENCH_ARGS ?=
TARGETS ?=
SUITE ?= bookworm
KILLS ?= 300
FUZZ_STREAMS ?= 100000
FILES ?= 2000
LIVES ?= 10
POINTS ?= 5000
SEED ?= 1
# Three for each of two cores, as most tests wait; whoever is out of work takes from another's.
PARALLEL ?= -n 6 --dist worksteal

BIN := $(VENV)/bin
BUILT := $(VENV)/.built
# What the demo stands on: without the tests' packages, which take as long as the build.
SHOWN := $(VENV)/.shown
LINTERS := $(VENV)/.linters

WHEEL_TOOLS := $(VENV)/.wheel-tools
DOCUMENTERS := $(VENV)/.documenters

.PHONY: demo test build commands lint promtool docs package sbom reproducible brokers broker-matrix moves torture model inbound interrupts wheels footprint-arm cibuildwheel fresh ubsan paho21 compat environments fuzz fuzz-clocks fuzz-files fuzz-values vectors badlink refused bench clean

demo: $(SHOWN)
	$(BIN)/glec-fast demo $(DEMO_ARGS)
	@echo
	@echo "Where to go next:"
	@echo "  docs/tutorial.md                                    a truck of your own that survives a kill, in 15 minutes"
	@echo "  docs/questions.md                                   twelve questions, and where each is answered"
	@echo "  $(BIN)/glec-fast bench --broker tcp://YOUR-BROKER   what it reaches on your own broker, in a minute"
	@echo "  $(BIN)/python examples/quickstart.py                the first of the programs in examples/"

# Bytecode is kept, whatever is set outside: hundreds of tests start a Python of their own.
test: $(BUILT)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest $(PARALLEL) $(TEST_ARGS)

# The brokers beside mosquitto, which the tests leave out where they are not installed. Needs root.
brokers:
	.ci/brokers

# The demo's messages through each of them that is installed, online, offline, over cut links, killed brokers and a cluster
# of two; the tables are in docs/brokers.md and docs/brokers.json. About half an hour.
MOVES ?= 20
broker-matrix: $(BUILT)
	cd tests && $(abspath $(BIN))/python -m support.broker_matrix --moves $(MOVES) \
		--markdown $(abspath build/broker-matrix.md) --json $(abspath docs/brokers.json) $(MATRIX_ARGS)

# A vehicle moved MOVES times between two ways to one broker, and between two brokers, in the middle of a flush.
moves: MOVES = 100
moves: $(BUILT)
	MOVES=$(MOVES) $(BIN)/python -m pytest -q tests/promises/test_several_brokers.py $(TEST_ARGS)

# Exactly once, at length: KILLS processes killed, the power cut at every point of LIVES lives of each kind, the link cut
# after every byte of a connection, an exception at every line of a transaction, and the protocol searched (`make model`).
torture: $(BUILT)
	KILLS=$(KILLS) SEED=$(SEED) POWER_CUT_LIVES=$(LIVES) POWER_CUT_ACTIONS=200 LINK_STEP=1 CUT_STEP=1 $(BIN)/python -m pytest -q \
		tests/promises/test_torture_kills.py tests/promises/test_kills_receiving.py tests/durable/test_power_cut.py tests/durable/test_power_cut_receiving.py tests/promises/test_faulty_links.py tests/durable/store/test_cut_into.py $(TEST_ARGS)
	$(MAKE) model

# The protocol, searched deeper: STATES states of each kind of fault, picked by SEED, or all where there are fewer; it says
# which. Some half an hour of one core; STATES=0 searches all of them to the end, which takes hours or days.
model: STATES = 50000
model: $(BUILT)
	MODEL_CHECK_DEPTH=2 MODEL_CHECK_STATES=$(STATES) SEED=$(SEED) $(BIN)/python -m pytest -q -s tests/promises/test_model_check.py $(TEST_ARGS)

# POINTS calls into the client, each cut into by an exception: at a line, between two byte codes, in bursts of signals,
# from another thread. About a quarter of an hour on a small machine.
interrupts: $(BUILT)
	cd tests && $(abspath $(BIN))/python -m support.interrupts --points $(POINTS) --seed $(SEED)
	INTERRUPTS=$$(($(POINTS) / 100)) $(BIN)/python -m pytest -q tests/fleet/test_manager_interrupts.py tests/aio/test_async_interrupts.py $(TEST_ARGS)

# KILLS vehicles killed while they run commands, over a link that is cut. About ten minutes on a small machine.
commands: $(BUILT)
	KILLS=$(KILLS) SEED=$(SEED) $(BIN)/python -m pytest -q tests/promises/test_kills_commands.py $(TEST_ARGS)

# What comes in, searched deeper: at most STATES states of each kind. Minutes on a small machine.
inbound: STATES = 300000
inbound: $(BUILT)
	MODEL_CHECK_DEPTH=2 INBOUND_STATES=$(STATES) $(BIN)/python -m pytest -q tests/promises/test_inbound_check.py $(TEST_ARGS)

build: $(BUILT)

lint: $(LINTERS)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	PATH="$(abspath $(BIN)):$$PATH" cython-lint cext

# Prometheus's checker of metrics, for the tests, which leave it out where it is not: from Debian's package, not installed.
promtool:
	mkdir -p build/promtool
	cd build/promtool && apt-get download prometheus && dpkg -x prometheus_*.deb .

# The pages of docs/ as a site in build/docs. A warning is an error.
docs: $(DOCUMENTERS)
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

# Sdist and wheel in dist/, the wheel from the sdist alone, as PyPI would take them, and installed where the source tree
# cannot be seen.
PACKAGED := $(abspath build/packaged)
package: $(LINTERS)
	rm -rf dist
	$(BIN)/python packaging/build.py dist
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv --clear --without-pip $(PACKAGED)
	$(BIN)/pip --python $(PACKAGED) install --quiet dist/*.whl
	cd $(PACKAGED) && bin/python -c "import glec_fast, glec_fast.protocol._session as s; print(glec_fast.__version__, s.__file__)"
	cd $(PACKAGED) && bin/glec-fast service install --root image --program /opt/glec-fast/bin/glec-fast

# What is in an installation, in CycloneDX's JSON: dist/glec-fast.cdx.json.
sbom: package
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-file dist/glec-fast.cdx.json $(PACKAGED)

# dist/ built twice, the second time from the first's sdist, in another directory: the same bytes.
reproducible: $(LINTERS)
	rm -rf dist
	$(BIN)/python packaging/build.py --twice dist

# ARM wheels in wheels/dist, tested under emulation. Needs root. TARGETS=aarch64 builds one of the two.
wheels: $(WHEEL_TOOLS)
	wheels/system-packages mmdebstrap qemu-user-static
	$(BIN)/python wheels/cross_build.py $(TARGETS)

# Memory on armv7l, under emulation. Needs root, and wheels/dist of `make wheels TARGETS=armv7l`.
footprint-arm: $(WHEEL_TOOLS)
	wheels/system-packages mmdebstrap qemu-user-static
	$(BIN)/python wheels/footprint.py wheels/dist/*_armv7l.whl

# The same by the real cibuildwheel, in local images. Needs root.
cibuildwheel: $(WHEEL_TOOLS)
	wheels/system-packages mmdebstrap qemu-user-static podman runc
	$(BIN)/python wheels/stand_in.py $(TARGETS)

# $(1): where to, $(2): which sanitizers, $(3): what their code calls. Objects are not told from those of other flags.
define sanitized
	rm -rf $(1) build/lib.* build/temp.*
	GLEC_SANITIZE=$(2) $(BIN)/pip install --quiet --no-deps --target $(1) .
	rm -rf build/lib.* build/temp.*
	nm -D $(1)/glec_fast/protocol/_session*.so | grep -q $(3)
endef

# No access to memory is unaligned: ARM would fault or be slow where x86 does not care. pytest, not python -m pytest, which
# would take the tree's own extensions.
COMMA := ,
UBSAN := $(abspath build/ubsan)
ubsan: $(BUILT)
	$(call sanitized,$(UBSAN),alignment,__ubsan)
	cd / && PYTHONPATH=$(UBSAN) $(abspath $(BIN))/python -P -c "import glec_fast; assert '$(UBSAN)' in glec_fast.__file__"
	PYTHONPATH=$(UBSAN) $(BIN)/pytest -q tests/protocol tests/durable/store $(addprefix tests/,durable/test_clock.py durable/test_file.py durable/test_extras.py fleet/test_payload.py fleet/test_offline_queue.py) $(TEST_ARGS)

# The tests with the other version of paho-mqtt that is allowed, in front of the one installed.
PAHO21 := $(abspath build/paho21)
paho21: $(BUILT)
	rm -rf $(PAHO21)
	$(BIN)/pip install --quiet --no-deps --target $(PAHO21) 'paho-mqtt==2.1.*'
	PYTHONPATH=$(PAHO21) $(BIN)/python -P -c "import paho.mqtt; assert '$(PAHO21)' in paho.mqtt.__file__"
	PYTHONPATH=$(PAHO21) $(BIN)/python -m pytest $(PARALLEL) $(TEST_ARGS)

# Programs of others over paho and over ours, compared test by test: COMPAT_ARGS="aiomqtt --write". About half an hour.
compat: $(BUILT)
	$(BIN)/python compat/run.py $(COMPAT_ARGS)

# Green threads, loops of others, notebooks and frozen programs, with the built package in an environment of their own.
ENVIRONMENTS := $(abspath build/environments)
environments: $(BUILT)
	$(BIN)/python -m venv --clear $(ENVIRONMENTS)
	$(ENVIRONMENTS)/bin/pip install --quiet '.[cli,test,environments]'
	ALL_ENVIRONMENTS=1 $(ENVIRONMENTS)/bin/pytest -q tests/environments $(TEST_ARGS)

# FUZZ_STREAMS damaged streams of each protocol version into the parsers, under AddressSanitizer and UBSan.
FUZZ := $(abspath build/fuzz)
fuzz: $(BUILT)
	$(call sanitized,$(FUZZ),address$(COMMA)undefined,__asan)
	FUZZ_STREAMS=$(FUZZ_STREAMS) FUZZ_SEED=$(SEED) ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" \
		PYTHONPATH=$(FUZZ) PYTHONMALLOC=malloc $(BIN)/pytest -q -p no:cacheprovider $(addprefix tests/protocol/test_,fuzz.py inbound.py inbound_tables.py session.py) $(TEST_ARGS)

# LIVES random lives of a gateway's clocks, from SEED on: nothing expires early, and nothing late where a clock was right.
fuzz-clocks: LIVES = 10000
fuzz-clocks: $(BUILT)
	CLOCK_LIVES=$(LIVES) SEED=$(SEED) $(BIN)/python -m pytest -q -s --show-capture=no tests/durable/test_clock_lives.py $(TEST_ARGS)

# EXAMPLES values of each kind into the encoders, read back by others.
EXAMPLES ?= 10000
fuzz-values: $(BUILT)
	EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -q tests/fleet/test_json.py tests/fleet/test_payload.py -k read $(TEST_ARGS)

# FILES queue files that were damaged, mixed up or written to by others: how many opened, were set aside, and what of
# them was carried over.
fuzz-files: $(BUILT)
	FUZZ_FILES=$(FILES) FUZZ_SEED=$(SEED) $(BIN)/python -m pytest -q -s tests/durable/test_file_fuzz.py $(TEST_ARGS)

# Every certificate, key and keystore of the package cryptography_vectors, as OpenSSL reads it. Some three minutes.
vectors: $(BUILT)
	$(BIN)/pip install --quiet cryptography_vectors
	ALL_VECTORS=1 $(BIN)/python -m pytest -q -s tests/tls/test_against_openssl.py -k vectors $(TEST_ARGS)

# An hour of a bad link in a minute (HOURS of it): cuts after 0 to 20 kB, stalls, tunnels, narrow places. Prints what was
# published, missing and doubled, and the bytes on the wire for each of payload.
HOURS ?= 1
badlink: $(BUILT)
	BAD_LINK_S=$$(( $(HOURS) * 3600 )) SEED=$(SEED) $(BIN)/python -m pytest -q -s --show-capture=no tests/promises/test_bad_link.py $(TEST_ARGS)

# Every kind of message that a broker will not take in front of others, in each way that it says so.
refused: $(BUILT)
	ALL_REFUSED=1 $(BIN)/python -m pytest -q $(PARALLEL) tests/promises/test_refused_in_front.py $(TEST_ARGS)

# `make demo` and `make test`, as committed, in an empty Debian root of SUITE. Needs root.
fresh:
	SUITE=$(SUITE) wheels/fresh

bench: $(BUILT)
	$(BIN)/python benches/bench_flush.py $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info glec_fast/*/*.so

$(BIN)/python:
	@echo "== The first call builds, in a minute or two: a virtual environment in $(VENV), packages from PyPI, the extensions"
	.ci/system-packages $(PYTHON)
	$(PYTHON) -m venv $(VENV)

# Editable: changed Python needs no new build, changed Cython does.
$(SHOWN): pyproject.toml setup.py $(wildcard cext/*/*) | $(BIN)/python
	.ci/system-packages $(PYTHON)
	.ci/progress $(BIN)/pip install --verbose --editable '.[cli]'
	touch $@

# Of what is installed already, only what an extra adds: nothing is compiled again.
$(BUILT): $(SHOWN)
	.ci/progress $(BIN)/pip install --verbose 'glec-fast[test]'
	touch $@

$(LINTERS): $(BUILT)
	$(BIN)/pip install --quiet 'glec-fast[lint]'
	touch $@

$(DOCUMENTERS): $(BUILT)
	$(BIN)/pip install --quiet 'glec-fast[docs]'
	touch $@

$(WHEEL_TOOLS): $(BUILT)
	$(BIN)/pip install --quiet 'glec-fast[wheels]'
	touch $@
