"""Everything that needs a GPU, in order of worth, inside a time budget.

    python -m tests.benchmarks.gpu [--minutes 9] [--out FOLDER] [--device cuda] [--small] [--steps NAME,...]

Each step of `steps.py` has a process of its own and a limit; time that a step leaves goes to those behind
it. What a step finds is in FOLDER/STEP.json as soon as it is known, so a step that is cut off keeps what it
has. FOLDER/table.md has a line for each figure that there is an aim for, after each step anew. The exit
status is 1 if a step failed (it raised, a test failed, bytes differ), 130 or 143 where the check was ended,
and else 0: a step that runs out of its time, or a speed below its aim, is in the table. On a CPU everything
runs in small, to try the check itself.

It needs this repository, torch, torchvision, numpy, pytest (pytest-xdist and pytest-timeout where they are
there) and some wheels that travel well, makes its own images, and asks no network. For a machine without
one, with Python 3.12 and torch already there:

    pip download --no-deps --only-binary=:all: -c constraints.txt -d wheels \\
        --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \\
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \\
        zarr numcodecs donfig google-crc32c pydantic pydantic-core annotated-types \\
        typing-inspection typing-extensions safetensors click pyyaml filelock tqdm packaging
    python -m pip install --no-index --no-deps --target site wheels/*.whl        # there
    PYTHONPATH=site python -m tests.benchmarks.gpu --out FOLDER

`python -m tests.benchmarks.gpu.kept FOLDER` keeps the results in tests/benchmarks/results/gpu/CARD/, and
`python -m tests.benchmarks.gallery` writes the table of them to tests/benchmarks/README.md.
"""
