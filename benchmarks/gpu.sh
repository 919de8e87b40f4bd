#!/bin/sh
# Check and measure attention on a machine with one GPU; results go to the folder OUT.
#
#     OUT=results sh benchmarks/gpu.sh
#
# torch (with triton), numpy, safetensors, tqdm and PyYAML are enough; the tests need pytest too.
set -eu
: "${OUT:=gpu-results}"
mkdir -p "$OUT"
if python -c "import pytest" 2>/dev/null; then
    python -m pytest tests/gpu/test_gpu_attention.py -q -p no:cacheprovider 2>&1 | tee "$OUT/attention-tests.txt"
else
    echo "pytest is not installed: no tests; the figures carry each back end's difference"
fi
python benchmarks/attention_long.py --out "$OUT/attention-long.json"
