#!/usr/bin/env bash
# All tests, in an order that uses two processors well; arguments go to pytest.
#
# First what may share the machine, in two processes, and beside them in one process the tests with
# guest kernels, which boot once for all that use them: they take the time in which the others wait.
# Then what needs the machine to itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly interrupted=2 nothing_collected=5
readonly asked=$#

# Where only some tests are asked for, a part may have none of them.
pytest() {
  local status=0
  .venv/bin/python -m pytest "$@" || status=$?
  ((status != nothing_collected || asked == 0)) || status=0
  return "$status"
}

end_guests() {
  [[ -z $guests ]] || { kill -INT -- "-$guests" 2>/dev/null && wait "$guests" || true; }
  rm -f "$log"
}

set -m  # in the background an interrupt would be ignored: so they are a group, which we interrupt
log=$(mktemp)
pytest -m guest "$@" > "$log" 2>&1 < /dev/null &
guests=$!
trap end_guests EXIT

echo '== tests'
status=0 guests_status=0
pytest -n 2 --dist worksteal -m 'not alone and not compose and not guest' "$@" || status=$?
((status != interrupted)) || exit "$interrupted"
wait "$guests" || guests_status=$?
guests=
echo '== tests with guest kernels, which ran beside them'
cat "$log"
((status == 0 && guests_status == 0)) || exit 1

echo '== tests that need the machine to themselves'
pytest -m 'alone or compose' "$@"
