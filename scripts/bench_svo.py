#!/usr/bin/env python3
"""Speed and memory of zed_svo_to_mp4 beside ffmpeg doing the same work on the same pictures.

Makes a synthetic recording (H.265 side by side, both eyes of a moving test picture with noise),
converts it with both programs (decode, crop to the left eye, libx265 with the same preset and
settings), and prints frames per second and peak memory. Needs ffmpeg with libx265; nothing beyond
the standard library. All files are made in a temporary folder.

    scripts/bench_svo.py [--program target/release/zed_svo_to_mp4] [--frames 300] [--size 1920x1080] [--rounds 3]
    scripts/bench_svo.py --memory-frames 10000      # peak memory of a long recording, ours alone
"""

import argparse
import base64
import json
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

MAGIC = b"\x89MCAP0\r\n"
START_NS = 1_773_806_381_000_000_000
GOP = 30


def run(command, **options):
    """Wall seconds, CPU seconds and peak memory in MiB of a command; its output on a failure."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command[0]} failed: {errors.decode(errors='replace')[-2000:]}")
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def make_stream(path, frames, width, height):
    source = f"testsrc2=size={2 * width}x{height}:rate=30,noise=alls=6:allf=t,format=yuv420p"
    run(["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, "-frames:v", str(frames),
         "-c:v", "libx265", "-preset", "ultrafast", "-crf", "26",
         "-x265-params", f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=0:repeat-headers=1:"
         "aud=0:info=0:log-level=none", "-f", "hevc", str(path)])


def access_units(data):
    """Annex B to one access unit per picture: each slice of x265 here is a whole picture."""
    starts = [match.start() for match in re.finditer(b"\x00\x00\x00\x01|(?<!\x00)\x00\x00\x01", data)]
    unit = b""
    for start, end in zip(starts, starts[1:] + [len(data)]):
        nal = data[start:end].lstrip(b"\x00")[1:]
        unit += b"\x00\x00\x00\x01" + nal
        if (nal[0] >> 1) & 0x3F < 32:
            yield unit, (nal[0] >> 1) & 0x3F >= 16
            unit = b""


def text(value):
    data = value.encode()
    return struct.pack("<I", len(data)) + data


def record(code, body):
    return struct.pack("<BQ", code, len(body)) + body


def message(channel, time_ns, data):
    return record(5, struct.pack("<HIQQ", channel, 0, time_ns, time_ns) + data)


def frame(payload, time_ns, index, key):
    n = len(payload)
    footer = struct.pack("<IIIiiiQIiIIQ", 0, 0, 0x5C002C00, 1, 2, -1, time_ns, n, 3 if key else 0,
                         index // GOP * GOP, index, time_ns)
    return struct.pack("<II", 4 + n + 56, n) + payload + footer


def write_recording(path, units, frames, width, height):
    """The MCAP by hand: records in chunks of one second, no summary beyond the footer record."""
    topic = "Camera_SN31000009/side_by_side"
    block = bytearray(128)
    struct.pack_into("<IIII", block, 0, width, height, 31_000_009, 30)
    header = json.dumps({"version": "2.0.5", "header": base64.b64encode(block).decode()})
    channels = [(1, "svo_header", "json"), (2, topic, "zed_sdk_encoded"), (3, "svo_footer", "json")]
    with open(path, "wb") as out:
        out.write(MAGIC + record(1, text("") + text("libmcap stereolabs")))
        body = b"".join(
            record(4, struct.pack("<HH", number, 0) + text(name) + text(kind) + text(""))
            for number, name, kind in channels)
        body += message(1, START_NS - 10**15, header.encode())
        times = []
        for index in range(frames):
            payload, key = units[index % len(units)]
            time_ns = START_NS + index * 1_000_000_000 // 30
            times.append(time_ns)
            body += message(2, time_ns, frame(payload, time_ns, index, key))
            if index % GOP == GOP - 1 or index == frames - 1:
                if index == frames - 1:
                    body += message(3, START_NS + 10**15, json.dumps({topic: times}).encode())
                head = struct.pack("<QQQI", 0, 0, len(body), zlib.crc32(body)) + text("")
                out.write(record(6, head + struct.pack("<Q", len(body)) + body))
                body = b""
        out.write(record(15, struct.pack("<I", 0)) + record(2, struct.pack("<QQI", 0, 0, 0)) + MAGIC)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--program", default=str(root / "target/release/zed_svo_to_mp4"))
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--size", default="1920x1080", help="of one eye")
    parser.add_argument("--presets", default="balanced,fastest")
    parser.add_argument("--rounds", type=int, default=3, help="of all lanes in turn; medians of the ratios are printed")
    parser.add_argument("--memory-frames", type=int, default=0)
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    theirs = {"fastest": "ultrafast", "fast": "veryfast", "balanced": "medium", "quality": "slow"}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        stream, recording = folder / "a.h265", folder / "a.svo2"
        wanted = min(args.frames, 2 * GOP) if args.memory_frames else args.frames
        make_stream(stream, wanted, width, height)
        units = list(access_units(stream.read_bytes()))
        assert len(units) == wanted, f"{len(units)} access units of {wanted}"
        ours = [args.program, "--input", str(recording), "--view", "left-raw", "--encoder-device",
                "software", "--progress", "never", "--output", str(folder / "ours.mp4")]
        if args.memory_frames:
            write_recording(recording, units, args.memory_frames, width, height)
            megabytes = recording.stat().st_size / 1e6
            for preset in args.presets.split(","):
                measured = run([*ours, "--preset", preset])
                report(f"{preset}: {args.memory_frames} frames, {megabytes:.0f} MB:", args.memory_frames, measured)
            return
        write_recording(recording, units, wanted, width, height)
        decode = ["ffmpeg", "-v", "error", "-y", "-i", str(stream)]
        seconds, cpu, _ = run([*decode, "-f", "null", "-"])
        print(f"{wanted} frames of {2 * width}x{height}; ffmpeg decodes alone at "
              f"{wanted / seconds:.1f} frames/s, {1000 * cpu / wanted:.1f} CPU-ms each")
        settings = (f"crf=23:keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=0:b-pyramid=0:"
                    "open-gop=0:log-level=none")
        for preset in args.presets.split(","):
            def ffmpeg(more=""):
                return [*decode, "-vf", "crop=iw/2:ih:0:0", "-c:v", "libx265", "-preset", theirs[preset],
                        "-x265-params", settings + more, str(folder / "ffmpeg.mp4")]
            # By itself, and with what ours tells x265 beyond the preset (src/encode/x265/mod.rs).
            lanes = {"zed_svo_to_mp4": [*ours, "--preset", preset], "ffmpeg": ffmpeg()}
            if preset == "balanced":
                lanes["ffmpeg as ours"] = ffmpeg(":frame-threads=2:rc-lookahead=15")
            speeds = {name: [] for name in lanes}
            for _ in range(args.rounds):
                for name, command in lanes.items():
                    measured = run(command)
                    speeds[name].append(wanted / measured[0])
                    report(f"{preset}: {name}", wanted, measured)
            mine = speeds.pop("zed_svo_to_mp4")
            for name, others in speeds.items():
                ratios = sorted(a / b for a, b in zip(mine, others))
                print(f"{preset}: ours is {statistics.median(ratios):.2f} of {name} "
                      f"({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)


def report(name, frames, measured):
    seconds, cpu, memory = measured
    print(f"{name} {frames / seconds:.1f} frames/s, {1000 * cpu / frames:.1f} CPU-ms each, "
          f"peak {memory:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
