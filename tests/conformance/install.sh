#!/usr/bin/env bash
# Installs the SDKs that the conformance tests run: js/node_modules and py/.venv beside this script. Quick and silent
# when nothing has changed since the last time. `make deps` calls it.
set -euo pipefail
cd "$(dirname "$0")"

have() { command -v "$1" >/dev/null 2>&1; }
say() { printf 'deps: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 69
}

stamp() { cksum "$@"; }
# $1 = directory that was installed, the rest: the files that say what belongs in it.
is_current() {
  local stamp_file=$1/.installed
  shift
  [ -e "$stamp_file" ] && [ "$(stamp "$@")" = "$(cat "$stamp_file")" ]
}

root=()
apt_install() {
  have apt-get || fail "install $* with your package manager: the conformance tests need Node.js 18 or newer and Python 3.10 or newer"
  if [ "$(id -u)" -ne 0 ]; then
    have sudo || fail "to install with apt-get, run this as root or install sudo: apt-get install $*"
    root=(sudo)
  fi
  ${root[@]+"${root[@]}"} apt-get update -qq || say "apt-get update failed; going on with the lists at hand"
  say "apt-get install $*"
  ${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

node_is_new_enough() { have node && node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)'; }
js() {
  local lock=(js/package.json js/package-lock.json)
  node_is_new_enough && is_current js/node_modules "${lock[@]}" && return
  have node || apt_install nodejs
  node_is_new_enough || fail "node is $(node --version); 18 or newer is needed"
  have npm || apt_install npm
  say "npm ci (the Inngest SDKs, once)"
  (cd js && npm ci --no-audit --no-fund --no-progress --ignore-scripts --loglevel=error >/dev/null)
  stamp "${lock[@]}" >js/node_modules/.installed
}

python_is_new_enough() { have python3 && python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'; }
has_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }
py() {
  local lock=(py/requirements.txt)
  # A venv points at the interpreter that made it, which may be gone.
  is_current py/.venv "${lock[@]}" && py/.venv/bin/python -c '' 2>/dev/null && return
  have python3 || apt_install python3 python3-venv
  python_is_new_enough || fail "python3 is $(python3 --version); 3.10 or newer is needed"
  has_venv || apt_install python3-venv
  say "pip install (the Inngest SDK, once)"
  rm -rf py/.venv
  python3 -m venv py/.venv
  py/.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input -r py/requirements.txt
  stamp "${lock[@]}" >py/.venv/.installed
}

js
py
