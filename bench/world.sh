#!/bin/sh
# A world of providers that mean their limits: how near to the best possible time mail arrives, and whether a limit is ever exceeded.
#
#   bench/world.sh [MESSAGES] [DOMAINS] [RATE]       needs: cargo build --release -p ringpost -p ringpost-load; knot; root
#
# Fifteen providers share DOMAINS domains. Ten have one set of mail hosts for all their domains, so each is one site; five
# give each domain a mail host of its own, so that hundreds of sites share the provider's limits. A real name server (Knot)
# knows them all. A sink that listens for all of them refuses connections and messages beyond each provider's limits, and counts
# those; the relay is told the same limits by a shaping file. RATE is what the slowest provider takes in a second.
set -eu
messages=${1:-100000}
domains=${2:-2000}
rate=${3:-100}
top=$(cd "$(dirname "$0")/.." && pwd)
bin=${BIN:-$top/target/release}
dir=$(mktemp -d "$top/target/world.XXXXXX")
port=${PORT:-18625}
pids=
end() {
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    wait
    [ -n "${KEEP:-}" ] || rm -rf "$dir"
}
trap end EXIT INT TERM

# Provider N takes connections(N) at a time and speed(N) messages a second; the first ones are the slowest.
connections() { echo $((2 + $1 % 7)); }
speed() { echo $((rate + rate * $1 / 20)); }

{
    echo "\$ORIGIN world.test."
    echo "@ 3600 SOA ns hostmaster 1 3600 600 86400 60"
    echo "@ 3600 NS ns"
    echo "ns 3600 A 127.0.0.1"
    for provider in $(seq 0 14); do
        echo "mx.p$provider 3600 A 127.20.$provider.1"
        echo "*.hosts.p$provider 3600 A 127.20.$provider.1"
    done
    awk -v domains="$domains" 'BEGIN { for (n = 0; n < domains; n++) { p = n % 15;
        print "d" n " 3600 MX 10 " (p < 10 ? "mx.p" p : "d" n ".hosts.p" p) } }'
} > "$dir/world.zone"
cat > "$dir/knot.conf" <<CONFIG
server:
    listen: 127.0.0.1@18653
    rundir: "$dir"
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: "$dir"
log:
  - target: stderr
    any: warning
zone:
  - domain: world.test
    file: "$dir/world.zone"
    journal-content: none
    zonefile-load: whole
CONFIG
knotd -c "$dir/knot.conf" &
pids="$pids $!"

: > "$dir/rules"
: > "$dir/shaping.toml"
listen=
for provider in $(seq 0 14); do
    listen="$listen --listen 127.20.$provider.1:$port"
    most=$(connections "$provider")
    speed=$(speed "$provider")
    # The sink counts in windows of ten seconds, so that a late glance of its own is not a violation of ours.
    echo "127.20.$provider.1:$port connections=$most" >> "$dir/rules"
    echo "127.20.$provider.1:$port rate=$((speed * 10))/10s" >> "$dir/rules"
    # Two in a hundred below, for what is under way when a window begins.
    say="connections = $most, rate = \"$((speed * 98 / 10))/10s burst $((1 + speed / 50))\""
    if [ "$provider" -lt 10 ]; then
        printf '[provider.p%s]\nmx = "mx.p%s.world.test"\n%s\n' "$provider" "$provider" "$(echo "$say" | sed 's/, /\n/')" >> "$dir/shaping.toml"
    else
        printf '[provider.p%s]\nmx = ".p%s.world.test"\ntotal = { %s }\n' "$provider" "$provider" "$say" >> "$dir/shaping.toml"
    fi
done
cat > "$dir/relay.toml" <<CONFIG
hostname = "relay.test"
shards = 2
[spool]
dir = "$dir/spool"
[process]
user = "$(id -un)"
[[listener]]
address = "127.0.0.1:$((port + 1))"
kind = "relay"
[[route]]
port = $port
[shaping]
files = "$dir/shaping.toml"
[dns]
servers = "127.0.0.1:18653"
[limits]
loopback_exempt = true
CONFIG
"$bin/ringpost" check-config "$dir/relay.toml" > /dev/null
# shellcheck disable=SC2086 # a list of addresses
"$bin/ringpost-load" sink $listen --rules "$dir/rules" --ledger "$dir/arrived" --json > "$dir/sink.json" &
sink=$!
pids="$pids $sink"
: > "$dir/log"
"$bin/ringpost" serve --config "$dir/relay.toml" 2> "$dir/log" &
relay=$!
pids="$pids $relay"
until grep -q "listens on" "$dir/log"; do kill -0 "$relay"; sleep 0.1; done

begun=$(date +%s.%N)
"$bin/ringpost-load" send --to "127.0.0.1:$((port + 1))" -s 50 -m "$messages" --time 1h --domain world.test --domains "$domains" \
    --zipf 0 --ledger "$dir/sent" > "$dir/send.txt"
accepted=$(date +%s.%N)
while :; do
    left=$("$bin/ringpost" status --spool "$dir/spool" --json 2>/dev/null | tr ',{}' '\n\n\n' | awk -F: '/"messages"/ { print $2 + 0; exit }')
    [ "${left:-1}" != 0 ] || break
    sleep 0.5
done
done=$(date +%s.%N)
kill -INT "$sink"
wait "$sink" 2>/dev/null || true
"$bin/ringpost-load" ledger "$dir/sent" "$dir/arrived" || true
# The best that the limits allow: each provider's share of the messages at its rate.
awk -v messages="$messages" -v domains="$domains" -v rate="$rate" -v begun="$begun" -v accepted="$accepted" -v done="$done" 'BEGIN {
    best = 0
    for (p = 0; p < 15; p++) {
        share = messages * int((domains - p + 14) / 15) / domains
        speed = rate + int(rate * p / 20)
        if (share / speed > best) best = share / speed
    }
    printf "accepted in %.1f s, delivered in %.1f s; the limits allow %.1f s: %.3f times\n", accepted - begun, done - begun, best, (done - begun) / best
}'
tr ',{}' '\n\n\n' < "$dir/sink.json" | grep -E '"(messages|connections|open_max|violations)"' || cat "$dir/sink.json"
