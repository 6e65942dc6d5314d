#!/usr/bin/env bash
# All that only a GPU can show, in nine minutes at most; the same command again goes on: benchmarks/gpu.sh OUT [OPTIONS]
# With torch, numpy, pyarrow, tqdm and typer alone. Of WHEELS, a folder of pip's, what else is there is used:
#     pip download -d WHEELS pytest pytest-timeout hypothesis
#     benchmarks/gpu.sh OUT --wheels WHEELS --data FOLDER_OF_CIFAR10
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" "$here/gpu.py" "$@"
