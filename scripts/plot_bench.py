#!/usr/bin/env python3
"""Draws docs/latency.png and docs/scale.png.

    scripts/bench_peers.sh --json peers.json
    scripts/bench_peers.sh --scale --json scale.json
    python3 -m venv venv && venv/bin/pip install matplotlib
    venv/bin/python scripts/plot_bench.py peers.json scale.json --out docs

A file of END_TO_END_JSON (cargo bench --bench end_to_end) is drawn into a panel of its own.
"""

import argparse
import json
import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter  # noqa: E402

# Frames at a run's start that do not count, as in bench_peers.py.
START = 15
COLOURS = {
    "ours": "#0b6e4f",
    "ours, pacing auto": "#6fc3a2",
    "ours, realtime": "#9a8c00",
    "gst openh264": "#c1121f",
    "gst x264": "#f4845f",
    "gst x265": "#f4845f",
    "ffmpeg x264": "#3a5a98",
    "ffmpeg x265": "#3a5a98",
    "ours, pacing off": "#0b6e4f",
    "bare": "#555555",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="what the benches wrote")
    parser.add_argument("--out", default=".", help="folder of the pictures")
    args = parser.parse_args()
    found = {}
    for path in args.files:
        with open(path, encoding="utf-8") as file:
            found.update(json.load(file))
    if "paced" in found or "end_to_end_us" in found:
        latency(found, os.path.join(args.out, "latency.png"))
    if "scale" in found:
        scale(found, os.path.join(args.out, "scale.png"))


def latency(found, path):
    """For each latency the share of frames that took longer: the tail is what matters."""
    panels = {}
    for entry in found.get("paced", []):
        row = entry["row"]
        if row["output"] == "rtp":
            values = [t["latency_us"] / 1e3 for r in entry["runs"] for t in r["frames"] if t["frame"] >= START]
            panels.setdefault(f"{row['size']} {row['codec']}, publish to last RTP packet", {})[row["program"]] = values
    if "end_to_end_us" in found:
        panels["1080p, notice to last packet without the encoder"] = {
            name: [value / 1e3 for value in values] for name, values in found["end_to_end_us"].items()
        }
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(6.4 * columns, 3.8 * rows), squeeze=False)
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    for axis, (title, programs) in zip(axes.flat, panels.items()):
        for program, values in programs.items():
            ordered = sorted(values)
            shares = [1 - n / len(ordered) for n in range(len(ordered))]
            axis.step(ordered, shares, where="post", label=program, color=COLOURS.get(program))
        axis.set(title=title, xlabel="ms", ylabel="share of frames above", xscale="log", yscale="log", ylim=(1e-3, 1))
        plain(axis.xaxis)
        axis.grid(True, which="both", alpha=0.25)
        axis.legend(fontsize="small")
    save(figure, path)


def scale(found, path):
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    programs = {}
    for step in found["scale"]:
        programs.setdefault(step["program"], []).append(step)
    for program, steps in programs.items():
        streams = [step["streams"] for step in steps]
        style = {"marker": "o", "label": program, "color": COLOURS.get(program)}
        axes[0].plot(streams, [step["cores"] for step in steps], **style)
        axes[1].plot(streams, [step["p99_ms"] for step in steps], **style)
        for step in steps:
            if step["delivered"] < 0.95 or step["behind_ms"] > 66:
                axes[0].annotate("full", (step["streams"], step["cores"]), textcoords="offset points", xytext=(6, -4))
    axes[0].set(title="720p30 H.264 over RTP", xlabel="streams", ylabel="cores", ylim=(0, None))
    axes[1].set(title="publish to last packet, p99", xlabel="streams", ylabel="ms", yscale="log")
    plain(axes[1].yaxis)
    for axis in axes:
        axis.grid(True, alpha=0.25)
        axis.legend(fontsize="small")
        axis.xaxis.get_major_locator().set_params(integer=True)
    save(figure, path)


def plain(axis):
    """5 10 20 in place of powers of ten: most panels hold less than one decade."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def save(figure, path):
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
