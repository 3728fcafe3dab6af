#!/bin/sh
# What a well-behaved client waits for its 250, before and during a siege, by turns; the median of all turns at the end.
#
#   bench/besieged.sh [ROUNDS] [SECONDS]        needs: cargo build --release -p ringpost -p ringpost-load
#
# The relay has its default limits for clients and holds what it takes. The client logs in under STARTTLS and sends 1 KB messages
# 50 times a second; once over four connections, once with a connection, a handshake and a login for each message (25 a second).
# The besiegers are 2,000 sessions that give an octet a second and 200 that guess passwords, from 250 networks.
set -eu
rounds=${1:-5}
seconds=${2:-10}
top=$(cd "$(dirname "$0")/.." && pwd)
bin=${BIN:-$top/target/release}
dir=$(mktemp -d "$top/target/besieged.XXXXXX")
port=${PORT:-18587}
relay=
siege=
end() {
    [ -z "$siege" ] || kill "$siege" 2>/dev/null || true
    [ -z "$relay" ] || kill "$relay" 2>/dev/null || true
    wait
    rm -rf "$dir"
}
trap end EXIT INT TERM

cat > "$dir/relay.toml" <<CONFIG
hostname = "relay.test"
shards = 2
hold = true
[spool]
dir = "$dir/spool"
[process]
user = "$(id -un)"
[[listener]]
address = "127.0.0.1:$port"
kind = "submission"
CONFIG
(umask 077 && echo "app:secret" > "$dir/logins")
: > "$dir/log"
"$bin/ringpost" serve --config "$dir/relay.toml" --credential-file "$dir/logins" 2> "$dir/log" &
relay=$!
until grep -q "listens on" "$dir/log"; do
    kill -0 "$relay"
    sleep 0.1
done

# Prints p50 and p99 in microseconds.
one() {
    "$bin/ringpost-load" send --to "127.0.0.1:$port" --tls starttls --auth app:secret --time "${seconds}s" -m 1000000 --json "$@" |
        tr ',{}' '\n\n\n' | awk -F: '/"latency"/ { on = 1 } on && /"p50_us"/ { p50 = $2 } on && /"p99_us"/ { print p50 + 0, $2 + 0; exit }'
}
both() {
    set -- "$1" $(one -s 4 --rate 50) $(one -s 8 --rate 25 --per-connection 1 --cold --full-handshakes)
    echo "$*" | tee -a "$dir/turns"
}

echo "turn: open connections p50 p99, a connection each p50 p99 (us)"
one -s 4 --rate 50 > "$dir/warm"
for round in $(seq "$rounds"); do
    both quiet
    "$bin/ringpost-load" besiege --to "127.0.0.1:$port" --slow 2000 --guessing 200 --time 10m > "$dir/siege" &
    siege=$!
    sleep 5
    both besieged
    kill -INT "$siege"
    wait "$siege" || true
    siege=
    cat "$dir/siege"
    sleep 2
done

median() {
    awk -v turn="$1" -v place="$2" '$1 == turn { print $place }' "$dir/turns" | sort -n |
        awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'
}
for place in 2 3 4 5; do
    quiet=$(median quiet $place)
    besieged=$(median besieged $place)
    name=$(echo "open connections p50,open connections p99,a connection each p50,a connection each p99" | cut -d, -f$((place - 1)))
    echo "$name: $quiet us quiet, $besieged us besieged, $(awk -v a="$besieged" -v b="$quiet" 'BEGIN { printf "%.2f", a / b }') times"
done
