# make demo   sets up what is missing, then trains and compares the extractors on generated images, on the CPU
# make test   sets up what is missing, then runs the tests but for the slow ones; ten minutes on two cores
# make test-all   the slow ones too, as CI does
# make test-fast   the tests that need no framework, for the minutes in which one edits
# make benchmark   measures the op beside its peers, into a new directory in work_dirs/benchmark
# make benchmark-growth   measures how time and memory grow with RoIs, channels, cells, bins and threads
# make benchmark-check AGAINST=DIR   measures the cases in DIR again; fails if the op became slower than noise
# make benchmark-peers   the same beside peers that need another torch (Intel's extension, the newest torchvision)
# make sanitize   the op's tests with the address, undefined-behaviour and thread sanitizers
# make kernels   compiles the CUDA kernels for all cards and looks at what came of it (docs/kernels.md); no card needed
# make gpu OUT=DIR   all that a machine with a card is asked; needs no set-up (docs/gpu.md)
# make faults   kills a shortened ablation at 20 random moments and checks that nothing is lost
# make fuzz   random calls of the op with the same sanitizers, against the reference
# make soak   10,000 calls of the op, forward and backward, whose memory has to stay where it was
# make wheel   a wheel for TORCH (that of requirements.txt) into dist/, tried where nothing else is installed
# make matrix   builds and tests under many torches, Pythons and frameworks; docs/matrix/ says what came of it
# make docs   the pages of docs/ and the API reference as a site, into build/docs; a warning is an error
# make demo FRAMEWORK=detectron2   the same in Detectron2; the default is mmdet
# make trunk   makes configs/trunks/r18-c4_shapes.pth anew, the trained trunk that the demo starts from
# All are safe to repeat; what is there already is not done again.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
FRAMEWORK ?= mmdet
PLAN_mmdet := configs/ablations/demo.yaml
PLAN_detectron2 := configs/ablations/demo_detectron2.yaml
PLAN ?= $(or $(PLAN_$(FRAMEWORK)),$(error FRAMEWORK is $(FRAMEWORK); expected mmdet or detectron2))
WORK_DIR ?= work_dirs/$(basename $(notdir $(PLAN)))

.PHONY: demo trunk test test-all test-fast benchmark benchmark-growth benchmark-check benchmark-peers sanitize kernels gpu faults fuzz soak wheel matrix docs setup lint clean

setup:
	@PYTHON=$(PYTHON) VENV=$(VENV) bash tools/setup.sh

# Two trials of one thread each are faster than one of two threads. JOBS=N for more cores.
JOBS ?= 2

demo: setup
	@$(PY) tools/make_shapes.py data/shapes
	@OMP_NUM_THREADS=1 $(PY) tools/ablate.py $(PLAN) --work-dir $(WORK_DIR) --jobs $(JOBS) --gpus-per-trial 0

# The file in git stays the one that was measured; make it anew after a change of its command only.
trunk: setup
	@OMP_NUM_THREADS=1 $(PY) tools/make_trunk.py $(TRUNK)

# What needs no framework: for the minutes in which one edits.
FAST := tests/evaluation tests/extractors tests/datasets tests/test_settings.py tests/test_docs.py \
	tests/test_architecture.py tests/test_visualization.py tests/test_results_page.py \
	$(patsubst %,tests/ops/test_%.py,bad_input levels oracle roi_extract threads)

test-fast: setup
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -q -m 'not slow' $(FAST)

# Two processes of one thread each: threads of two processes on the same cores wait for each other.
test: setup
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m 'not slow'

test-all: setup
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

# Ten to twenty minutes on two cores; the library in use is left as it is.
sanitize: setup
	@VENV=$(VENV) bash tools/sanitize.sh

# Five minutes on two cores. KERNELS=--write puts the table of registers into docs/kernels.md.
kernels: setup
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) tools/kernels.py $(KERNELS)

# STEPS='build smoke' for some alone.
gpu:
	@PYTHON=$(or $(wildcard $(PY)),$(PYTHON)) bash tools/gpu.sh $(or $(OUT),$(error OUT names a directory for the logs: make gpu OUT=DIR)) $(STEPS)

# Half an hour on two cores.
faults: setup
	@OMP_NUM_THREADS=1 $(PY) tools/faults.py --work-dir work_dirs/faults/$$(date +%Y%m%d-%H%M%S)

# Half an hour or more on two idle cores. FUZZ='--calls N --seed N' for others, or fewer.
fuzz: setup
	@VENV=$(VENV) bash tools/fuzz.sh $(FUZZ)

soak: setup
	@ROI_PLUGINS_SOAK=10000 OMP_NUM_THREADS=1 $(PY) -m pytest -s tests/ops/test_long_runs.py -k memory

# Into a directory that is new each time: results are never overwritten.
benchmark: setup
	@$(PY) tools/benchmark.py --out work_dirs/benchmark/$$(date +%Y%m%d-%H%M%S)

benchmark-growth: setup
	@$(PY) tools/benchmark.py --growth --out work_dirs/benchmark/growth-$$(date +%Y%m%d-%H%M%S)

# A benchmark to run by hand on an idle machine: no test depends on how fast anything is.
benchmark-check: setup
	@$(PY) tools/benchmark.py --against $(or $(AGAINST),$(error AGAINST names a directory with a benchmark.json: make benchmark-check AGAINST=DIR))

# 7 GB of disk for each of two environments, which build/peers keeps. BENCHMARK='--only intel --quick' and the like.
benchmark-peers: setup
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) tools/benchmark_peers.py --out work_dirs/benchmark-peers/$$(date +%Y%m%d-%H%M%S) $(BENCHMARK)

wheel: setup
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) tools/wheels.py $(if $(TORCH),--torch $(TORCH))

# An hour or two on two cores; 6 GB of disk for each torch.
matrix: setup
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) tools/matrix.py -n 2

docs: setup
	@rm -rf build/docs
	@$(PY) -m sphinx -b html -q -W --keep-going -c docs . build/docs
	@echo 'The pages are in build/docs; they begin at build/docs/docs/README.html.'

lint: setup
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy

clean:
	rm -rf $(VENV) build dist *.egg-info roi_plugins/ops/_C.so
