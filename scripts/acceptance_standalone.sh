#!/usr/bin/env bash
# The compatibility matrix, without any server: five rows that must pass, and the combination that
# must be refused. The queue is deep here: acceptance is about every picture arriving right, not about
# latency, and a busy machine must not decide it. Evidence goes below $CVMMAP_EVIDENCE_DIR (default .sisyphus/evidence).
set -uo pipefail
cd "$(dirname "$0")/.."

frames=90
least=80
width=640
height=360
evidence=${CVMMAP_EVIDENCE_DIR:-.sisyphus/evidence}
profile=${CVMMAP_PROFILE:-release}
bin=${CVMMAP_BIN_DIR:-${CARGO_TARGET_DIR:-target}/$profile}
encoder=${CVMMAP_ENCODER:-auto}

for name in cvmmap_streamer rtp_receiver_tester rtmp_stub_tester picture_reader; do
  if [ ! -x "$bin/$name" ]; then
    echo "acceptance: building the missing $name"
    if [ "$profile" = release ]; then flags=--release; else flags=; fi
    # shellcheck disable=SC2086
    cargo build $flags --quiet || exit 1
    break
  fi
done
command -v ffmpeg >/dev/null || { echo "acceptance: ffmpeg is missing (scripts/setup.sh installs it)" >&2; exit 1; }

stamp=$(date -u +%Y%m%dT%H%M%SZ)-$$
run="$evidence/acceptance-$stamp"
mkdir -p "$run" || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"; kill $(jobs -p) 2>/dev/null' EXIT

port=$((21000 + ($$ % 9000) * 4))
pass=0
fail=0
rows=()

# Waits until a tester says that it listens: at most 10 s.
listening() {
  for _ in $(seq 200); do
    grep -qiE 'listening|receiving at' "$1" 2>/dev/null && return 0
    sleep 0.05
  done
  return 1
}

# name codec protocol mode
row() {
  local name=$1 codec=$2 protocol=$3 mode=$4
  local folder="$run/$name" tester_rc streamer_rc reader_rc=- received=0 status=FAIL
  mkdir -p "$folder"
  port=$((port + 2))
  local streamer=("$bin/cvmmap_streamer" --input-mode dummy --no-nats --shm-name "cvmmap_${name}_$$"
    --zmq-endpoint "ipc://$work/$name" --dummy-label "$name" --dummy-frames "$frames" --dummy-fps 20
    --dummy-width "$width" --dummy-height "$height" --codec "$codec" --encoder "$encoder"
    --queue-size 64 --bitrate 4M --report-json "$folder/report.json")
  local tester
  if [ "$protocol" = rtp ]; then
    tester=("$bin/rtp_receiver_tester" --port "$port" --expect-pt 96 --frame-threshold "$least"
      --timeout-ms 20000 --dump "$folder/received.$codec")
    streamer+=(--rtp --rtp-endpoint "127.0.0.1:$port" --rtp-sdp "$folder/stream.sdp")
  else
    tester=("$bin/rtmp_stub_tester" --mode "$mode" --listen-host 127.0.0.1 --listen-port "$port"
      --video-threshold "$least" --timeout-ms 20000 --dump "$folder/received.flv"
      --dump-annexb "$folder/received.$codec")
    local packaging=enhanced
    [ "$mode" = h265-domestic ] && packaging=domestic
    # For the test of this script: a row that must fail.
    [ "${CVMMAP_ACCEPTANCE_BREAK:-}" = "$name" ] && packaging=$([ "$packaging" = domestic ] && echo enhanced || echo domestic)
    streamer+=(--rtmp --rtmp-url "rtmp://127.0.0.1:$port/live/acceptance" --rtmp-mode "$packaging"
      --rtmp-max-retries 3)
  fi

  timeout 60 "${tester[@]}" >"$folder/tester.log" 2>&1 &
  local pid=$!
  listening "$folder/tester.log" || echo "the tester does not listen" >>"$folder/tester.log"
  timeout 60 "${streamer[@]}" >"$folder/streamer.log" 2>&1
  streamer_rc=$?
  wait "$pid"
  tester_rc=$?

  if [ -s "$folder/received.$codec" ]; then
    ffmpeg -nostdin -v error -f "${codec/h265/hevc}" -i "$folder/received.$codec" -vsync passthrough \
      -f rawvideo -pix_fmt bgr24 - 2>"$folder/ffmpeg.log" |
      "$bin/picture_reader" --width "$width" --height "$height" --least "$least" >"$folder/pictures.log" 2>&1
    reader_rc=$?
    received=$(sed -n 's/^frames=\([0-9]*\).*/\1/p' "$folder/pictures.log")
    [ -s "$folder/ffmpeg.log" ] && reader_rc="$reader_rc (decoder complained)"
  fi
  if [ "$tester_rc" = 0 ] && [ "$streamer_rc" = 0 ] && [ "$reader_rc" = 0 ]; then
    status=PASS
    pass=$((pass + 1))
  else
    fail=$((fail + 1))
  fi
  printf '%-4s  %-24s streamer=%s tester=%s pictures=%s received=%s/%s  %s\n' "$status" "$name" \
    "$streamer_rc" "$tester_rc" "$reader_rc" "${received:-0}" "$frames" "$folder"
  rows+=("$(printf '{"name":"%s","protocol":"%s","codec":"%s","mode":"%s","status":"%s","streamer_exit":%s,"tester_exit":%s,"frames_sent":%s,"frames_received":%s,"log":"%s"}' \
    "$name" "$protocol" "$codec" "$mode" "$(echo "$status" | tr A-Z a-z)" "$streamer_rc" "$tester_rc" \
    "$frames" "${received:-0}" "$folder")")
}

started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
row acc_1_rtp_h264 h264 rtp -
row acc_2_rtp_h265 h265 rtp -
row acc_3_rtmp_h264 h264 rtmp h264
row acc_4_rtmp_h265_enh h265 rtmp h265-enhanced
row acc_5_rtmp_h265_dom h265 rtmp h265-domestic

# The invalid row counts apart: it passes when it is refused, in words, with exit code 2.
"$bin/cvmmap_streamer" --input-mode dummy --no-nats --shm-name "cvmmap_invalid_$$" --zmq-endpoint "ipc://$work/invalid" \
  --codec h264 --rtmp --rtmp-url rtmp://127.0.0.1/live/x --rtmp-mode domestic >"$run/invalid.log" 2>&1
invalid_rc=$?
invalid=fail
if [ "$invalid_rc" = 2 ] && grep -q -- --rtmp-mode "$run/invalid.log" && grep -q -- --codec "$run/invalid.log"; then
  invalid=refused
fi
printf '%-4s  %-24s exit=%s\n' "$([ "$invalid" = refused ] && echo PASS || echo FAIL)" "rtmp_h264_domestic" "$invalid_rc"

total=${#rows[@]}
{
  printf '{"total":%s,"pass":%s,"fail":%s,"skip":0,"started":"%s","run_folder":"%s","invalid_row":"%s","rows":[' \
    "$total" "$pass" "$fail" "$started" "$run" "$invalid"
  (IFS=,; printf '%s' "${rows[*]}")
  printf ']}\n'
} >"$evidence/task-14-acceptance-summary.json"
{
  echo "run_folder=$run"
  echo "started=$started"
  echo "revision=$("$bin/cvmmap_streamer" --version)"
  echo "encoder=$encoder"
  printf '%s\n' "${rows[@]}"
  echo "invalid_row=$invalid"
  echo "total=$total pass=$pass fail=$fail skip=0"
} >"$evidence/task-14-acceptance.txt"
cp "$evidence/task-14-acceptance-summary.json" "$run/summary.json"

if [ "$fail" != 0 ]; then
  echo "acceptance: logs in $run"
fi
echo "total=$total pass=$pass fail=$fail skip=0"
[ "$fail" = 0 ] && [ "$invalid" = refused ]
