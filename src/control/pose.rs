//! Bodies on their way to the pictures that they belong to.
//!
//! Packets and frames travel on different transports: a packet can come before its frame, or after
//! it was encoded. [`PoseStore`] belongs to the encode stage, which asks for a pose once per
//! picture; the channel in front of it is bounded, and both ends never wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::bitstream::sei;
use crate::encode::Codec;

use super::body::{Body, BodyFrame};
use super::jsonl::JsonlSender;

/// One packet, with the record that a stream carries of it ready made.
#[derive(Debug)]
pub struct Pose {
    pub frame: BodyFrame,
    /// Empty unless the stream carries records.
    pub(super) record: Vec<u8>,
}

/// How a pose and a picture were brought together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pairing {
    /// The packet has the picture's capture time.
    Exact,
    /// The packet is of an earlier frame, within [`OLDEST_NS`].
    Earlier,
}

/// Which picture a pose went with.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct PictureRef {
    pub frame_id: u32,
    pub capture_ts_ns: u64,
    /// Media time of the outgoing stream.
    pub pts_ns: i64,
    pub pairing: Pairing,
}

/// What becomes of poses.
#[derive(Debug, Default)]
pub struct PoseCounters {
    /// Went with the picture of the same capture time.
    pub exact: AtomicU64,
    /// Went with a later picture.
    pub earlier: AtomicU64,
    /// A newer one went with the picture, or no picture came.
    pub unpaired: AtomicU64,
    /// The encode stage did not take them in time.
    pub overflows: AtomicU64,
    /// Bodies beyond the most that a record holds.
    pub cut: AtomicU64,
}

/// The end of the control plane.
#[derive(Debug, Clone)]
pub struct PoseSender {
    poses: SyncSender<Box<Pose>>,
    with_record: bool,
    counters: Arc<PoseCounters>,
}

/// A bounded way from the control plane to the encode stage.
pub fn channel(
    with_record: bool,
    jsonl: Option<JsonlSender>,
    counters: &Arc<PoseCounters>,
) -> (PoseSender, PoseStore) {
    let (poses, incoming) = sync_channel(KEPT);
    (
        PoseSender {
            poses,
            with_record,
            counters: Arc::clone(counters),
        },
        PoseStore {
            incoming,
            waiting: VecDeque::with_capacity(KEPT),
            with_record,
            jsonl,
            counters: Arc::clone(counters),
        },
    )
}

impl PoseSender {
    /// Hands a packet on, or counts it where nobody takes it.
    pub fn send(&self, frame: BodyFrame) {
        let mut record = Vec::new();
        if self.with_record {
            let cut = write_record(&frame, &mut record);
            self.counters.cut.fetch_add(cut as u64, Ordering::Relaxed);
        }
        let pose = Box::new(Pose { frame, record });
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.poses.try_send(pose)
        {
            self.counters.overflows.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Poses that wait for their picture; owned by the encode stage.
#[derive(Debug)]
pub struct PoseStore {
    incoming: Receiver<Box<Pose>>,
    /// In the order in which they came.
    waiting: VecDeque<Box<Pose>>,
    with_record: bool,
    jsonl: Option<JsonlSender>,
    counters: Arc<PoseCounters>,
}

impl PoseStore {
    /// Takes the pose for a picture, and leaves those of later frames for theirs.
    ///
    /// That is the one with the picture's capture time; else the newest that is older than the
    /// picture by at most [`OLDEST_NS`]. What is older than the one that is taken goes unpaired.
    pub fn pair(&mut self, capture_ts_ns: u64) -> Option<(Box<Pose>, Pairing)> {
        self.take_in();
        let at = |pose: &Pose| pose.frame.timestamp_ns;
        let exact = self
            .waiting
            .iter()
            .rposition(|pose| at(pose) == capture_ts_ns);
        let (place, pairing) = match exact {
            Some(place) => (place, Pairing::Exact),
            None => {
                let in_time = |time: u64| time < capture_ts_ns && capture_ts_ns - time <= OLDEST_NS;
                let place = (0..self.waiting.len())
                    .filter(|n| in_time(at(&self.waiting[*n])))
                    .max_by_key(|n| at(&self.waiting[*n]))?;
                (place, Pairing::Earlier)
            }
        };
        let taken = self.waiting.remove(place)?;
        let newest = at(&taken);
        for _ in 0..self.waiting.len() {
            let Some(pose) = self.waiting.pop_front() else {
                break;
            };
            if at(&pose) <= newest {
                self.give_up(pose);
            } else {
                self.waiting.push_back(pose);
            }
        }
        let counter = match pairing {
            Pairing::Exact => &self.counters.exact,
            Pairing::Earlier => &self.counters.earlier,
        };
        // Relaxed: a counter for reports.
        counter.fetch_add(1, Ordering::Relaxed);
        Some((taken, pairing))
    }

    fn take_in(&mut self) {
        while let Ok(pose) = self.incoming.try_recv() {
            // The producer's time went back: what waits is of the run before and must not meet a
            // picture that has the same time by chance.
            let restarted = self.waiting.back().is_some_and(|last| {
                last.frame.timestamp_ns > pose.frame.timestamp_ns.saturating_add(OLDEST_NS)
            });
            let keep = if restarted { 0 } else { KEPT - 1 };
            while self.waiting.len() > keep
                && let Some(oldest) = self.waiting.pop_front()
            {
                self.give_up(oldest);
            }
            self.waiting.push_back(pose);
        }
    }

    /// Whether pictures carry records.
    pub fn with_record(&self) -> bool {
        self.with_record
    }

    /// Hands a pose to the file, if one is written.
    pub fn file(&self, pose: Box<Pose>, picture: PictureRef) {
        if let Some(jsonl) = &self.jsonl {
            jsonl.send(pose, Some(picture));
        }
    }

    fn give_up(&self, pose: Box<Pose>) {
        self.counters.unpaired.fetch_add(1, Ordering::Relaxed);
        if let Some(jsonl) = &self.jsonl {
            jsonl.send(pose, None);
        }
    }

    /// Nothing is encoded any more: whatever waits goes unpaired.
    pub fn close(&mut self) {
        self.take_in();
        while let Some(pose) = self.waiting.pop_front() {
            self.give_up(pose);
        }
    }
}

impl Pose {
    /// Appends the record as an SEI NAL unit, in the form of `docs/body-sei.md`.
    pub fn write_sei(&self, codec: Codec, pairing: Pairing, out: &mut Vec<u8>) {
        let mut flags = [0];
        if pairing == Pairing::Exact {
            flags[0] |= FLAG_EXACT;
        }
        sei::write_user_data_parts(codec, &UUID, &[&self.record, &flags], out);
    }
}

/// Everything but the last byte of the record, which says how the two were paired. Gives the
/// number of bodies that it has no room for.
fn write_record(frame: &BodyFrame, out: &mut Vec<u8>) -> usize {
    let bodies = &frame.bodies[..frame.bodies.len().min(MOST_BODIES)];
    out.push(VERSION);
    out.push(frame.format as u8);
    out.push(frame.coordinate_system as u8);
    out.push(bodies.len() as u8);
    out.extend((frame.bodies.len() as u16).to_be_bytes());
    out.extend(frame.frame_count.to_be_bytes());
    out.extend(frame.timestamp_ns.to_be_bytes());
    for body in bodies {
        write_body(body, out);
    }
    frame.bodies.len() - bodies.len()
}

fn write_body(body: &Body, out: &mut Vec<u8>) {
    out.extend(body.id.to_be_bytes());
    out.push(body.tracking as u8);
    out.push(u8::from(body.moving));
    out.push(body.keypoints_2d.len() as u8);
    out.extend(body.confidence.to_be_bytes());
    for side in bounds(&body.box_2d) {
        out.extend(side.to_be_bytes());
    }
    for (point, confidence) in body.keypoints_2d.iter().zip(&body.keypoint_confidence) {
        for value in [point[0], point[1], *confidence] {
            out.extend(value.to_be_bytes());
        }
    }
}

/// Left, top, right, bottom of the four corners; NaN where a corner is NaN.
fn bounds(corners: &[[f32; 2]; 4]) -> [f32; 4] {
    let fold = |axis: usize, pick: fn(f32, f32) -> f32| {
        let mut values = corners.iter().map(|corner| corner[axis]);
        let first = values.next().unwrap_or(f32::NAN);
        values.fold(first, |sum, value| {
            if sum.is_nan() || value.is_nan() {
                f32::NAN
            } else {
                pick(sum, value)
            }
        })
    };
    [
        fold(0, f32::min),
        fold(1, f32::min),
        fold(0, f32::max),
        fold(1, f32::max),
    ]
}

/// "cvmmap-body-pose" in ASCII.
pub const UUID: [u8; 16] = *b"cvmmap-body-pose";
const VERSION: u8 = 1;
const FLAG_EXACT: u8 = 1;
/// In one record; it travels in the access unit, and 32 bodies are 16 kB.
const MOST_BODIES: usize = 32;
/// A pose that is older than the picture by more says nothing about it.
pub const OLDEST_NS: u64 = 1_000_000_000;
/// Poses that may wait for their picture: half a second at 30 fps.
const KEPT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitstream::NalUnit;

    fn fixture() -> BodyFrame {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/control/body_tracking_valid.bin"
        );
        BodyFrame::parse(&std::fs::read(path).unwrap()).unwrap()
    }

    fn at(timestamp_ns: u64) -> BodyFrame {
        BodyFrame {
            timestamp_ns,
            ..fixture()
        }
    }

    #[test]
    fn the_record_is_written_field_by_field() {
        let mut frame = fixture();
        let body = &mut frame.bodies[0];
        body.keypoints_2d = vec![[1.0, -2.0]];
        body.keypoint_confidence = vec![0.5];
        body.box_2d = [[3.0, 4.0], [7.0, 4.0], [7.0, 9.0], [3.0, 9.0]];
        let mut record = Vec::new();
        assert_eq!(write_record(&frame, &mut record), 0);
        let pose = Pose { frame, record };
        for codec in [Codec::H264, Codec::H265] {
            let (mut nal, mut read) = (Vec::new(), Vec::new());
            pose.write_sei(codec, Pairing::Exact, &mut nal);
            assert!(sei::read_user_data(codec, NalUnit(&nal), &UUID, &mut read));
            #[rustfmt::skip]
            let expected = [
                1, 0, 2, 1,                 // version, BODY_18, right-handed Y up, one body
                0, 1,                       // bodies in the packet
                0, 0, 0, 42,                // frame count
                0, 0, 0, 0, 0, 0, 3, 0xE8,  // timestamp 1000 ns
                0, 0, 0, 7,                 // id
                1, 0, 1,                    // tracking ok, idle, one keypoint
                0x42, 0xB1, 0, 0,           // confidence 88.5
                0x40, 0x40, 0, 0,           // left 3.0
                0x40, 0x80, 0, 0,           // top 4.0
                0x40, 0xE0, 0, 0,           // right 7.0
                0x41, 0x10, 0, 0,           // bottom 9.0
                0x3F, 0x80, 0, 0,           // x 1.0
                0xC0, 0, 0, 0,              // y -2.0
                0x3F, 0, 0, 0,              // confidence 0.5
                1,                          // exact
            ];
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn a_picture_gets_its_own_pose_else_the_newest_before_it() {
        let counters = Arc::default();
        let (sender, mut store) = channel(false, None, &counters);
        let taken = |store: &mut PoseStore, time| {
            store
                .pair(time)
                .map(|(pose, pairing)| (pose.frame.timestamp_ns, pairing))
        };
        const MS: u64 = 1_000_000;
        for time in [10 * MS, 20 * MS, 30 * MS, 40 * MS] {
            sender.send(at(time));
        }
        assert_eq!(taken(&mut store, 30 * MS), Some((30 * MS, Pairing::Exact)));
        // 40 is of a later picture.
        assert_eq!(taken(&mut store, 35 * MS), None);
        assert_eq!(
            taken(&mut store, 50 * MS),
            Some((40 * MS, Pairing::Earlier))
        );
        assert_eq!(taken(&mut store, 60 * MS), None);
        sender.send(at(60 * MS));
        assert_eq!(taken(&mut store, 60 * MS + OLDEST_NS + 1), None);
        assert_eq!(
            taken(&mut store, 60 * MS + OLDEST_NS),
            Some((60 * MS, Pairing::Earlier))
        );
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!(load(&counters.exact), 1);
        assert_eq!(load(&counters.earlier), 2);
        assert_eq!(load(&counters.unpaired), 2, "10 and 20 ms");
    }

    #[test]
    fn nothing_waits_and_nothing_piles_up() {
        let counters = Arc::default();
        let (sender, mut store) = channel(true, None, &counters);
        for time in 0..100 {
            sender.send(at(time));
        }
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!(load(&counters.overflows), 100 - KEPT as u64);
        assert!(store.pair(u64::MAX).is_none());
        for time in 0..100 {
            sender.send(at(time));
            assert!(store.pair(u64::MAX).is_none());
        }
        assert_eq!(store.waiting.len(), KEPT);
        store.close();
        assert_eq!(load(&counters.unpaired), 100 + KEPT as u64);
        let mut crowd = fixture();
        crowd.bodies = vec![crowd.bodies[0].clone(); MOST_BODIES + 3];
        sender.send(crowd);
        assert_eq!(load(&counters.cut), 3);
    }
}
