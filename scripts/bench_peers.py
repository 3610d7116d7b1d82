#!/usr/bin/env python3
"""The rows of scripts/bench_peers.sh: commands, order, medians, tables. Standard library only."""

import argparse
import collections
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

FPS = 30
GOP = 30
SIZES = {"720p": (1280, 720, 4_000_000), "1080p": (1920, 1080, 8_000_000)}
CORES = len(os.sched_getaffinity(0))
# Frames at a run's start that do not count: connecting, opening the encoder, filling caches.
START = 15

Row = collections.namedtuple("Row", "size codec output program input command")


def main():
    args = arguments()
    os.makedirs(args.work, exist_ok=True)
    if args.list:
        for row in paced_rows(args.sizes):
            print(row_id(row))
        return
    bench = Bench(args)
    result = {"machine": machine(args), "arguments": vars(args), "date": time.strftime("%Y-%m-%d")}
    if args.scale:
        result["scale"] = bench.scale()
    else:
        rows = [row for row in paced_rows(args.sizes) if re.search(args.rows, row_id(row))]
        if rows:
            result["paced"] = bench.paced(rows)
            result["alone"] = bench.encoder_alone(rows)
        transports = [row for row in transport_rows() if re.search(args.rows, row_id(row))]
        if transports:
            result["transport"] = bench.transport(transports)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as out:
            json.dump(result, out, indent=1)
    print(markdown(result))
    if result.get("failures"):
        sys.exit(1)


def arguments():
    parser = argparse.ArgumentParser(prog="bench_peers.sh", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seconds a row, once, 720p: does everything run?")
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose name (see --list) matches")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--json", metavar="FILE", help="write every latency of every run; scripts/plot_bench.py draws it")
    parser.add_argument("--repeats", type=int, help="runs of each row, all rows in turn [default: 5]")
    parser.add_argument("--seconds", type=float, help="length of a run [default: 4]")
    parser.add_argument("--scale", action="store_true", help="instead: 1, 2, ... streams at once, until the cores are full")
    parser.add_argument("--most", type=int, default=8, metavar="N", help="streams at most with --scale [default: 8]")
    parser.add_argument("--no-ssim", action="store_true", help="leave the quality out")
    parser.add_argument("--clip", help=argparse.SUPPRESS)  # the three are set by the script
    parser.add_argument("--work", default=tempfile.gettempdir(), help=argparse.SUPPRESS)
    parser.add_argument("--bin", default="target/release", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.seconds = args.seconds or (2 if args.quick else 4)
    args.repeats = args.repeats or (1 if args.quick else 5)
    args.sizes = ["720p"] if args.quick or args.scale else list(SIZES)
    return args


def row_id(row):
    return f"{row.size} {row.codec} {row.output} {row.program}"


def paced_rows(sizes):
    """Every row, peers of one kind side by side."""
    rows = []
    for size in sizes:
        for codec in ("h264", "h265"):
            for output in ("rtp", "rtmp"):
                rows += rows_of(size, codec, output)
    return rows


def rows_of(size, codec, output):
    def row(program, kind, command):
        return Row(size, codec, output, program, kind, command)

    rows = [row("ours", "shm", ours(size, codec, output, "off"))]
    if output == "rtp" and codec == "h264":
        rows.append(row("ours, pacing auto", "shm", ours(size, codec, output, "auto")))
        # Without the privilege it warns and is the first row once more.
        rows.append(row("ours, realtime", "shm", ours(size, codec, output, "off") + ["--realtime", "10"]))
    if output == "rtmp" and codec == "h265":
        return rows  # flv of ffmpeg before 6.1 and flvmux have no H.265
    library = {"h264": "x264", "h265": "x265"}[codec]
    rows.append(row(f"ffmpeg {library}", "pipe", ffmpeg(size, codec, output)))
    if codec == "h264":
        rows.append(row("gst openh264", "pipe", gstreamer(size, codec, output, "openh264enc")))
    rows.append(row(f"gst {library}", "pipe", gstreamer(size, codec, output, f"{library}enc")))
    return rows


def ours(size, codec, output, pacing):
    rate = SIZES[size][2]
    command = ["cvmmap_streamer", "--no-nats", "--no-status", "--shm-name", "{shm}", "--zmq-endpoint", "{zmq}"]
    command += ["--codec", codec, "--encoder", "software", "--bitrate", str(rate), "--gop", str(GOP)]
    # The frame's number in an SEI, so that a frame that was left out is seen as that: 60 bytes a picture.
    command += ["--fps", str(FPS), "--embed-timestamps"]
    if output == "rtp":
        return command + ["--rtp", "--rtp-endpoint", "127.0.0.1:{port}", "--rtp-pacing", pacing]
    command += ["--rtmp", "--rtmp-url", "{url}"]
    return command + (["--rtmp-mode", "enhanced"] if codec == "h265" else [])


def ffmpeg(size, codec, output):
    width, height, rate = SIZES[size]
    # Nothing is probed, nothing waits: raw pictures say all on the command line.
    command = ["ffmpeg", "-nostdin", "-v", "error", "-probesize", "32", "-analyzeduration", "0"]
    command += ["-f", "rawvideo", "-pix_fmt", "bgr24", "-video_size", f"{width}x{height}", "-framerate", str(FPS), "-i", "pipe:0"]
    command += ["-vf", "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p"]
    command += ["-c:v", {"h264": "libx264", "h265": "libx265"}[codec], "-preset", "ultrafast", "-tune", "zerolatency"]
    command += ["-b:v", str(rate), "-g", str(GOP), "-bf", "0"]
    if codec == "h264":
        command += ["-maxrate", str(rate), "-bufsize", str(rate // FPS * 4), "-keyint_min", str(GOP), "-sc_threshold", "0"]
    else:
        command += ["-x265-params", x265_options(rate)]
    if output == "rtp":
        return command + ["-flush_packets", "1", "-f", "rtp", "rtp://127.0.0.1:{port}?pkt_size=1200"]
    return command + ["-flush_packets", "1", "-flvflags", "no_duration_filesize", "-f", "flv", "{url}"]


def x265_options(rate):
    """What src/encode/x265 sets."""
    kbit = rate // 1000
    return (
        f"log-level=error:keyint={GOP}:min-keyint={GOP}:scenecut=0:open-gop=0:frame-threads=1"
        f":vbv-maxrate={kbit}:vbv-bufsize={kbit * 4 // FPS}:rc-lookahead=0:repeat-headers=1"
    )


def gstreamer(size, codec, output, encoder):
    width, height, rate = SIZES[size]
    slices = min(CORES, 4)
    # One thread from the pipe to the socket: queues would add hand-overs.
    pipeline = f"fdsrc fd=0 blocksize={width * height * 3} ! rawvideoparse format=bgr width={width} height={height}"
    pipeline += f" framerate={FPS}/1 ! videoconvert ! video/x-raw,format=I420,colorimetry=bt709"
    if encoder == "openh264enc":
        # As src/encode/openh264 sets it.
        pipeline += f" ! openh264enc rate-control=bitrate bitrate={rate} gop-size={GOP} complexity=low usage-type=camera"
        pipeline += f" multi-thread={slices} slice-mode=n-slices num-slices={slices} scene-change-detection=false"
        pipeline += " background-detection=false adaptive-quantization=false"
    elif encoder == "x264enc":
        pipeline += f" ! x264enc speed-preset=ultrafast tune=zerolatency bitrate={rate // 1000} key-int-max={GOP} bframes=0"
        pipeline += f" vbv-buf-capacity={4000 // FPS} option-string=scenecut=0:keyint-min={GOP}"
    else:
        pipeline += f" ! x265enc speed-preset=ultrafast tune=zerolatency bitrate={rate // 1000} key-int-max={GOP}"
        pipeline += f" option-string={x265_options(rate)}"
    name = codec[1:]
    if output == "rtp":
        pay = f"rtph{name}pay mtu=1200 aggregate-mode=zero-latency"
        pipeline += f" ! {pay} ! udpsink host=127.0.0.1 port={{port}} sync=false async=false"
    else:
        pipeline += f" ! h{name}parse ! flvmux streamable=true latency=0 ! rtmp2sink location={{url}} sync=false async=false chunk-size=65536"
    return ["gst-launch-1.0", "-q"] + pipeline.split()


def transport_rows():
    file = "{file}"
    rows = []
    for receiver in ("gro", "no gro"):
        ours_rtp = ["cvmmap_streamer", "--no-nats", "--no-status", "--input-mode", "annexb", "--input-file", file, "--fps", "0"]
        ours_rtp += ["--codec", "h264", "--rtp", "--rtp-endpoint", "127.0.0.1:{port}", "--rtp-pacing", "off"]
        rows.append(Row(receiver, "h264", "rtp", "ours", "own", ours_rtp))
        command = ["ffmpeg", "-nostdin", "-v", "error", "-f", "h264", "-i", file, "-c", "copy", "-f", "rtp"]
        rows.append(Row(receiver, "h264", "rtp", "ffmpeg", "own", command + ["rtp://127.0.0.1:{port}?pkt_size=1200"]))
        pipeline = f"filesrc location={file} blocksize=1048576 ! h264parse ! rtph264pay mtu=1200 aggregate-mode=zero-latency"
        pipeline += " ! udpsink host=127.0.0.1 port={port} sync=false async=false"
        rows.append(Row(receiver, "h264", "rtp", "gst", "own", ["gst-launch-1.0", "-q"] + pipeline.split()))
    ours_rtmp = ["cvmmap_streamer", "--no-nats", "--no-status", "--input-mode", "annexb", "--input-file", file, "--fps", "0"]
    rows.append(Row("tcp", "h264", "rtmp", "ours", "own", ours_rtmp + ["--codec", "h264", "--rtmp", "--rtmp-url", "{url}"]))
    command = ["ffmpeg", "-nostdin", "-v", "error", "-f", "h264", "-i", file, "-c", "copy", "-f", "flv"]
    rows.append(Row("tcp", "h264", "rtmp", "ffmpeg", "own", command + ["{url}"]))
    return rows


class Bench:
    def __init__(self, args):
        self.args = args
        self.clips = {}
        self.count = 0

    def path(self, name):
        return os.path.join(self.args.work, name)

    def clip(self, size):
        """Two seconds of raw BGR; the pacer plays them to and fro."""
        if size not in self.clips:
            width, height, _ = SIZES[size]
            raw = self.path(f"{size}.bgr")
            source = ["-i", self.args.clip] if self.args.clip else ["-f", "lavfi", "-i", f"mandelbrot=size=1280x720:rate={FPS},noise=alls=6:allf=t"]
            seek = ["-ss", "5"] if self.args.clip else []
            run(["ffmpeg", "-nostdin", "-v", "error", "-y", *seek, *source, "-frames:v", str(2 * FPS), "-vf", f"fps={FPS},scale={width}:{height}"]
                + ["-f", "rawvideo", "-pix_fmt", "bgr24", raw])
            self.clips[size] = raw
        return self.clips[size]

    def command(self, row):
        """The other words in braces are bench_row's to fill in."""
        program = [word.replace("{file}", self.path("transport.h264")) for word in row.command]
        if program[0] == "cvmmap_streamer":
            program[0] = os.path.join(self.args.bin, program[0])
        return program

    def row_command(self, row, frames, dump=None, phase=0):
        self.count += 1
        width, height, _ = SIZES.get(row.size, (0, 0, 0))
        command = [os.path.join(self.args.bin, "bench_row"), "--input", row.input, "--output", row.output, "--codec", row.codec]
        log = self.path(f"log.{self.count}")
        command += ["--log", log]
        if row.input != "own":
            command += ["--clip", self.clip(row.size), "--width", str(width), "--height", str(height), "--fps", str(FPS)]
            command += ["--frames", str(frames), "--phase-ms", str(phase)]
        if row.size == "no gro":
            command += ["--no-gro"]
        if dump:
            command += ["--dump", dump]
        return command + ["--"] + self.command(row), log

    def run_row(self, row, frames, dump=None):
        command, log = self.row_command(row, frames, dump)
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        return self.read(done.stdout, row, log)

    def read(self, output, row, log):
        try:
            result = json.loads(output)
        except ValueError:
            result = {"failure": "bench_row gave no result", "frames": []}
        if result["failure"]:
            with open(log, encoding="utf-8", errors="replace") as file:
                words = file.read().strip().splitlines()[-3:]
            print(f"bench_peers: {row_id(row)}: {result['failure']}: {' '.join(words)}", file=sys.stderr)
        return result

    def paced(self, rows):
        frames = int(self.args.seconds * FPS) + START
        runs = collections.defaultdict(list)
        for repeat in range(self.args.repeats):
            # In turn, from another one each time: what slows the machine down meets all of them.
            turned = rows[repeat % len(rows):] + rows[: repeat % len(rows)]
            for row in turned:
                name = row_id(row)
                tell(f"run {repeat + 1} of {self.args.repeats}: {name}")
                dump = self.path("dump." + row.codec) if repeat == 0 and not self.args.no_ssim else None
                result = self.run_row(row, frames, dump)
                if dump and not result["failure"]:
                    result["ssim"] = self.ssim(row, dump, result)
                runs[name].append(result)
        return [{"row": row._asdict(), "name": row_id(row), "runs": runs[row_id(row)]} for row in rows]

    def ssim(self, row, dump, result):
        """Mean SSIM of what came against the very frames it was made of."""
        width, height, _ = SIZES[row.size]
        raw = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-video_size", f"{width}x{height}", "-framerate", str(FPS)]
        kind = {"h264": "h264", "h265": "hevc"}[row.codec]
        graph = "[0:v]scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,setpts=N[a];[1:v]format=yuv420p,setpts=N[b];[b][a]ssim"
        command = ["ffmpeg", "-nostdin", "-v", "info", *raw, "-i", "pipe:0", "-r", str(FPS), "-f", kind, "-i", dump, "-lavfi", graph, "-f", "null", "-"]
        size = width * height * 3
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=open(self.path("ssim.log"), "wb")) as judge, \
                open(self.clip(row.size), "rb") as clip:
            count = os.path.getsize(self.clip(row.size)) // size
            try:
                for frame in result["frames"]:
                    clip.seek(to_and_fro(frame["frame"], count) * size)
                    judge.stdin.write(clip.read(size))
                judge.stdin.close()
            except BrokenPipeError:
                pass
            judge.wait()
        with open(self.path("ssim.log"), encoding="utf-8", errors="replace") as log:
            found = re.findall(r"All:([0-9.]+)", log.read())
        return float(found[-1]) if found else None

    def encoder_alone(self, rows):
        """The same encoder on the same pictures with nothing around it: what is left is the pipeline's."""
        program = os.path.join(self.args.bin, "examples", "encoder_alone")
        alone = {}
        if not os.path.exists(program):
            return alone
        for size, codec in sorted({(row.size, row.codec) for row in rows}):
            width, height, rate = SIZES[size]
            tell(f"the encoder alone: {size} {codec}")
            command = [program, "--clip", self.clip(size), "--width", str(width), "--height", str(height), "--codec", codec]
            command += ["--bitrate", str(rate), "--gop", str(GOP), "--fps", str(FPS), "--frames", str(int(self.args.seconds * FPS) + START)]
            results = [json.loads(run(command)) for _ in range(min(self.args.repeats, 3))]
            alone[f"{size} {codec}"] = sorted(results, key=lambda result: result["cpu_per_100"])[len(results) // 2]
        return alone

    def transport(self, rows):
        stream = self.path("transport.h264")
        tell("making a stream of 40 Mbit/s")
        run(["ffmpeg", "-nostdin", "-v", "error", "-y", "-f", "lavfi", "-i", f"mandelbrot=size=1920x1080:rate={FPS},noise=alls=24:allf=t"]
            + ["-frames:v", str(FPS), "-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "ultrafast", "-b:v", "40M", "-maxrate", "40M"]
            + ["-bufsize", "4M", "-g", str(GOP), "-bf", "0", "-f", "h264", self.path("second.h264")])
        with open(self.path("second.h264"), "rb") as second, open(stream, "wb") as out:
            data = second.read()
            for _ in range(max(1, (20_000_000 if self.args.quick else 200_000_000) // len(data))):
                out.write(data)
        size = os.path.getsize(stream)
        runs = collections.defaultdict(list)
        for repeat in range(self.args.repeats):
            for row in rows:
                tell(f"run {repeat + 1} of {self.args.repeats}: transport, {row_id(row)}")
                result = self.run_row(row, 0)
                result["file_bytes"] = size
                runs[row_id(row)].append(result)
        return [{"row": row._asdict(), "name": row_id(row), "runs": runs[row_id(row)]} for row in rows]

    def scale(self):
        """N programs, each with a camera and a receiver of its own; the cameras are out of step."""
        frames = int(self.args.seconds * FPS) + START
        rows = [row for row in rows_of("720p", "h264", "rtp") if row.program in ("ours", "gst openh264", "ffmpeg x264")]
        rows = [row for row in rows if re.search(self.args.rows, row_id(row))]
        self.clip("720p")
        steps, full = [], set()
        for count in range(1, self.args.most + 1):
            for row in rows:
                if row.program in full:
                    continue
                runs = []
                for _ in range(min(self.args.repeats, 3)):
                    tell(f"{count} x {row_id(row)}")
                    runs.append(scale_step(row, count, self.at_once(row, count, frames), frames))
                step = {key: runs[0][key] if key == "program" else statistics.median(run[key] for run in runs) for key in runs[0]}
                steps.append(step)
                # Frames are lost, or the camera waits: the cores are full.
                if step["delivered"] < 0.95 or step["behind_ms"] > 2000 / FPS:
                    full.add(row.program)
        return steps

    def at_once(self, row, count, frames):
        commands = [self.row_command(row, frames, phase=1000 * n // FPS // count) for n in range(count)]
        started = [(subprocess.Popen(command, stdout=subprocess.PIPE), log) for command, log in commands]
        return [self.read(child.communicate()[0], row, log) for child, log in started]


def scale_step(row, count, results, frames):
    latencies = [t["latency_us"] for r in results for t in r["frames"] if t["frame"] >= START]
    behind = [late for r in results for late in r.get("behind_us", [])[START:]]
    return {
        "program": row.program,
        "streams": count,
        "delivered": len(latencies) / (count * (frames - START)),
        # Of one core, while frames come: a run's start is part of it.
        "cores": sum(r.get("cpu_seconds", 0) for r in results) / (frames / FPS),
        "peak_mib": sum(r.get("peak_kib", 0) for r in results) / 1024,
        "behind_ms": percentile(behind, 90) / 1e3 if behind else 0,
        "p50_ms": percentile(latencies, 50) / 1e3,
        "p99_ms": percentile(latencies, 99) / 1e3,
    }


def to_and_fro(number, count):
    """As the pacer counts (tests/testkit/src/bench/pace.rs)."""
    around = max(1, 2 * (count - 1))
    within = number % around
    return min(within, around - within)


def percentile(values, percent):
    """The smallest value that this many percent do not exceed."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def summary(entry):
    """Medians over the runs of a row."""
    good = [r for r in entry["runs"] if not r["failure"] and r["frames"]]
    if not good:
        return None
    per_run = collections.defaultdict(list)
    for r in good:
        latencies = [t["latency_us"] / 1e3 for t in r["frames"] if t["frame"] >= START]
        if not latencies:
            return None
        per_run["p50"].append(percentile(latencies, 50))
        per_run["p99"].append(percentile(latencies, 99))
        per_run["max"].append(max(latencies))
        per_run["cpu"].append(r["cpu_seconds"] * 100 / len(r["frames"]))
        per_run["mib"].append(r["peak_kib"] / 1024)
        per_run["mbit"].append(r["payload_bytes"] * 8 * FPS / len(r["frames"]) / 1e6)
        per_run["behind"].append(max(r["behind_us"]) / 1e3)
    found = {key: statistics.median(values) for key, values in per_run.items()}
    found["came"] = sum(t["frame"] >= START for r in good for t in r["frames"])
    found["given"] = sum(r["frames_given"] - START for r in good)
    found["ssim"] = next((r["ssim"] for r in good if r.get("ssim")), None)
    found["runs"] = len(good)
    return found


def markdown(result):
    lines = [f"{result['date']}. {result['machine']}", ""]
    failures = result["failures"] = []
    if "paced" in result:
        lines += paced_table(result, failures)
    if "transport" in result:
        lines += transport_table(result, failures)
    if "scale" in result:
        lines += scale_table(result)
    return "\n".join(lines)


def paced_table(result, failures):
    args = result["arguments"]
    lines = [
        f"Latency from the frame written to its last packet, ms; medians over {args['repeats']} runs of {args['seconds']:g} s each "
        f"(all rows in turn), the first {START} frames of a run left out. CPU: seconds per 100 frames that came, of the whole process, start "
        "included; in brackets what is left without the same encoder alone on the same pictures. Late: how far the camera fell "
        "behind because the program did not take its frames (a camera would have dropped them).",
        "",
        "| | program | p50 | p99 | max | CPU | MiB | SSIM | Mbit/s | frames | late ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = collections.defaultdict(dict)
    for entry in result["paced"]:
        row, found = entry["row"], summary(entry)
        group = f"{row['size']} {row['codec']} {row['output']}"
        if not found:
            failures.append(entry["name"])
            reason = entry["runs"][0]["failure"] or "no frame was recognised"
            lines.append(f"| {group} | {row['program']} | failed: {reason} | | | | | | | | |")
            continue
        groups[group][row["program"]] = found
        cpu = f"{found['cpu']:.2f}"
        alone = result.get("alone", {}).get(f"{row['size']} {row['codec']}")
        if alone and ("ours" in row["program"] or "openh264" in row["program"] or row["codec"] == "h265"):
            cpu += f" ({found['cpu'] - alone['cpu_per_100']:.2f})"
        ssim = f"{found['ssim']:.4f}" if found["ssim"] else "-"
        lines.append(
            f"| {group} | {row['program']} | {found['p50']:.1f} | {found['p99']:.1f} | {found['max']:.1f} | {cpu} | {found['mib']:.0f} "
            f"| {ssim} | {found['mbit']:.2f} | {found['came']}/{found['given']} | {found['behind']:.0f} |"
        )
    lines += [""]
    for name, alone in result.get("alone", {}).items():
        lines.append(
            f"* The encoder alone, {name}: {alone['cpu_per_100']:.2f} CPU s per 100 frames, p50 {alone['p50_ms']:.1f} ms, p99 {alone['p99_ms']:.1f} ms."
        )
    for group, found in groups.items():
        peers = {name: f for name, f in found.items() if not name.startswith("ours")}
        if "ours" not in found or not peers:
            continue
        best = {key: min(peers, key=lambda name, key=key: peers[name][key]) for key in ("p50", "p99", "cpu")}
        words = [f"{key} {found['ours'][key] / peers[name][key]:.2f} of {name}'s" for key, name in best.items()]
        lines.append(f"* {group}: ours against the best peer: {', '.join(words)}.")
        alone = result.get("alone", {}).get(" ".join(group.split()[:2]))
        for name, peer in peers.items():
            if alone and ("openh264" in name or "x265" in name):
                outside = [max(f["cpu"] - alone["cpu_per_100"], 0) for f in (found["ours"], peer)]
                share = f", CPU outside of it {outside[0] / outside[1]:.2f}" if outside[1] > 0 else ""
                words = [f"{key} {found['ours'][key] / peer[key]:.2f}" for key in ("p50", "p99")]
                lines.append(f"* {group}: against {name}, which has the same encoder: {', '.join(words)}{share}.")
    missing = [f"{size} h265 rtmp" for size in args["sizes"]]
    if any(name in groups for name in missing):
        lines.append("* H.265 over RTMP: ffmpeg 5.1 and GStreamer 1.22 cannot, so ours stands alone.")
    return lines + [""]


def transport_table(result, failures):
    lines = [
        "An H.264 file of 40 Mbit/s sent as fast as possible, whole process: CPU seconds per GB of the file, medians; "
        "`no gro`: a receiver that takes packets one by one.",
        "",
        "| receiver | program | CPU s/GB | against ours | MiB |",
        "|---|---|---|---|---|",
    ]
    ours_by = {}
    for entry in result["transport"]:
        row = entry["row"]
        good = [r for r in entry["runs"] if not r["failure"]]
        if not good:
            failures.append(entry["name"])
            lines.append(f"| {row['output']}, {row['size']} | {row['program']} | failed | | |")
            continue
        cost = statistics.median(r["cpu_seconds"] / (r["file_bytes"] / 1e9) for r in good)
        mib = statistics.median(r["peak_kib"] for r in good) / 1024
        if row["program"] == "ours":
            ours_by[row["size"]] = cost
        ratio = f"{cost / ours_by[row['size']]:.1f}" if ours_by.get(row["size"]) else "-"
        lines.append(f"| {row['output']}, {row['size']} | {row['program']} | {cost:.2f} | {ratio} | {mib:.0f} |")
    return lines + [""]


def scale_table(result):
    lines = [
        "N streams at once, one process each, 720p H.264 at 30 fps over RTP, until frames are lost or the camera has to wait. "
        "CPU in cores, memory summed over the processes; late: how far the cameras were held up, p90.",
        "",
        "| streams | program | cores | MiB | p50 ms | p99 ms | frames | late ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for step in result["scale"]:
        lines.append(
            f"| {step['streams']} | {step['program']} | {step['cores']:.2f} | {step['peak_mib']:.0f} | {step['p50_ms']:.1f} "
            f"| {step['p99_ms']:.1f} | {100 * step['delivered']:.0f} % | {step['behind_ms']:.0f} |"
        )
    return lines + [""]


def machine(args):
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown CPU")
    versions = [
        run([os.path.join(args.bin, "cvmmap_streamer"), "--version"]).strip(),
        " ".join(run(["ffmpeg", "-version"]).split()[:3]),
        run(["gst-launch-1.0", "--version"]).splitlines()[1],
    ]
    load = os.getloadavg()[0]
    return f"{model}, {CORES} cores, {platform.system()} {platform.release()}, load {load:.1f} at the start; {', '.join(versions)}"


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(f"bench_peers: {' '.join(command)} ended with {done.returncode}")
    return done.stdout.decode()


def tell(text):
    print(f"bench_peers: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
