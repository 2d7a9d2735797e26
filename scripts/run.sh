#!/usr/bin/env bash
# `make run`: the whole system with sample events, in a directory of its own, until Ctrl-C.
#
# Everything it writes is below .demo/; your own configuration and any Redis that you run are left alone. What was left
# in the queue is still there the next time: `rm -r .demo` starts afresh.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
demo=$here/.demo
env_file=$demo/system-bus.env
bus=$here/target/release/joelclaw

scripts/deps.sh run
cargo build --release --locked

mkdir -p "$demo"
if [ ! -e "$env_file" ]; then
  (
    umask 077
    {
      echo "# The demo's configuration; joelclaw --env-file $env_file config shows what is in force."
      echo "SYSTEM_BUS_DATA_DIR=\"$demo/data\""
      echo "SYSTEM_BUS_REGISTRY=\"$here/examples/demo/registry.toml\""
      # Not the usual port, so that it runs beside an installed system-bus.
      echo "WORKER_PORT=${DEMO_PORT:-3911}"
    } >"$env_file"
  )
fi
# What your shell says of a Redis must not lead the demo to it.
unset REDIS_URL REDIS_HOST REDIS_PORT SYSTEM_BUS_ENV_FILE SYSTEM_BUS_DATA_DIR SYSTEM_BUS_REGISTRY WORKER_PORT WORKER_BIND

# Tables also where the output is captured.
export JOELCLAW_OUTPUT=text
joelclaw() { "$bus" --env-file "$env_file" "$@" </dev/null; }
note() { printf '\n$ joelclaw %s\n' "$*"; }

# Runs beside `up`, and ends with it.
feed() {
  local waited=0
  until joelclaw queue depth >/dev/null 2>&1; do
    waited=$((waited + 1))
    if [ "$waited" -gt 150 ]; then
      echo "run: the system did not answer within 30 s; its own output above says why" >&2
      return
    fi
    sleep 0.2
  done
  note "queue emit demo/hello -d '{\"text\":\"first\"}'"
  joelclaw queue emit demo/hello -d '{"text":"first"}'
  note "queue emit --bulk examples/demo/events.ndjson"
  joelclaw queue emit --bulk examples/demo/events.ndjson
  note "queue depth"
  joelclaw queue depth
  note "queue list"
  joelclaw queue list
  printf '\nIn another terminal:  %s --env-file %s queue depth\n' "${bus#"$here"/}" "${env_file#"$here"/}"
  printf 'An event a second from here on. Ctrl-C stops everything; nothing is lost.\n\n'
  local n=0
  while sleep 1; do
    n=$((n + 1))
    joelclaw --quiet queue emit demo/hello -d "{\"n\":$n}" >/dev/null || true
    if [ $((n % 5)) -eq 0 ]; then
      joelclaw --quiet queue emit demo/slow -d "{\"n\":$n}" >/dev/null || true
    fi
    if [ $((n % 15)) -eq 0 ]; then
      joelclaw --quiet queue emit demo/flaky -d "{\"n\":$n}" >/dev/null || true
    fi
  done
}

"$bus" --env-file "$env_file" up &
up=$!
feed &
feeder=$!
stop_feeding() {
  kill "$feeder" 2>/dev/null || true
  wait "$feeder" 2>/dev/null || true
}
trap stop_feeding EXIT
# A background process of a script does not get Ctrl-C: it is passed on, and `up` stops in order while we wait.
trap 'kill -TERM "$up" 2>/dev/null || true' INT TERM
status=0
while :; do
  wait "$up" && status=0 || status=$?
  # A signal ends `wait` too; only the end of `up` ends the loop.
  kill -0 "$up" 2>/dev/null || break
done
exit "$status"
