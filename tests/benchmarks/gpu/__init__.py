"""Run every check that needs a GPU, the most important first, within a time budget.

    python -m tests.benchmarks.gpu [--minutes 9] [--out FOLDER] [--device cuda] [--small] [--steps NAME,...]

Each step of `steps.py` runs in a separate process with a time limit; unused time goes to later steps. A
step writes results to FOLDER/STEP.json as soon as they are known, so an interrupted step keeps its results.
FOLDER/table.md is rewritten after each step, with one line per figure that has an aim. The exit status is 1
if a step failed (an exception, a failed test, different bytes), 130 or 143 if the check was interrupted,
and otherwise 0: a step out of time, or a speed below its aim, is only shown in the table. On a CPU
everything runs at a small size, to try the check itself.

Needs this repository, torch, torchvision, numpy, pytest (with pytest-xdist and pytest-timeout if installed)
and a few portable wheels. It generates its own images and needs no network. For a machine without network
access, with Python 3.12 and torch installed:

    pip download --no-deps --only-binary=:all: -c constraints.txt -d wheels \
        --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        zarr numcodecs donfig google-crc32c pydantic pydantic-core annotated-types \
        typing-inspection typing-extensions safetensors click pyyaml filelock tqdm packaging
    python -m pip install --no-index --no-deps --target site wheels/*.whl        # there
    PYTHONPATH=site python -m tests.benchmarks.gpu --out FOLDER

`python -m tests.benchmarks.gpu.kept FOLDER` keeps the results in tests/benchmarks/results/gpu/CARD/, and
`python -m tests.benchmarks.gallery` writes the table of them to tests/benchmarks/README.md.
"""
