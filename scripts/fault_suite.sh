#!/usr/bin/env bash
# Everything that takes a streamer down in the field, done to this one: torn reads, stalled sinks, storms of resets,
# and what else `--list` shows. Needs no server. Every scenario has a control that shows that its check can fail.
#   --full            100,000 pictures a rate in torn_read (half an hour; --torn-fps 200 for one rate)
#   --soak [SECONDS]  one streamer through faults at random for so long (180), from a printed --seed N
#   --only NAME       just that one; repeatable
# Memory, descriptors, latency and drops over time are timeline.csv and timeline.png in the folder of the run.
# Evidence goes below $CVMMAP_EVIDENCE_DIR (default .sisyphus/evidence).
set -uo pipefail
cd "$(dirname "$0")/.."

profile=${CVMMAP_PROFILE:-release}
bin=${CVMMAP_BIN_DIR:-${CARGO_TARGET_DIR:-target}/$profile}

for name in cvmmap_streamer fault_suite; do
  if [ ! -x "$bin/$name" ]; then
    echo "fault suite: building the missing $name"
    if [ "$profile" = release ]; then flags=--release; else flags=; fi
    # shellcheck disable=SC2086
    cargo build $flags --quiet || exit 5
    break
  fi
done
# The driver of encoder_fails. Without NVIDIA's header there is none, and that scenario is left out.
if [ ! -f "$bin/libnvenc_emu.so" ]; then
  echo "fault suite: building the emulator of NVENC's driver"
  if [ "$profile" = release ]; then flags=--release; else flags=; fi
  # shellcheck disable=SC2086
  cargo build $flags --quiet -p nvenc-emu || echo "fault suite: no emulator of NVENC's driver: encoder_fails is skipped" >&2
fi
command -v ffmpeg >/dev/null || { echo "fault suite: ffmpeg is missing (scripts/setup.sh installs it)" >&2; exit 5; }

exec "$bin/fault_suite" --binaries "$bin" "$@"
