#!/bin/bash
# Tells the bus that content changed: run by launchd (WatchPaths) or systemd (a .path unit) after each burst of changes.
#
# With `content` in QUEUE_PILOTS the event goes through the queue, else to functions directly. The env file is read at
# each run, so switching needs no edit of the service. Tried three times; a failure is journaled where Redis answers.
set -uo pipefail

env_file=${SYSTEM_BUS_ENV_FILE:-$HOME/.config/system-bus.env}
cli=${JOELCLAW:-$(command -v joelclaw || echo "$HOME/.local/bin/joelclaw")}
if [ ! -x "$cli" ]; then
  echo "content-sync-watcher: $cli is not executable; install joelclaw or set JOELCLAW" >&2
  exit 69
fi

with=()
[ ! -r "$env_file" ] || with=(--env-file "$env_file")

# The last line counts. `export` and quotes are understood.
pilots=
if [ -r "$env_file" ]; then
  pilots=$(sed -n -E 's/^[[:space:]]*(export[[:space:]]+)?QUEUE_PILOTS[[:space:]]*=//p' "$env_file" | tail -n 1)
  pilots=$(printf '%s' "$pilots" | tr -d "\"'" | tr '[:upper:]' '[:lower:]')
fi

data='{"source":"fswatch"}'
command=(send content/updated -d "$data")
IFS=',' read -r -a listed <<<"$pilots"
for pilot in ${listed[@]+"${listed[@]}"}; do
  pilot=${pilot//[[:space:]]/}
  if [ "$pilot" = content ]; then
    command=(queue emit content/updated -d "$data")
  fi
done

status=0
for pause in 0 1 5; do
  sleep "$pause"
  "$cli" ${with[@]+"${with[@]}"} "${command[@]}" && exit 0
  status=$?
  echo "content-sync-watcher: joelclaw ${command[0]} ended with $status" >&2
done
"$cli" ${with[@]+"${with[@]}"} queue emit system/content-sync-watcher.failed -d "{\"exitCode\":$status}" >/dev/null 2>&1
exit "$status"
