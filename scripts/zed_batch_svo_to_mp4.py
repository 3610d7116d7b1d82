#!/usr/bin/env python3
"""Convert folders of ZED recordings to MP4: starts the program of the same name.

All arguments are the program's (--help lists them). It is looked for in $ZED_BATCH_SVO_TO_MP4, in
target/release and target/debug of this checkout, and on PATH. Only the standard library is used.
"""

import os
import shutil
import sys
from pathlib import Path

NAME = "zed_batch_svo_to_mp4"


def find_program():
    named = os.environ.get("ZED_BATCH_SVO_TO_MP4")
    if named:
        return named
    target = Path(__file__).resolve().parent.parent / "target"
    for profile in ("release", "debug"):
        built = target / profile / NAME
        if os.access(built, os.X_OK):
            return str(built)
    return shutil.which(NAME)


def main():
    program = find_program()
    if program is None:
        print(
            f"error: {NAME} was not found: build it (cargo build --release) or name it in "
            "$ZED_BATCH_SVO_TO_MP4",
            file=sys.stderr,
        )
        return 2
    try:
        os.execv(program, [program, *sys.argv[1:]])
    except OSError as error:
        print(f"error: {program}: {error.strerror}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
