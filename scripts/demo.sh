#!/usr/bin/env bash
# Shows a moving picture going through shared memory, encoder and RTP into a receiver, which says
# what it saw, and leaves a decoded picture to look at. Needs no GPU, no server, no network.
#
#   scripts/demo.sh [h264|h265]
set -euo pipefail
cd "$(dirname "$0")/.."

codec=${1:-h264}
out=demo-output
frames=150
port=$((20000 + ($$ % 10000) * 2))

scripts/setup.sh
echo "demo: building (the first time takes a few minutes)"
cargo build --release --quiet
bin=${CARGO_TARGET_DIR:-target}/release

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
rm -f "$out"/*

"$bin"/rtp_receiver_tester --port "$port" --codec "$codec" --frame-threshold $((frames * 2 / 3)) \
  --timeout-ms 30000 --dump "$out/received.$codec" >"$out/receiver.txt" 2>"$out/receiver.log" &
receiver=$!

echo "demo: $frames frames of a built-in pattern, 1280x720, 30 fps, $codec over RTP to port $port"
"$bin"/cvmmap_streamer --input-mode dummy --shm-name "cvmmap_demo_$$" --zmq-endpoint "ipc://$work/sync" \
  --dummy-frames "$frames" --dummy-width 1280 --dummy-height 720 --no-nats \
  --codec "$codec" --embed-timestamps \
  --rtp --rtp-endpoint "127.0.0.1:$port" --rtp-sdp "$out/stream.sdp" --report-json "$out/report.json"

if ! wait "$receiver"; then
  cat "$out/receiver.txt" "$out/receiver.log" >&2
  echo "demo: the receiver was not content" >&2
  exit 1
fi
echo
echo "demo: what the receiver saw"
sed 's/^/  /' "$out/receiver.txt"

# Six pictures of the run, side by side.
ffmpeg -nostdin -v error -y -f "${codec/h265/hevc}" -i "$out/received.$codec" \
  -vf "select='not(mod(n,25))',scale=426:-2,tile=3x2" -frames:v 1 "$out/received.png"
echo
echo "demo: decoded from what was received: $out/received.png"
