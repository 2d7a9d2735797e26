#!/usr/bin/env bash
# Draws docs/dashboards/*.svg: runs the test that scrapes a real run, for some minutes, and draws what its Prometheus saw.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
SYSTEM_BUS_DASHBOARD_DATA=$data cargo test --locked --test suite -- --exact \
  dashboards::every_query_has_an_answer_from_a_real_run_and_a_wrong_name_has_none
node scripts/dashboard-pictures.mjs "$data/answers.json" docs/dashboards
