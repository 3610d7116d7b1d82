#!/usr/bin/env bash
# Ours beside ffmpeg and GStreamer: the same raw clip, paced at 30 fps, the same bit rate and key-frame
# distance, one receiver, one clock; and a file sent as fast as possible. Prints tables for
# docs/benchmarks.md, which says how it measures.
#
#   scripts/bench_peers.sh                  everything, under 20 minutes
#   scripts/bench_peers.sh --quick          a few seconds a row: does everything run?
#   scripts/bench_peers.sh --rows '720p h264 rtp' --json out.json
#   scripts/bench_peers.sh --scale          1, 2, ... streams at once
#   scripts/bench_peers.sh --help
#
# The clip is ../shared/media/bigbuckbunny.mp4 (or CVMMAP_CLIP) if it is there, else a generated scene.
set -euo pipefail
cd "$(dirname "$0")/.."

for word in "$@"; do
  case $word in
  -h | --help | --list) exec python3 scripts/bench_peers.py "$word" ;;
  esac
done

scripts/setup.sh --test
bin=${CVMMAP_BIN_DIR:-${CARGO_TARGET_DIR:-target}/release}
if [ -z "${CVMMAP_BIN_DIR:-}" ]; then
  cargo build --release --quiet
  cargo build --release --quiet --example encoder_alone
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
clip=${CVMMAP_CLIP:-../shared/media/bigbuckbunny.mp4}
options=(--work "$work" --bin "$bin")
if [ -f "$clip" ]; then
  options+=(--clip "$clip")
else
  echo "bench_peers: $clip is not there: a generated scene takes its place" >&2
fi
# The first start after an installation lists all plugins, which is nothing to measure.
gst-inspect-1.0 x264enc >"$work/plugins" 2>&1 || true
python3 scripts/bench_peers.py "${options[@]}" "$@"
