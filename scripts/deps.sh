#!/usr/bin/env bash
# Installs what is missing and nothing else; quick and silent when all is there.
#
#   scripts/deps.sh run     for building and running: a Redis server, a C compiler
#   scripts/deps.sh test    that, Prometheus, cargo-nextest and cargo-deny, the SDKs of the conformance tests, and
#                           Grafana's types
#
# No service of Redis or Prometheus is started, stopped or changed: `joelclaw up` and the tests run servers of their own.
set -euo pipefail

what=${1:-test}
case $what in
run | test) ;;
*)
  echo "usage: scripts/deps.sh [run|test]" >&2
  exit 2
  ;;
esac

have() { command -v "$1" >/dev/null 2>&1; }
say() { printf 'deps: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 69
}

root=()
as_root() {
  if [ "$(id -u)" -ne 0 ] && [ ${#root[@]} -eq 0 ]; then
    have sudo || fail "to install with apt-get, run this as root or install sudo: apt-get install $*"
    root=(sudo)
  fi
}

apt_is_updated=
apt_install() {
  as_root "$@"
  if [ -z "$apt_is_updated" ]; then
    # A list that is a little old is better than none: a mirror that is down must not stop an install that would work.
    ${root[@]+"${root[@]}"} apt-get update -qq || say "apt-get update failed; going on with the lists at hand"
    apt_is_updated=1
  fi
  say "apt-get install $*"
  ${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Debian's packages of servers start a service when they are installed (Redis on port 6379, Prometheus on 9090).
# policy-rc.d is Debian's way to forbid that; an existing one is the administrator's and stays as it is.
policy=/usr/sbin/policy-rc.d
policy_is_ours=
remove_policy() {
  [ -z "$policy_is_ours" ] || ${root[@]+"${root[@]}"} rm -f "$policy"
  policy_is_ours=
}
trap remove_policy EXIT

# $1 = package and unit.
apt_install_server() {
  as_root "$1"
  if [ ! -e "$policy" ]; then
    policy_is_ours=1
    printf '#!/bin/sh\nexit 101\n' | ${root[@]+"${root[@]}"} tee "$policy" >/dev/null
    ${root[@]+"${root[@]}"} chmod 755 "$policy"
  fi
  apt_install "$1"
  remove_policy
  # We brought the service here, so it must not take its port at the next boot either.
  if [ -d /run/systemd/system ] && have systemctl; then
    ${root[@]+"${root[@]}"} systemctl disable --quiet "$1.service" || true
  fi
}

redis_server() {
  if [ -n "${SYSTEM_BUS_REDIS_SERVER:-}" ]; then
    have "$SYSTEM_BUS_REDIS_SERVER" || fail "SYSTEM_BUS_REDIS_SERVER=$SYSTEM_BUS_REDIS_SERVER is no program"
    return
  fi
  have redis-server || have valkey-server || {
    case $(uname -s) in
    Darwin)
      have brew || fail "no Redis server: install Homebrew and run 'brew install redis'"
      say "brew install redis"
      brew install --quiet redis >/dev/null
      ;;
    Linux)
      have apt-get || fail "no Redis server: install redis-server 7.0 or newer, or valkey-server 8 or newer, with your package manager"
      apt_install_server redis-server
      ;;
    *) fail "unsupported platform $(uname -s): system-bus runs on Linux and macOS" ;;
    esac
  }
  have redis-server || have valkey-server || fail "the install ended, but there is no redis-server in PATH"
  # An old distribution packages an old Redis; valkey-server is only ever new enough or refused by joelclaw itself.
  have valkey-server || {
    local major
    major=$(redis-server --version | sed -n 's/.* v=\([0-9]*\)\..*/\1/p')
    [ "${major:-0}" -ge 7 ] || fail "redis-server is version ${major:-unknown}; 7.0 or newer is needed"
  }
}

# promtool checks the rules, and the dashboards' queries are run by a Prometheus of the tests' own.
prometheus() {
  have prometheus && have promtool || {
    case $(uname -s) in
    Darwin)
      have brew || fail "no Prometheus: install Homebrew and run 'brew install prometheus'"
      say "brew install prometheus"
      brew install --quiet prometheus >/dev/null
      ;;
    *)
      have apt-get || fail "no Prometheus: install prometheus and promtool 2.42 or newer with your package manager"
      apt_install_server prometheus
      ;;
    esac
  }
  have prometheus && have promtool || fail "the install ended, but there is no prometheus or no promtool in PATH"
}

# The TLS library builds C and assembly.
c_compiler() {
  have cc || have gcc || have clang || {
    case $(uname -s) in
    Darwin) fail "no C compiler: run 'xcode-select --install'" ;;
    Linux)
      have apt-get || fail "no C compiler: install gcc or clang with your package manager"
      apt_install gcc libc6-dev
      ;;
    *) fail "unsupported platform $(uname -s): system-bus runs on Linux and macOS" ;;
    esac
  }
}

rust() {
  have cargo || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
  have cargo || fail "no Rust: install it with rustup (the project's page says how), then run this again"
}

# $1 = the cargo subcommand: its package is cargo-$1.
cargo_tool() {
  cargo "$1" --version >/dev/null 2>&1 || {
    say "cargo install cargo-$1 (some minutes, once)"
    cargo install --locked --quiet "cargo-$1"
  }
}

rust
c_compiler
redis_server
if [ "$what" = test ]; then
  # The unit files are held against systemd itself.
  [ "$(uname -s)" != Linux ] || have systemd-analyze || ! have apt-get || apt_install systemd
  prometheus
  cargo_tool nextest
  cargo_tool deny
  "$(dirname "$0")/../tests/conformance/install.sh"
  "$(dirname "$0")/../tests/dashboards/install.sh"
fi
