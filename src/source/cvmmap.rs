//! Frames of a cv-mmap producer: its notices, its segment, and one coherent read per notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::capture_time::{age_of, unix_time};
use super::contract::{Label, Metadata, Refusal, SyncMessage, frame_of};
use super::dummy::ProducerEnd;
use super::hearing::Hearing;
use super::hints::{StatusHint, StatusHints};
use super::notices::{FrameInterval, FrameNotice, Seen, Sequence};
use super::region::{Named, Region};
use super::snapshot::{Coherent, Refused, SnapshotReader};
use super::sync::SyncSubscriber;
use super::target::Target;
use super::writers::Writers;
use super::{FrameSource, SourceCounters, SourceError, SourceEvent, SurfaceSource};
use crate::frame::Snapshot;
use crate::time::Timeline;
use crate::trace::{FrameTrace, Stage};

/// Which producer to listen to.
#[derive(Debug, Clone, Default)]
pub struct CvMmapConfig {
    /// The segment's name, with or without a leading `/`.
    pub shm_name: String,
    /// Where the producer's PUB socket is bound.
    pub zmq_endpoint: String,
    /// The label that its notices carry. `None` takes every label: the names were given
    /// themselves and say nothing about it.
    pub label: Option<Label>,
    /// The end of a producer of our own; without one the source never ends.
    pub end: Option<ProducerEnd>,
    pub hints: StatusHints,
    /// Wait for notices awake.
    pub busy_poll: bool,
    /// Where is counted. A source that goes on for another one counts on with it.
    pub counters: Arc<SourceCounters>,
}

impl CvMmapConfig {
    /// The producer that `target` names; its notices must carry its name.
    pub fn of_target(target: &Target) -> Self {
        Self {
            shm_name: target.shm_name(),
            zmq_endpoint: target.zmq_endpoint(),
            label: Label::new(target.instance()).ok(),
            ..Self::default()
        }
    }
}

/// A [`FrameSource`] over one producer, which need not be there yet and may come and go.
///
/// **Which frame.** The segment holds one frame, the newest, so only the newest notice is acted
/// on. A frame is taken if the segment holds exactly what was announced; every other announced
/// id is counted, under the reason why it was not read or as skipped.
///
/// **Reopening** (contract section 4.6). The name is looked up again on a mismatch between notice
/// and segment, on a hint, and each second without frames; a new inode replaces the open one. A
/// segment that shrank, or disagreed with three notices in a row, is mapped anew.
///
/// **Strangers.** What has the segment's name and is none is as good as none; so is, once a frame
/// has been taken, one that may not be read. Frames that are written and not announced show a dead
/// subscription, which is made anew (`source/hearing.rs`).
///
/// **Epochs** begin where an id or time goes back, at a successor segment and at a reset that was
/// hinted at, whichever is seen first, and once for all that belong together.
pub struct CvMmapSource {
    config: CvMmapConfig,
    counters: Arc<SourceCounters>,
    sync: SyncSubscriber,
    region: Option<Region>,
    reader: SnapshotReader,
    sequence: Sequence,
    interval: FrameInterval,
    timeline: Timeline,
    /// Zero of the arrival times that the timeline is given.
    origin: Instant,
    /// The newest notice that has not been acted on.
    newest: Option<FrameNotice>,
    /// When the socket was last known to be empty.
    emptied: Instant,
    epoch: Epoch,
    /// Id of the frame that was handed on last.
    taken: Option<u32>,
    last_frame: Option<Instant>,
    last_notice: Option<Instant>,
    present: Option<bool>,
    /// It said that it goes. Its last frame may still be on its way to us.
    leaving: bool,
    next_look: Instant,
    mismatches: u32,
    finished: Option<Instant>,
    /// Frames in a row that were refused as late.
    late: u32,
    /// Arrival of the first of them since the times before were forgotten last.
    late_since: Option<Instant>,
    hearing: Hearing,
    next_comparison: Instant,
    writers: Writers,
    /// What has the segment's name in its place, as the log has it.
    stranger: Option<String>,
}

#[derive(Debug, Default)]
struct Epoch {
    number: u32,
    started: Option<Instant>,
    /// A frame of this epoch was handed on. Until then nothing starts another.
    has_frames: bool,
    /// The event has to be given before the next frame.
    to_report: bool,
    /// Frames from here on belong to a new epoch, as was hinted or because the producer was
    /// away.
    due: Option<Instant>,
}

impl CvMmapSource {
    /// Starts to listen.
    ///
    /// # Errors
    ///
    /// If the names are impossible, or the segment may not be read. An absent producer is waited
    /// for.
    pub fn new(config: CvMmapConfig) -> Result<Self, SourceError> {
        let sync = SyncSubscriber::connect(&config.zmq_endpoint)?;
        let now = Instant::now();
        let mut source = Self {
            sync,
            counters: Arc::clone(&config.counters),
            region: None,
            reader: SnapshotReader::default(),
            sequence: Sequence::default(),
            interval: FrameInterval::default(),
            timeline: Timeline::new(),
            origin: now,
            newest: None,
            emptied: now,
            epoch: Epoch::default(),
            taken: None,
            last_frame: None,
            last_notice: None,
            present: None,
            leaving: false,
            next_look: now + LOOK_EVERY,
            mismatches: 0,
            finished: None,
            late: 0,
            late_since: None,
            hearing: Hearing::default(),
            next_comparison: now,
            writers: Writers::default(),
            stranger: None,
            config,
        };
        source.look()?;
        // Whether it is there is told by the first event, not before.
        source.present = source.present.filter(|there| *there);
        Ok(source)
    }

    /// The interval of frames as observed, once it is known.
    pub fn frame_interval(&self) -> Option<Duration> {
        self.interval.typical()
    }

    /// The handle for what others know about this producer.
    pub fn hints(&self) -> StatusHints {
        self.config.hints.clone()
    }

    /// Receives everything that waits. The newest notice stays in `self.newest`.
    ///
    /// `announced` is the time at which the socket became readable, if anyone waited for it.
    fn receive(&mut self, announced: Option<Instant>) -> Result<(), SourceError> {
        let found = announced.unwrap_or_else(Instant::now);
        let mut fresh = false;
        // Bounded: a peer that floods the socket must not keep us from everything else.
        for _ in 0..MOST_AT_ONCE {
            let Some(bytes) = self.sync.receive()? else {
                break;
            };
            count(&self.counters.notices);
            let message = match SyncMessage::parse(bytes) {
                Ok(message) => message,
                Err(error) => {
                    if worth_a_line(count(&self.counters.bad_notices)) {
                        log::warn!("{}: {error}; left out", self.config.zmq_endpoint);
                    }
                    continue;
                }
            };
            if let Some(wanted) = self.config.label
                && wanted != message.label
            {
                if worth_a_line(count(&self.counters.foreign_labels)) {
                    let label = message.label;
                    log::warn!("a notice of {label} is left out: {wanted} is wanted");
                }
                continue;
            }
            fresh |= self.place(&message, found);
        }
        let empty = std::mem::replace(&mut self.emptied, Instant::now());
        if fresh && let Some(newest) = &mut self.newest {
            self.last_notice = Some(found);
            self.hearing.heard();
            let waited = if announced.is_none() {
                newest.arrival = self
                    .interval
                    .probable_arrival(newest.frame_id, empty, found);
                found.saturating_duration_since(newest.arrival)
            } else {
                Duration::ZERO
            };
            let clock = self.config.hints.nature().clock;
            newest.age_ns = age_of(newest.timestamp_ns, clock, waited, SystemTime::now());
            self.interval.observe(*newest);
        }
        Ok(())
    }

    /// Puts a message in its place among the others; true if it became the newest.
    fn place(&mut self, message: &SyncMessage, arrival: Instant) -> bool {
        let seen = self.sequence.place(message.frame_id, message.timestamp_ns);
        match seen {
            Seen::Taken => {
                count(&self.counters.duplicates);
                return false;
            }
            Seen::Again => (),
            Seen::Newer { missed } => self.skip(missed),
            Seen::Back => self.interval.break_off(),
        }
        if self.newest.is_some() && seen != Seen::Again {
            self.skip(1);
        }
        if seen == Seen::Back || self.epoch.due.is_some_and(|due| due <= arrival) {
            self.begin_epoch(arrival);
        }
        self.newest = Some(FrameNotice {
            frame_id: message.frame_id,
            timestamp_ns: message.timestamp_ns,
            arrival,
            age_ns: None,
        });
        true
    }

    fn skip(&self, ids: u64) {
        // Relaxed: a counter for reports.
        self.counters.skipped.fetch_add(ids, Ordering::Relaxed);
    }

    /// The stream broke off. What breaks before the first frame of an epoch belongs to it.
    fn begin_epoch(&mut self, now: Instant) {
        self.epoch.due = None;
        if !self.epoch.has_frames {
            return;
        }
        self.epoch.number = self.epoch.number.wrapping_add(1);
        self.epoch.started = Some(now);
        self.epoch.has_frames = false;
        self.epoch.to_report = true;
        count(&self.counters.epochs);
    }

    /// Acts on a notice: a frame, or a counted reason for none.
    fn act_on(
        &mut self,
        notice: FrameNotice,
        surfaces: &mut dyn SurfaceSource,
    ) -> Result<Option<Snapshot>, SourceError> {
        if self.region.is_none() {
            self.region = self.open_region()?;
        }
        let Some(region) = &mut self.region else {
            count(&self.counters.not_ready);
            return Ok(None);
        };
        // The next frame keeps its own time, however late this one is.
        let latest_end = self.interval.latest_end();
        let read = self
            .reader
            .read(region, &notice, latest_end, surfaces, &self.counters);
        if self.reader.resized() {
            self.interval.forget();
        }
        let refused = match read {
            Ok(coherent) => return Ok(Some(self.accept(&notice, coherent))),
            Err(refused) => refused,
        };
        if refused.may_be_of_a_stale_segment() && self.reopen_if_replaced(notice.arrival)? {
            // The same notice again, behind the event that the new epoch may owe.
            self.newest = Some(notice);
            return Ok(None);
        }
        let how_often = count(refused.counter(&self.counters));
        self.report(&refused, how_often);
        match refused {
            Refused::TooLate => {
                let since = *self.late_since.get_or_insert(notice.arrival);
                if self.late >= MANY_LATE
                    && notice.arrival.saturating_duration_since(since) >= LATE_FOR
                {
                    self.interval.forget();
                    self.late_since = None;
                }
            }
            Refused::Shrunk => self.close_region(),
            Refused::OtherFrame { .. } => {
                self.mismatches += 1;
                if self.mismatches.is_multiple_of(MISMATCHES) {
                    self.close_region();
                }
            }
            _ => (),
        }
        Ok(None)
    }

    fn accept(&mut self, notice: &FrameNotice, coherent: Coherent) -> Snapshot {
        let Coherent {
            info,
            surface,
            start,
            end,
        } = coherent;
        self.sequence.take(info.frame_id, info.capture_ts_ns);
        count(&self.counters.frames);
        let follows = self.epoch.has_frames || self.taken.is_none();
        let gap = !follows
            || self
                .taken
                .is_some_and(|id| id.wrapping_add(1) != info.frame_id);
        self.taken = Some(info.frame_id);
        self.epoch.has_frames = true;
        self.mismatches = 0;
        self.last_frame = Some(end);
        self.present = Some(true);
        (self.late, self.late_since) = (0, None);

        let mut trace = FrameTrace::default();
        trace.stamp(Stage::Notice, notice.arrival);
        trace.stamp(Stage::SnapshotStart, start);
        trace.stamp(Stage::SnapshotEnd, end);
        let clock = self.config.hints.nature().clock;
        trace.capture_unix_ns = unix_time(info.capture_ts_ns, clock, SystemTime::now());
        let arrival = notice.arrival.saturating_duration_since(self.origin);
        let time = self.timeline.place(
            self.epoch.number,
            info.capture_ts_ns,
            u64::try_from(arrival.as_nanos()).unwrap_or(u64::MAX),
        );
        Snapshot {
            info,
            surface,
            epoch: self.epoch.number,
            gap,
            time,
            trace,
        }
    }

    /// Says why frames are left out. Torn and late frames are ordinary.
    fn report(&mut self, refused: &Refused, how_often: u64) {
        match refused {
            Refused::Metadata(Refusal::NotReady) => (),
            Refused::Metadata(refusal) if worth_a_line(how_often) => {
                log::warn!("{}: {refusal}; left out", self.config.shm_name);
            }
            Refused::TooLate => {
                self.late += 1;
                if self.late == MANY_LATE {
                    log::warn!(
                        "{MANY_LATE} frames in a row took longer than 0.7 of the frame interval \
                         ({:?}) from notice to surface: this machine is too slow for the producer",
                        self.interval.typical().unwrap_or_default()
                    );
                }
            }
            other => log::debug!("{}: {other}", self.config.shm_name),
        }
    }

    /// The segment that has the name now.
    fn open_region(&mut self) -> Result<Option<Region>, SourceError> {
        let name = &self.config.shm_name;
        let stranger = match Region::named(name) {
            Ok(Named::Nothing) => None,
            Ok(Named::Segment(region)) => {
                self.writers.look(name, &region, &self.config.zmq_endpoint);
                self.stranger = None;
                return Ok(Some(region));
            }
            Ok(Named::Stranger(what)) => Some(format!("{name} is {what}: waiting for a producer")),
            // A stream that ran goes on when its producer is back, whoever took the name meanwhile.
            Err(error) if self.taken.is_some() => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        if let Some(words) = stranger.as_ref().filter(|_| stranger != self.stranger) {
            log::warn!("{words}");
        }
        self.stranger = stranger;
        Ok(None)
    }

    /// Whether frames are written that nobody announces to us. Asked while no notice comes.
    fn is_deaf(&mut self, now: Instant) -> bool {
        let silent_since = self.last_notice.map(|at| at + Hearing::LOOK_EVERY);
        if now < self.next_comparison || silent_since.is_some_and(|since| now < since) {
            return false;
        }
        self.next_comparison = now + Hearing::LOOK_EVERY;
        let block = self.region.as_ref().and_then(Region::metadata);
        let Some(holds) = block.as_ref().and_then(frame_of) else {
            return false;
        };
        let announced = self.sequence.last_id().zip(self.sequence.last_time());
        self.hearing.is_deaf(holds, announced, now)
    }

    fn close_region(&mut self) {
        if self.region.take().is_some() {
            count(&self.counters.reopens);
        }
    }

    /// Opens the segment that has the name now, if it is not the open one.
    fn reopen_if_replaced(&mut self, now: Instant) -> Result<bool, SourceError> {
        let Some(open) = self.region.as_ref().map(Region::identity) else {
            return Ok(false);
        };
        match self.open_region()? {
            Some(named) if named.identity() != open => {
                log::info!("{} was made anew by its producer", self.config.shm_name);
                self.close_region();
                self.region = Some(named);
                self.begin_epoch(now);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Looks whether the segment is there, and still the open one where no frames show it.
    fn look(&mut self) -> Result<(), SourceError> {
        let now = Instant::now();
        self.next_look = now + LOOK_EVERY;
        let recent = |at: Option<Instant>| at.is_some_and(|at| now < at + LOOK_EVERY);
        if recent(self.last_frame) {
            return Ok(());
        }
        match self.open_region()? {
            Some(named) => {
                self.present = Some(true);
                let open = self.region.as_ref().map(Region::identity);
                if open.is_some() && open != Some(named.identity()) {
                    self.reopen_if_replaced(now)?;
                } else if open.is_none() {
                    self.region = Some(named);
                }
                self.warm_up();
            }
            // Unlinked, but the producer goes on with what it has open.
            None if recent(self.last_notice) => (),
            None => {
                self.region = None;
                self.go_offline(now);
            }
        }
        Ok(())
    }

    /// Maps what the segment holds now, so that the first frame finds its pages there.
    fn warm_up(&mut self) {
        if let Some(region) = &mut self.region
            && let Some(block) = region.metadata()
            && let Ok(metadata) = Metadata::parse(&block, region.len())
            && let Ok(info) = metadata.frame_info()
        {
            let _ = region.view(info);
        }
    }

    fn go_offline(&mut self, now: Instant) {
        self.present = Some(false);
        if self.epoch.has_frames {
            self.epoch.due = Some(now);
        }
    }

    fn listen_to_hints(&mut self) -> Result<(), SourceError> {
        let told = self.config.hints.take();
        let now = Instant::now();
        if told.reset || told.link == Some(StatusHint::Online) {
            self.reopen_if_replaced(now)?;
        }
        let just_started = self
            .epoch
            .started
            .is_some_and(|start| now < start + SAME_RESET);
        if told.reset && self.epoch.has_frames && !just_started {
            // The frames that show it may be on their way: give them a moment to begin the epoch.
            self.epoch.due.get_or_insert(now + RESET_PATIENCE);
        }
        if let Some(link) = told.link {
            self.leaving = link == StatusHint::Offline;
            if link == StatusHint::Online {
                self.next_look = now;
            }
        }
        Ok(())
    }

    /// Whether our own producer has ended and its last frame was seen, or is lost.
    fn ended(&mut self, now: Instant) -> bool {
        let Some(end) = self.config.end.as_ref().and_then(ProducerEnd::get) else {
            return false;
        };
        let since = *self.finished.get_or_insert(now);
        end.last_frame
            .is_none_or(|id| self.sequence.last_id() == Some(id))
            || now >= since + END_PATIENCE
    }
}

impl FrameSource for CvMmapSource {
    fn next(
        &mut self,
        deadline: Instant,
        surfaces: &mut dyn SurfaceSource,
    ) -> Result<SourceEvent, SourceError> {
        let mut announced = None;
        loop {
            self.listen_to_hints()?;
            self.receive(announced.take())?;
            if std::mem::take(&mut self.epoch.to_report) {
                return Ok(SourceEvent::Reset);
            }
            if let Some(notice) = self.newest.take() {
                if let Some(snapshot) = self.act_on(notice, surfaces)? {
                    return Ok(SourceEvent::Frame(snapshot));
                }
                if Instant::now() < deadline || self.newest.is_some() {
                    continue;
                }
                return Ok(SourceEvent::Idle);
            }
            let now = Instant::now();
            if self.ended(now) {
                return Ok(SourceEvent::End);
            }
            if std::mem::take(&mut self.leaving) && self.present == Some(true) {
                self.go_offline(now);
                return Ok(SourceEvent::Offline);
            }
            let was = self.present;
            if now >= self.next_look || was.is_none() {
                self.look()?;
                if was != Some(false) && self.present == Some(false) {
                    return Ok(SourceEvent::Offline);
                }
            }
            if self.is_deaf(now) {
                if worth_a_line(count(&self.counters.resubscribed)) {
                    log::warn!(
                        "{}: frames are written and none is announced here: subscribing anew",
                        self.config.zmq_endpoint
                    );
                }
                self.sync.subscribe_anew();
            }
            if now >= deadline {
                return Ok(SourceEvent::Idle);
            }
            let until = deadline.min(self.next_look).min(now + LISTEN_EVERY);
            let came = if self.config.busy_poll {
                self.sync.spin(until)?
            } else {
                self.sync.wait(until)?
            };
            if came {
                announced = Some(Instant::now());
            }
        }
    }

    fn at_end(&self) -> bool {
        let last = self.config.hints.nature().last_capture_ns;
        last.is_some_and(|last| self.sequence.last_time() >= Some(last))
    }

    fn last_heard(&self) -> Option<Instant> {
        self.last_notice
    }

    fn counters(&self) -> &Arc<SourceCounters> {
        &self.counters
    }
}

impl Refused {
    /// Whether it would look like this if the producer had gone on in another segment.
    fn may_be_of_a_stale_segment(&self) -> bool {
        matches!(
            self,
            Self::OtherFrame { .. } | Self::NotReady | Self::Metadata(_) | Self::Shrunk
        )
    }
}

/// Adds one, and says how many it is.
fn count(counter: &AtomicU64) -> u64 {
    // Relaxed: counters publish nothing but themselves.
    counter.fetch_add(1, Ordering::Relaxed) + 1
}

/// Whether the log mentions what happened for the `n`th time: ever more rarely.
fn worth_a_line(n: u64) -> bool {
    n.is_power_of_two()
}

/// More notices than the socket keeps.
const MOST_AT_ONCE: usize = 2000;
const MANY_LATE: u32 = 30;
/// Many late frames and nothing else for so long: what was remembered of better times keeps the stream away.
const LATE_FOR: Duration = Duration::from_secs(1);
/// Notices in a row that the segment may disagree with.
const MISMATCHES: u32 = 3;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Hints are heard at least so often.
const LISTEN_EVERY: Duration = Duration::from_millis(100);
/// A wrap is told twice within 100 ms, and behind its first frame (contract section 5.3).
const SAME_RESET: Duration = Duration::from_millis(500);
const RESET_PATIENCE: Duration = Duration::from_millis(100);
/// How long the last notice of a producer that has ended may be under way.
const END_PATIENCE: Duration = Duration::from_secs(1);
