#!/bin/sh
# Nine minutes of one GPU: tests, speed, then cells of the benchmark. Results go to the folder OUT.
#
#     OUT=results sh benchmarks/gpu.sh [CELLS.tar.gz]
#     OUT=results SMALL=1 BUDGET_S=60 sh benchmarks/gpu.sh [CELLS.tar.gz]      on a CPU
#
# CELLS.tar.gz is what benchmarks/gpu_cells.py made; docs/gpu.md says how, and what comes back. Every
# part has a limit in seconds, and the cells get what is left of BUDGET_S. A part that fails or
# overruns does not stop the next; the exit code is 1 then. torch (with triton), numpy, safetensors,
# tqdm and PyYAML are enough; the tests need pytest too.
set -u
: "${OUT:=gpu-results}" "${BUDGET_S:=530}" "${PYTHON:=python3}" "${SMALL:=}"
began=$(date +%s) failed=0
mkdir -p "$OUT"

left() { # seconds
    echo $((began + BUDGET_S - $(date +%s)))
}

part() { # LIMIT COMMAND...: run it for at most LIMIT seconds, and no longer than is left
    limit=$(left)
    [ "$limit" -le "$1" ] || limit=$1
    shift
    echo "== $limit s: $*"
    [ "$limit" -gt 0 ] && timeout -k 10 "$limit" "$@" && return
    echo "== exit code $?: $*"
    failed=1
}

if "$PYTHON" -c "import pytest" 2>/dev/null; then
    # Plugins that happen to be there might warn, and a warning is a failure.
    export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
    part 100 "$PYTHON" -m pytest tests/gpu -q -p no:cacheprovider >"$OUT/tests.txt" 2>&1
    tail -n 15 "$OUT/tests.txt"
else
    echo "pytest is not installed: no tests; the figures carry each back end's difference"
fi
part 110 "$PYTHON" benchmarks/attention_long.py ${SMALL:+--small} --out "$OUT/attention.json"
part 70 "$PYTHON" benchmarks/training_device.py ${SMALL:+--small} --out "$OUT/training.json"
if [ $# -gt 0 ]; then
    # What the runner needs after its own end: the archive, and processes that have to be killed.
    part "$(left)" "$PYTHON" benchmarks/train_light.py "$1" --out "$OUT" \
        --seconds $(($(left) - 15)) ${AT_ONCE:+--at-once "$AT_ONCE"}
fi
echo "== $(left) of $BUDGET_S s left"
exit $failed
