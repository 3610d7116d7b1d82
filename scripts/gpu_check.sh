#!/usr/bin/env bash
# What a machine with an NVIDIA driver says to this program: drivers and limits, kernels bit by bit, upload
# bandwidth, the encoder's answer, and a stream by whatever encoder comes of it. Under ten minutes.
#
#   scripts/gpu_check.sh [REPORT]      default: gpu_check_report.txt
#
# Exit code: 0 all checks passed, 1 one failed, 3 there is no GPU (the rest, in software, passed).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
report=${1:-gpu_check_report.txt}
profile=${CVMMAP_PROFILE:-release}
bin=${CARGO_TARGET_DIR:-target}/$profile
if [ -z "${CVMMAP_NO_BUILD:-}" ]; then
    if [ "$profile" = release ]; then flags=--release; else flags=; fi
    # shellcheck disable=SC2086
    cargo build $flags --quiet --bin cvmmap_streamer --example gpu_check --example nvenc_drive || exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# What is to become of the exit code, told to a file: the checks run in a subshell, behind a pipe.
echo 0 >"$work/rc"
failed() {
    echo "FAILED: $1"
    echo 1 >"$work/rc"
}
{
    echo "gpu_check, $(date -u +%Y-%m-%dT%H:%M:%SZ), $(git rev-parse --short HEAD 2>/dev/null || echo unversioned)"
    echo "== driver"
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=index,name,driver_version,pcie.link.gen.current,pcie.link.width.current,encoder.stats.sessionCount \
            --format=csv || true
    else
        echo "no nvidia-smi"
    fi
    ldconfig -p 2>/dev/null | grep -E 'libcuda\.so|libnvidia-encode\.so' || echo "neither library is known to ldconfig"
    echo "== kernels, upload, encoder"
    timeout 300 "$bin/examples/gpu_check"
    rc=$?
    echo "gpu_check: exit $rc"
    case $rc in
    0) ;;
    3) echo 3 >"$work/rc" ;;
    *) failed "gpu_check, exit $rc" ;; # 124: it took longer than it may
    esac
    for codec in h264 h265; do
        echo "== 120 pictures of $codec at 1080p through the registry"
        timeout 120 "$bin/examples/nvenc_drive" --through auto --codec $codec --width 1920 --height 1080 --frames 120 \
            --bitrate 8000000 --gop 60 --out "$work/$codec.bin" | sed 's/"units":\[.*\]\]/"units":"left out"/'
        rc=${PIPESTATUS[0]}
        [ "$rc" -eq 0 ] || failed "nvenc_drive with $codec, exit $rc"
        if command -v ffprobe >/dev/null; then
            found=$(ffprobe -v error -count_frames -show_entries stream=codec_name,width,height,nb_read_frames -of csv=p=0 \
                "$work/$codec.bin") || failed "ffprobe of $codec"
            echo "ffprobe: $found"
            # ffprobe has its own names and order.
            [ "$found" = "${codec/h265/hevc},1920,1080,120" ] || failed "$codec: not 120 pictures of 1920x1080"
        else
            echo "no ffprobe: the pictures were not counted"
        fi
    done
    echo "== the streamer with a source of its own"
    timeout 60 "$bin/cvmmap_streamer" --input-mode dummy --dummy-frames 60 --dummy-width 1280 --dummy-height 720 \
        --no-nats --codec h264 --encoder auto --shm-name "gpu_check_$$" --zmq-endpoint "ipc://$work/sync" \
        --rtp --rtp-endpoint 127.0.0.1:5904 2>&1
    rc=$?
    echo "cvmmap_streamer: exit $rc"
    # Whatever the GPU is, the stream comes about: in software where there is no encoder.
    [ "$rc" -eq 0 ] || failed "cvmmap_streamer, exit $rc"
} 2>&1 | tee "$report"
rc=$(cat "$work/rc")
echo "report: $report"
exit "$rc"
