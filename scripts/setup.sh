#!/usr/bin/env bash
# Installs what building and testing need, from the distribution: asks nothing, does nothing twice.
#
#   scripts/setup.sh          to build and to run the demo
#   scripts/setup.sh --test   to run all tests as well
set -euo pipefail

build=(build-essential pkg-config nasm libclang-dev libx265-dev libffmpeg-nvenc-dev ffmpeg)
test=(
  gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
  gstreamer1.0-plugins-ugly gstreamer1.0-libav nginx-light libnginx-mod-rtmp nats-server
  python3-venv jq
)

wanted=("${build[@]}")
[ "${1:-}" = --test ] && wanted+=("${test[@]}")

if ! command -v cargo >/dev/null; then
  echo "setup: cargo is missing. Install Rust 1.95 or later (https://rustup.rs), then run this again." >&2
  exit 1
fi

if ! command -v apt-get >/dev/null; then
  echo "setup: this is no Debian. README names the packages for Arch; for other systems look for" >&2
  echo "setup: ${wanted[*]}" >&2
  exit 0
fi

missing=()
for package in "${wanted[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: not root and no sudo. Have somebody run: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

echo "setup: installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update &&
       "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
         install "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
  tail -n 30 "$log" >&2
  echo "setup: the packages could not be installed" >&2
  exit 1
fi
