#!/usr/bin/env bash
# A real clip through shared memory, as H.264 and as H.265, to three receivers: the tester, ffmpeg
# from the SDP, GStreamer. Every frame has to arrive and decode; the bit rate has to be within 10 % of
# what was asked; the quality is stated beside ffmpeg's own encoder at the same bit rate (and has to be
# within 0.005 SSIM where that is the same encoder with the same settings: x265).
#
#   scripts/clip_check.sh [CLIP [SECONDS]]
#
# Without CLIP: ../shared/media/bigbuckbunny.mp4 if it is there, else a generated scene.
set -euo pipefail
cd "$(dirname "$0")/.."

clip=${1:-../shared/media/bigbuckbunny.mp4}
seconds=${2:-5}
rate=4000000
gop=30
bin=${CVMMAP_BIN_DIR:-${CARGO_TARGET_DIR:-target}/release}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
[ -x "$bin/cvmmap_streamer" ] || cargo build --release --quiet

if [ -f "$clip" ]; then
  input=(-i "$clip")
else
  echo "clip_check: $clip is not there: a generated scene takes its place"
  input=(-f lavfi -i "mandelbrot=size=1280x720:rate=25,noise=alls=6:allf=t")
fi
ffmpeg -nostdin -v error -y "${input[@]}" -t "$seconds" -vf scale=1280:720 -r 25 -f rawvideo -pix_fmt bgr24 "$work/clip.bgr"
frames=$(($(stat -c %s "$work/clip.bgr") / (1280 * 720 * 3)))
raw=(-f rawvideo -pix_fmt bgr24 -video_size 1280x720 -framerate 25)

port=$((24000 + ($$ % 8000) * 4))
fail=0
note() { printf '%-5s %s\n' "$1" "$2"; [ "$1" = FAIL ] && fail=1 || true; }

ssim() { # FILE: mean SSIM of its frames against the clip
  ffmpeg -nostdin -v info "${raw[@]}" -i "$work/clip.bgr" -r 25 -i "$1" \
    -lavfi "[0:v]scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,setpts=N[a];[1:v]format=yuv420p,setpts=N[b];[b][a]ssim" \
    -f null - 2>&1 | sed -n 's/.*All:\([0-9.]*\).*/\1/p' | tail -n 1
}

publish() { # CODEC: streams the clip once to the three ports
  local codec=$1
  "$bin/cvmmap_streamer" --no-nats --shm-name "cvmmap_clip_$$" --zmq-endpoint "ipc://$work/sync" --codec "$codec" \
    --bitrate "$rate" --gop "$gop" --fps 25 --queue-size 8 --ingest-idle-timeout-ms 3000 --report-json "$work/$codec.json" \
    --rtp --rtp-endpoint "127.0.0.1:$port" --rtp-endpoint "127.0.0.1:$((port + 2))" --rtp-endpoint "127.0.0.1:$((port + 4))" \
    --rtp-sdp "$work/$codec.0.sdp" --rtp-sdp "$work/$codec.sdp" >"$work/$codec.streamer.log" 2>&1 &
  local streamer=$!
  # The producer holds its first frame until the streamer has subscribed.
  "$bin/cvmmap_sim" --stdin --pace --wait-for-reader --shm-name "cvmmap_clip_$$" --zmq-endpoint "ipc://$work/sync" --label clip \
    --width 1280 --height 720 --pixel-format bgr --fps 25 <"$work/clip.bgr" >"$work/sim.log" 2>&1
  wait "$streamer"
}

for codec in h264 h265; do
  format=${codec/h265/hevc}
  "$bin/rtp_receiver_tester" --port "$port" --codec "$codec" --frame-threshold "$frames" --timeout-ms 60000 \
    --dump "$work/$codec.tester" >"$work/$codec.tester.log" 2>&1 &
  tester=$!
  # ffmpeg wants the description before the stream begins: made from a first run, it is the same but for
  # the identifiers, which it does not check.
  cat >"$work/$codec.in.sdp" <<SDP
v=0
o=- 0 0 IN IP4 127.0.0.1
s=clip
c=IN IP4 127.0.0.1
t=0 0
m=video $((port + 2)) RTP/AVP 96
a=rtpmap:96 ${codec^^}/90000
SDP
  timeout 60 ffmpeg -nostdin -v error -y -protocol_whitelist file,udp,rtp -buffer_size 8000000 -i "$work/$codec.in.sdp" -c copy \
    -f "$format" -t $((seconds + 2)) "$work/$codec.ffmpeg" >"$work/$codec.ffmpeg.log" 2>&1 &
  ffmpeg_pid=$!
  timeout 60 gst-launch-1.0 -q udpsrc port=$((port + 4)) buffer-size=8000000 \
    caps="application/x-rtp,media=video,clock-rate=90000,encoding-name=${codec^^},payload=96" \
    ! rtpjitterbuffer latency=50 ! "rtp${codec}depay" ! "${codec}parse" ! "avdec_$codec" ! videoconvert \
    ! video/x-raw,format=GRAY8 ! filesink location="$work/$codec.gst" >"$work/$codec.gst.log" 2>&1 &
  gst=$!
  sleep 1 # the two foreign receivers do not say when they listen; the tester's result does not depend on it
  publish "$codec" || note FAIL "$codec: the streamer did not end well: $(tail -n 3 "$work/$codec.streamer.log")"

  if wait "$tester"; then note PASS "$codec: the tester received $frames frames"; else
    note FAIL "$codec: tester: $(cat "$work/$codec.tester.log")"; fi
  decoded=$(ffmpeg -nostdin -v error -f "$format" -i "$work/$codec.tester" -vsync passthrough -f framecrc - 2>"$work/decode.log" | grep -vc '^#') || true
  if [ "$decoded" = "$frames" ] && [ ! -s "$work/decode.log" ]; then note PASS "$codec: every frame decodes"; else
    note FAIL "$codec: $decoded of $frames decode: $(head -n 3 "$work/decode.log")"; fi

  bytes=$(stat -c %s "$work/$codec.tester")
  measured=$((bytes * 8 * 25 / frames))
  off=$(((measured - rate) * 100 / rate))
  if [ "${off#-}" -le 10 ]; then note PASS "$codec: $measured bit/s, $off % from what was asked"; else
    note FAIL "$codec: $measured bit/s, $off % from $rate"; fi

  sleep 2
  kill -INT "$ffmpeg_pid" "$gst" 2>/dev/null || true
  wait "$ffmpeg_pid" "$gst" 2>/dev/null || true
  by_ffmpeg=$(ffmpeg -nostdin -v error -f "$format" -i "$work/$codec.ffmpeg" -vsync passthrough -f framecrc - 2>/dev/null | grep -vc '^#') || true
  by_gst=$(($(stat -c %s "$work/$codec.gst" 2>/dev/null || echo 0) / (1280 * 720)))
  # ffmpeg drops what comes before its probe is done, GStreamer what its jitter buffer still holds at the end.
  if [ "$by_ffmpeg" -ge $((frames - 5)) ]; then note PASS "$codec: ffmpeg received and decoded $by_ffmpeg of $frames"; else
    note FAIL "$codec: ffmpeg got $by_ffmpeg of $frames: $(head -n 3 "$work/$codec.ffmpeg.log")"; fi
  if [ "$by_gst" -ge $((frames - 5)) ]; then note PASS "$codec: GStreamer received and decoded $by_gst of $frames"; else
    note FAIL "$codec: GStreamer got $by_gst of $frames: $(head -n 3 "$work/$codec.gst.log")"; fi

  ours=$(ssim "$work/$codec.tester")
  common=(-nostdin -v error -y "${raw[@]}" -i "$work/clip.bgr" -vf scale=out_color_matrix=bt709:out_range=tv,format=yuv420p -b:v "$rate" -g "$gop")
  if [ "$codec" = h264 ]; then
    ffmpeg "${common[@]}" -c:v libx264 -preset ultrafast -tune zerolatency -maxrate "$rate" -bufsize $((rate / 25 * 2)) -f h264 "$work/peer"
    note INFO "h264: SSIM $ours (openh264), x264 ultrafast zerolatency $(ssim "$work/peer") at $(($(stat -c %s "$work/peer") * 200 / frames)) bit/s"
  else
    # The same settings as src/encode/x265, through ffmpeg.
    kbit=$((rate / 1000))
    ffmpeg "${common[@]}" -c:v libx265 -preset ultrafast -tune zerolatency \
      -x265-params "log-level=error:keyint=$gop:min-keyint=$gop:scenecut=0:open-gop=0:frame-threads=1:vbv-maxrate=$kbit:vbv-bufsize=$((kbit * 4 / 25)):rc-lookahead=0:repeat-headers=1" \
      -f hevc "$work/peer"
    peer=$(ssim "$work/peer")
    text="h265: SSIM $ours, ffmpeg's x265 with the same settings $peer at $(($(stat -c %s "$work/peer") * 200 / frames)) bit/s"
    if awk -v a="$ours" -v b="$peer" 'BEGIN { exit !(a >= b - 0.005) }'; then note PASS "$text"; else note FAIL "$text"; fi
  fi
  port=$((port + 6))
done
exit "$fail"
