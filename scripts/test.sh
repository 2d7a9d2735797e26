#!/usr/bin/env bash
# Everything that has to hold before a change lands. All stages run, so that one call shows all that is wrong.
# The last line counts what really ran.
set -uo pipefail
cd "$(dirname "$0")/.."

failed=()
stage() {
  local name=$1
  shift
  printf '\n== %s\n' "$name"
  "$@" || failed+=("$name")
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

advisories() {
  # Only a database that could be fetched says something about today; a machine without a network has none.
  if cargo deny fetch db >"$scratch/fetch" 2>&1; then
    cargo deny --log-level error check advisories
  else
    echo "skipped: the advisory database can't be fetched from here"
  fi
}

# Output goes on while it is kept for counting; the status is the command's, not tee's.
kept() {
  local file=$1
  shift
  "$@" 2>&1 | tee "$scratch/$file"
  return "${PIPESTATUS[0]}"
}

stage "format" cargo fmt --all --check
stage "lints" cargo clippy --locked --all-targets -- -D warnings
stage "dependencies: bans, licences, sources" cargo deny --log-level error check bans licenses sources
stage "dependencies: advisories" advisories
stage "tests" kept nextest cargo nextest run --locked --profile ci --color never
stage "doc tests" kept doc env CARGO_TERM_COLOR=never cargo test --locked --doc

# nextest: `Summary [ 0.4s] 23 tests run: 21 passed (1 slow), 1 failed, 1 timed out, 2 skipped`
# rustdoc: `test result: ok. 3 passed; 0 failed; 1 ignored; …`, once per crate
count() {
  sed -n -E '/^ *Summary \[/p; /^test result:/p' "$scratch/nextest" "$scratch/doc" 2>/dev/null |
    grep -o -E "[0-9]+ ($1)" | awk '{ sum += $1 } END { print sum + 0 }'
}
passed=$(count passed)
broken=$(count 'failed|timed out|exec failed')
skipped=$(count 'skipped|ignored')

echo
if ! grep -q -E '^ *Summary \[' "$scratch/nextest"; then
  echo "the tests did not run"
fi
if [ ${#failed[@]} -gt 0 ]; then
  printf 'not passed: %s\n' "${failed[@]}"
fi
echo "$passed passed, $broken failed, $skipped skipped"
[ ${#failed[@]} -eq 0 ] && [ "$passed" -gt 0 ]
