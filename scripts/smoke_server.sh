#!/usr/bin/env bash
# Publishes for a few seconds to a media server that is already running, and looks for the stream
# there. Optional: without the server it prints SKIP and exits 0. Never part of acceptance.
#
#   scripts/smoke_server.sh srs [HOST]
#   scripts/smoke_server.sh zlm [HOST]
set -uo pipefail
cd "$(dirname "$0")/.."

server=${1:-}
host=${2:-127.0.0.1}
bin=${CARGO_TARGET_DIR:-target}/release
case "$server" in
  srs) rtmp=1935 http=8080 ;;
  zlm) rtmp=1935 http=80 ;;
  *) echo "usage: $0 srs|zlm [HOST]" >&2; exit 2 ;;
esac

skip() { echo "SKIP $server: $1"; exit 0; }
(exec 3<>"/dev/tcp/$host/$rtmp") 2>/dev/null || skip "nothing listens on $host:$rtmp"
command -v ffprobe >/dev/null || skip "ffprobe is not installed"
[ -x "$bin/cvmmap_streamer" ] || skip "build first: cargo build --release"

work=$(mktemp -d)
trap 'rm -rf "$work"; kill $(jobs -p) 2>/dev/null' EXIT
fail=0
for row in h264: h265:enhanced h265:domestic; do
  codec=${row%%:*}
  mode=${row#*:}
  name="cvmmap_smoke_${codec}_${mode:-legacy}"
  "$bin/cvmmap_streamer" --input-mode dummy --no-nats --shm-name "${name}_$$" --zmq-endpoint "ipc://$work/$name" \
    --dummy-frames 300 --codec "$codec" --rtmp --rtmp-url "rtmp://$host:$rtmp/live/$name" \
    ${mode:+--rtmp-mode "$mode"} --rtmp-max-retries 2 >"$work/$name.log" 2>&1 &
  publisher=$!
  sleep 3
  # Both servers offer what was published as HTTP-FLV; an ffprobe that knows the packaging reads it.
  seen=$(timeout 10 ffprobe -v error -select_streams v -show_entries stream=codec_name -of csv=p=0 \
    "http://$host:$http/live/$name.$([ "$server" = zlm ] && echo live.)flv" 2>/dev/null | head -n 1)
  wait "$publisher"
  rc=$?
  if [ "$rc" != 0 ]; then
    echo "FAIL $server $codec ${mode:-legacy}: the streamer exited $rc"
    tail -n 5 "$work/$name.log"
    fail=1
  elif [ -z "$seen" ]; then
    echo "PASS $server $codec ${mode:-legacy}: published; not read back (this ffprobe may not know the packaging)"
  else
    echo "PASS $server $codec ${mode:-legacy}: published, read back as $seen"
  fi
done
exit "$fail"
