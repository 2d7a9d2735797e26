#!/usr/bin/env bash
# Installs Grafana's types and the TypeScript compiler that checks the dashboards against them. Quick and silent when
# nothing has changed since the last time. `make deps` calls it, after tests/conformance/install.sh, which brings Node.js.
set -euo pipefail
cd "$(dirname "$0")"

stamp=$(cksum package.json package-lock.json)
[ "$(cat node_modules/.installed 2>/dev/null || true)" != "$stamp" ] || exit 0
command -v npm >/dev/null || {
  printf 'deps: no npm: tests/conformance/install.sh installs it\n' >&2
  exit 69
}
printf 'deps: npm ci (the types of Grafana, once)\n' >&2
npm ci --no-audit --no-fund --no-progress --ignore-scripts --loglevel=error >/dev/null
printf '%s\n' "$stamp" >node_modules/.installed
