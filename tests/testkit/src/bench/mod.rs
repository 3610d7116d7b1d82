//! One row of `scripts/bench_peers.sh`: a program is fed pictures at a camera's pace, and what it
//! sends is stamped.
//!
//! Pacer and receiver live in one process, so that both read one clock, and are the same for every
//! program that is compared: [`pace`] writes each frame into the program's input (shared memory or
//! a pipe), [`receive`] keeps what comes with the time of each access unit's last byte, [`child`]
//! runs the program and reads what it used. The bytes are looked at only after the run.

pub mod child;
pub mod pace;
pub mod receive;

use serde::Serialize;

use crate::bitstream::Codec;

/// How a program is given its pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Input {
    /// cv-mmap: POSIX shared memory and ZeroMQ.
    Shm,
    /// Its standard input.
    Pipe,
    /// It reads a file by itself; only what it uses is measured.
    Own,
}

/// How it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Rtp,
    Rtmp,
}

/// When a frame was given, in ns since 1970.
#[derive(Debug, Clone, Copy, Default)]
pub struct Given {
    /// By the camera's clock.
    pub due_ns: u64,
    /// The pacer began to write.
    pub begun_ns: u64,
    /// The last byte is written; with shared memory, before the notice.
    pub done_ns: u64,
}

/// An access unit that came.
#[derive(Debug, Clone, Copy)]
pub struct Unit {
    /// Of its last byte.
    pub arrival_ns: u64,
    /// 90 kHz with RTP, milliseconds with RTMP.
    pub timestamp: u32,
    /// The frame's number, where the stream says so itself (`--embed-timestamps`).
    pub frame: Option<u32>,
    /// NAL units without start codes.
    pub bytes: u64,
}

/// What a row prints.
#[derive(Debug, Default, Serialize)]
pub struct Row {
    pub frames_given: u32,
    /// In the order of arrival, those of the run's start included.
    pub frames: Vec<FrameTimes>,
    /// Access units that belong to no frame, or to one that came before.
    pub unmatched: u32,
    /// How late the pacer was with each frame because the program did not take the one before, us.
    pub behind_us: Vec<f64>,
    pub payload_bytes: u64,
    pub wire_bytes: u64,
    /// Of the program, from its start to its end.
    pub cpu_seconds: f64,
    pub peak_kib: u64,
    pub seconds: f64,
    /// Packets that the receiver's socket dropped.
    pub overflows: u32,
    pub failure: Option<String>,
}

/// One frame from hand to hand.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FrameTimes {
    pub frame: u32,
    /// From the last byte written to the last byte received.
    pub latency_us: f64,
    /// From the camera's time to the last byte received.
    pub since_due_us: f64,
}

impl Row {
    /// Puts units and frames together: by the number that the stream carries, else by the distance
    /// of its time stamp from the first one's.
    pub fn match_units(&mut self, given: &[Given], units: &[Unit], output: Output, fps: f64) {
        let ticks = match output {
            Output::Rtp => 90_000.0,
            Output::Rtmp => 1000.0,
        };
        let first = units.first().map_or(0, |unit| unit.timestamp);
        let mut seen = vec![false; given.len()];
        for unit in units {
            self.payload_bytes += unit.bytes;
            let frame = unit.frame.unwrap_or_else(|| {
                let distance = f64::from(unit.timestamp.wrapping_sub(first));
                (distance * fps / ticks).round() as u32
            });
            let Some(times) = given.get(frame as usize).filter(|_| !seen[frame as usize]) else {
                self.unmatched += 1;
                continue;
            };
            seen[frame as usize] = true;
            let since = |from: u64| (unit.arrival_ns as f64 - from as f64) / 1e3;
            self.frames.push(FrameTimes {
                frame,
                latency_us: since(times.done_ns),
                since_due_us: since(times.due_ns),
            });
        }
        self.behind_us = given
            .iter()
            .map(|times| (times.begun_ns.saturating_sub(times.due_ns)) as f64 / 1e3)
            .collect();
    }
}

/// The mode of the RTMP check for a codec; peers know no other packaging of H.265.
pub(crate) fn rtmp_mode(codec: Codec) -> crate::rtmp::video::Mode {
    match codec {
        Codec::H264 => crate::rtmp::video::Mode::H264,
        Codec::H265 => crate::rtmp::video::Mode::H265Enhanced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(count: u64) -> Vec<Given> {
        (0..count)
            .map(|n| Given {
                due_ns: n * 1_000_000,
                begun_ns: n * 1_000_000 + 1000,
                done_ns: n * 1_000_000 + 5000,
            })
            .collect()
    }

    fn unit(arrival_ns: u64, timestamp: u32, frame: Option<u32>) -> Unit {
        Unit {
            arrival_ns,
            timestamp,
            frame,
            bytes: 10,
        }
    }

    #[test]
    fn a_frame_that_was_left_out_leaves_a_hole_and_shifts_nothing() {
        let start = u32::MAX - 2999; // wraps
        let units = [
            unit(10_000, start, None),
            unit(2_010_000, start.wrapping_add(6000), None),
        ];
        let mut row = Row::default();
        row.match_units(&given(3), &units, Output::Rtp, 30.0);
        let frames: Vec<_> = row.frames.iter().map(|f| (f.frame, f.latency_us)).collect();
        assert_eq!(frames, [(0, 5.0), (2, 5.0)]);
        assert_eq!(row.behind_us, [1.0, 1.0, 1.0]);
        assert_eq!((row.unmatched, row.payload_bytes), (0, 20));
    }

    #[test]
    fn millisecond_stamps_round_to_the_nearest_frame_and_repeats_are_counted() {
        let units = [33, 66, 100, 100].map(|ms| unit(9_000_000, ms, None));
        let mut row = Row::default();
        row.match_units(&given(9), &units, Output::Rtmp, 30.0);
        let frames: Vec<_> = row.frames.iter().map(|f| f.frame).collect();
        assert_eq!(frames, [0, 1, 2]);
        assert_eq!(row.unmatched, 1);
    }

    #[test]
    fn a_number_in_the_stream_is_believed_rather_than_its_times() {
        let mut row = Row::default();
        row.match_units(&given(3), &[unit(9_000_000, 0, Some(2))], Output::Rtp, 30.0);
        assert_eq!(row.frames[0].frame, 2);
        row.match_units(&given(3), &[unit(9_000_000, 0, Some(3))], Output::Rtp, 30.0);
        assert_eq!(row.unmatched, 1);
    }
}
