PYTHON ?= python3
export ORT_DISABLE_TELEMETRY := 1
VENV := .venv
BIN := $(VENV)/bin
MYPY := ../$(BIN)/mypy --config-file ../pyproject.toml
EXAMPLES := examples/fashion_mnist
REAL_MODELS := tests/models/requirements.txt
SOURCES := pyproject.toml $(shell find tbn_compile passes targets training runtime \
	-type f -not -path '*/__pycache__/*')

.PHONY: demo test test-slow lint docs clean

demo: $(VENV)/installed ## compile the shipped models, validate them and print the summary
	$(BIN)/tbn-compile $(EXAMPLES)/mlp.onnx --target ort --output build/mlp.tbn.onnx --validate
	$(BIN)/tbn-compile $(EXAMPLES)/cnn.onnx --target ort --output build/cnn.tbn.onnx --validate
	$(BIN)/tbn-compile $(EXAMPLES)/mlp.onnx --target c --input-dim batch=1 --output build/mlp.tar --validate

test: $(VENV)/developed ## every test but the slow ones, under 20 minutes on 2 cores
	$(BIN)/pytest -m "not slow" -n 2

test-slow: $(VENV)/developed ## the rest: models of gigabytes, whole recipes, old releases of ONNX Runtime, zig
	$(BIN)/pip install --quiet '.[mcu]'
	$(BIN)/pytest -m slow

lint: $(VENV)/developed ## style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	cd build && $(MYPY) -p tbn_compile  # the installed package
	cd build && $(MYPY) ../benchmarks
	cd build && $(MYPY) ../examples/fashion_mnist
	cd build && $(MYPY) ../examples/training

docs: $(VENV)/developed ## renew the generated pages and the golden files
	$(BIN)/python docs/generate.py
	$(BIN)/python examples/training/results.py
	$(BIN)/python tests/mcu/golden/renew.py

clean:
	rm -rf $(VENV) build dist

$(VENV)/created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/created $(SOURCES)
	mkdir -p build
	$(BIN)/pip install --quiet .
	touch $@

$(VENV)/developed: $(VENV)/installed .ci/apt-packages.txt .ci/constraints.txt $(REAL_MODELS)
	.ci/install-packages .ci/apt-packages.txt
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt '.[cuda,dev,train]'
	$(BIN)/pip install --quiet --no-deps --requirement $(REAL_MODELS)
	touch $@
