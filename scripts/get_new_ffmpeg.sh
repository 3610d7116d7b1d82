#!/usr/bin/env bash
# Prints the path of an ffmpeg of version 8 or later, which takes H.265 over RTMP in both forms.
# Debian's is older, so it comes from PyPI's imageio-ffmpeg, once, into the build folder.
# CVMMAP_NEW_FFMPEG names another one.
set -euo pipefail
if [[ -n ${CVMMAP_NEW_FFMPEG:-} ]]; then
    echo "$CVMMAP_NEW_FFMPEG"
    exit 0
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
venv=$target/new-ffmpeg
mkdir -p "$target"
exec 9>"$target/new-ffmpeg.lock"
flock 9 # tests run side by side
if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -c 'import imageio_ffmpeg' 2>/dev/null; then
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'imageio-ffmpeg>=0.6' >&2
fi
exe=$("$venv/bin/python" -c 'import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())')
version=$("$exe" -version | sed -n '1s/^ffmpeg version n\{0,1\}\([0-9]*\).*/\1/p')
if [[ ${version:-0} -lt 8 ]]; then
    echo "imageio-ffmpeg ships version ${version:-unknown}, 8 is needed" >&2
    exit 1
fi
echo "$exe"
