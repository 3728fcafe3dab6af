#!/bin/sh
# Builds one fuzz target and runs it: fuzz/run.sh TARGET [SECONDS, 60 by default]. Works with the stable compiler:
# the coverage of SanitizerCoverage without a sanitizer. The corpus is kept in fuzz/corpus/TARGET, findings in
# fuzz/artifacts/TARGET. Ends with an error if something was found.
set -eu
target=${1:?usage: fuzz/run.sh TARGET [SECONDS]}
seconds=${2:-60}
cd "$(dirname "$0")"
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target the flags are not used for build scripts, which could not be linked with them.
RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --release --target "$host" --bin "$target"
mkdir -p "corpus/$target" "artifacts/$target"
dictionary=
if [ -f "dictionaries/$target.txt" ]; then
    dictionary="-dict=dictionaries/$target.txt"
fi
exec "target/$host/release/$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -print_final_stats=1 \
    -artifact_prefix="artifacts/$target/" $dictionary "corpus/$target"
