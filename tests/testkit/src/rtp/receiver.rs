//! One RTP stream, received and judged: datagrams in, access units and findings out.

use std::collections::HashSet;

use super::assemble::{AccessUnit, Assembler};
use super::depacketize::{Depacketizer, PayloadError, recognise};
use super::header::Packet;
use super::report::{Counters, Latency, LatencyMeter};
use super::rtcp::{Compound, ReportBlock, SenderReport};
use super::sequence::{Arrival, Jitter, SequenceTracker};
use crate::bitstream::{Codec, NalClass, order};
use crate::findings::Findings;
use crate::stamp;

/// Packets kept until the codec is known.
const UNDECIDED_PACKETS: usize = 64;
/// Pictures shown out of order are never further apart than this, in RTP time.
const REORDERING_LIMIT: i32 = 90_000;

#[derive(Debug, Clone)]
pub struct Config {
    pub payload_type: u8,
    /// `None`: recognised from the payload.
    pub codec: Option<Codec>,
    /// NAL units that a session description has given.
    pub parameter_sets: Vec<Vec<u8>>,
    /// Times that go back are a violation: no B-frames are expected.
    pub monotonic: bool,
    /// Warnings are violations.
    pub strict: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            payload_type: 96,
            codec: None,
            parameter_sets: Vec::new(),
            monotonic: false,
            strict: false,
        }
    }
}

/// What one datagram led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Taken,
    /// A packet of another payload type than expected.
    PayloadType(u8),
}

/// Takes the datagrams of one port.
#[derive(Debug)]
pub struct Receiver {
    config: Config,
    codec: Option<Codec>,
    source: Option<Source>,
    former: HashSet<u32>,
    /// Reports of a source that no packet has come from: the two ports are read in turn.
    early_report: Option<(SenderReport, u64)>,
    undecided: Vec<(Vec<u8>, u64)>,
    counters: Counters,
    violations: Findings,
    warnings: Findings,
    parameter_sets: HashSet<NalClass>,
    latency: LatencyMeter,
    /// When the current source said goodbye.
    ended_ns: Option<u64>,
}

/// State that a new SSRC begins anew.
#[derive(Debug)]
struct Source {
    ssrc: u32,
    tracker: SequenceTracker,
    jitter: Jitter,
    depacketizer: Depacketizer,
    assembler: Assembler,
    /// The timestamp of the last finished unit, and whether packets were missing since.
    finished: Option<(u32, bool)>,
    /// Nothing finished yet: the stream may have been joined within a picture.
    joining: bool,
    /// Key frame seen.
    started: bool,
    report: Option<(SenderReport, u64)>,
    /// At the last receiver report.
    reported: (u64, u64),
}

impl Source {
    fn new(ssrc: u32, codec: Codec) -> Self {
        let mut depacketizer = Depacketizer::new(codec);
        // The first packet may be the middle of a fragmented NAL unit.
        depacketizer.gap();
        Source {
            ssrc,
            tracker: SequenceTracker::default(),
            jitter: Jitter::default(),
            depacketizer,
            assembler: Assembler::default(),
            finished: None,
            joining: true,
            started: false,
            report: None,
            reported: (0, 0),
        }
    }
}

impl Receiver {
    pub fn new(config: Config) -> Self {
        let codec = config.codec;
        let mut parameter_sets = HashSet::new();
        if let Some(codec) = codec {
            parameter_sets.extend(config.parameter_sets.iter().map(|nal| codec.classify(nal)));
        }
        Receiver {
            config,
            codec,
            source: None,
            former: HashSet::new(),
            early_report: None,
            undecided: Vec::new(),
            counters: Counters::default(),
            violations: Findings::default(),
            warnings: Findings::default(),
            parameter_sets,
            latency: LatencyMeter::default(),
            ended_ns: None,
        }
    }

    /// Takes one RTP datagram that came at `arrival_ns`. Each whole access unit is given to `sink`.
    pub fn rtp(
        &mut self,
        datagram: &[u8],
        arrival_ns: u64,
        sink: &mut dyn FnMut(Codec, &AccessUnit),
    ) -> Verdict {
        let packet = match Packet::parse(datagram) {
            Ok(packet) => packet,
            Err(error) => {
                self.counters.malformed += 1;
                self.violation(|| format!("malformed packet: {error}"));
                return Verdict::Taken;
            }
        };
        if packet.payload_type != self.config.payload_type {
            return Verdict::PayloadType(packet.payload_type);
        }
        self.counters.packet(datagram.len());
        let Some(codec) = self.codec else {
            self.undecided(&packet, datagram, arrival_ns, sink);
            return Verdict::Taken;
        };
        self.packet(codec, &packet, arrival_ns, sink);
        Verdict::Taken
    }

    /// Takes one RTCP datagram.
    pub fn rtcp(&mut self, datagram: &[u8], arrival_ns: u64) {
        let compound = match Compound::parse(datagram) {
            Ok(compound) => compound,
            Err(error) => {
                self.violation(|| format!("malformed RTCP: {error}"));
                return;
            }
        };
        self.counters.rtcp_packets += 1;
        if !compound.sender_reports.is_empty() && !compound.has_cname {
            self.warning(|| "a sender report without CNAME in its compound packet".into());
        }
        for report in compound.sender_reports {
            self.sender_report(report, arrival_ns);
        }
        for ssrc in compound.byes {
            self.counters.byes += 1;
            // A BYE of a source that was replaced ends nothing.
            if self
                .source
                .as_ref()
                .is_none_or(|source| source.ssrc == ssrc)
            {
                self.ended_ns = Some(arrival_ns);
            }
        }
    }

    /// Whether the source has said goodbye and nothing came after it.
    pub fn has_ended(&self) -> bool {
        self.ended_ns.is_some()
    }

    pub fn codec(&self) -> Option<Codec> {
        self.codec
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Rules of the documents that receivers rely on.
    pub fn violations(&self) -> &Findings {
        &self.violations
    }

    /// Rules that well-known senders break and receivers live with.
    pub fn warnings(&self) -> &Findings {
        &self.warnings
    }

    pub fn latency(&self) -> Latency {
        self.latency.summary()
    }

    pub fn ssrc(&self) -> Option<u32> {
        self.source.as_ref().map(|source| source.ssrc)
    }

    pub fn jitter_ms(&self) -> f64 {
        self.source
            .as_ref()
            .map_or(0.0, |source| source.jitter.milliseconds())
    }

    /// Packets lost, of all sources so far.
    pub fn lost(&self) -> u64 {
        self.counters.lost_before
            + self
                .source
                .as_ref()
                .map_or(0, |source| source.tracker.lost())
    }

    /// The block of the next receiver report.
    pub fn report_block(&mut self, now_ns: u64) -> Option<ReportBlock> {
        let source = self.source.as_mut()?;
        let (expected, received) = (source.tracker.expected(), source.tracker.received());
        let expected_now = expected - source.reported.0;
        let lost_now = expected_now.saturating_sub(received - source.reported.1);
        source.reported = (expected, received);
        let (last, delay) = source.report.map_or((0, 0), |(report, came_ns)| {
            let waited = u128::from(now_ns.saturating_sub(came_ns));
            (report.middle(), (waited * 65_536 / 1_000_000_000) as u32)
        });
        Some(ReportBlock {
            ssrc: source.ssrc,
            fraction_lost: (lost_now * 256)
                .checked_div(expected_now)
                .unwrap_or(0)
                .min(255) as u8,
            cumulative_lost: source.tracker.lost() as u32,
            extended_highest: source.tracker.extended_highest(),
            jitter: source.jitter.units() as u32,
            last_sender_report: last,
            delay_since: delay,
        })
    }

    fn undecided(
        &mut self,
        packet: &Packet,
        datagram: &[u8],
        arrival_ns: u64,
        sink: &mut dyn FnMut(Codec, &AccessUnit),
    ) {
        self.undecided.push((datagram.to_vec(), arrival_ns));
        let found = recognise(packet.payload);
        let Some(codec) = found else {
            if self.undecided.len() == UNDECIDED_PACKETS {
                self.violation(|| {
                    format!("the payload is neither H.264 nor H.265 in {UNDECIDED_PACKETS} packets")
                });
                self.undecided.clear();
            }
            return;
        };
        self.codec = Some(codec);
        for (datagram, arrival_ns) in std::mem::take(&mut self.undecided) {
            if let Ok(packet) = Packet::parse(&datagram) {
                self.packet(codec, &packet, arrival_ns, sink);
            }
        }
    }

    fn packet(
        &mut self,
        codec: Codec,
        packet: &Packet,
        arrival_ns: u64,
        sink: &mut dyn FnMut(Codec, &AccessUnit),
    ) {
        // The two ports are read in turn: a packet can be older than a BYE that was read before it.
        if self.ended_ns.is_some_and(|ended| arrival_ns > ended) {
            self.ended_ns = None;
        }
        let mut source = self.source_of(packet.ssrc, codec);
        let arrival = source.tracker.accept(packet.sequence);
        match arrival {
            late @ (Arrival::Late | Arrival::Twice) => {
                self.counters.late += u64::from(late == Arrival::Late);
                self.counters.repeated += u64::from(late == Arrival::Twice);
                self.source = Some(source);
                return;
            }
            Arrival::AfterGap(_) => {
                self.counters.gaps += 1;
                source.depacketizer.gap();
                source.assembler.damage();
                if let Some((_, gap)) = &mut source.finished {
                    *gap = true;
                }
            }
            Arrival::First | Arrival::Next => {}
        }
        let gap_ahead =
            matches!(arrival, Arrival::AfterGap(_)) || source.finished.is_some_and(|(_, gap)| gap);
        source.jitter.accept(arrival_ns, packet.timestamp);
        if source
            .assembler
            .timestamp()
            .is_some_and(|open| open != packet.timestamp)
        {
            if source.assembler.finish(0).is_some_and(|unit| !unit.damaged) {
                self.violation(|| {
                    format!(
                        "packet {}: a new timestamp, and no marker on the packet before it",
                        packet.sequence
                    )
                });
            }
            // A marker was lost, or never sent; either way the unit's end is not known.
            source.assembler.damage();
            self.finish(&mut source, codec, arrival_ns, sink);
        } else if source.assembler.timestamp().is_none()
            && !gap_ahead
            && source
                .finished
                .is_some_and(|(timestamp, _)| timestamp == packet.timestamp)
        {
            self.violation(|| {
                format!(
                    "packet {}: the timestamp of a unit whose marker has already come",
                    packet.sequence
                )
            });
        }
        source.assembler.packet(packet.timestamp, arrival_ns);
        if gap_ahead {
            // What is missing may have been this unit's beginning.
            source.assembler.damage();
        }
        let assembler = &mut source.assembler;
        if let Err(error) = source
            .depacketizer
            .push(packet.payload, packet.marker, |nal| assembler.nal(nal))
        {
            let text = || format!("packet {}: {error}", packet.sequence);
            if error == PayloadError::AggregateHeader {
                self.warning(text);
            } else {
                source.assembler.damage();
                self.violation(text);
            }
        }
        if packet.marker {
            self.finish(&mut source, codec, arrival_ns, sink);
        }
        self.source = Some(source);
    }

    /// The source with this SSRC; another one ends the last.
    fn source_of(&mut self, ssrc: u32, codec: Codec) -> Source {
        match self.source.take() {
            Some(source) if source.ssrc == ssrc => source,
            former => {
                if let Some(former) = former {
                    self.counters.lost_before += former.tracker.lost();
                    self.former.insert(former.ssrc);
                }
                if self.former.contains(&ssrc) {
                    self.violation(|| format!("SSRC {ssrc:08x} comes back: two senders at once"));
                }
                self.counters.sources += 1;
                let mut source = Source::new(ssrc, codec);
                source.report = self
                    .early_report
                    .take()
                    .filter(|(report, _)| report.ssrc == ssrc);
                source
            }
        }
    }

    fn finish(
        &mut self,
        source: &mut Source,
        codec: Codec,
        arrival_ns: u64,
        sink: &mut dyn FnMut(Codec, &AccessUnit),
    ) {
        let Some(mut unit) = source.assembler.finish(arrival_ns) else {
            return;
        };
        let fault = order::violation(codec, &unit.nals);
        if source.joining && fault.is_some() {
            unit.damaged = true;
        }
        source.joining = false;
        let before = source.finished.replace((unit.timestamp, false));
        if unit.damaged {
            self.counters.damaged_frames += 1;
        } else {
            if let Some(fault) = fault {
                self.violation(|| format!("access unit at RTP time {}: {fault}", unit.timestamp));
            }
            self.check_time(before.map(|(timestamp, _)| timestamp), unit.timestamp);
            self.account(source.started, codec, &unit);
            source.started |= unit.is_key_frame(codec);
            self.measure(source.report.map(|(report, _)| report), codec, &unit);
            sink(codec, &unit);
        }
        source.assembler.clear();
    }

    fn check_time(&mut self, before: Option<u32>, now: u32) {
        let Some(before) = before else { return };
        let step = now.wrapping_sub(before) as i32;
        if step < 0 {
            self.counters.times_going_back += 1;
            if self.config.monotonic || step < -REORDERING_LIMIT {
                self.violation(|| format!("RTP time goes back from {before} to {now}"));
            }
        }
    }

    fn account(&mut self, started: bool, codec: Codec, unit: &AccessUnit) {
        let mut own = HashSet::new();
        for nal in &unit.nals {
            own.insert(codec.classify(nal));
        }
        let needed: &[NalClass] = match codec {
            Codec::H264 => &[NalClass::Sps, NalClass::Pps],
            Codec::H265 => &[NalClass::Vps, NalClass::Sps, NalClass::Pps],
        };
        self.parameter_sets
            .extend(own.iter().filter(|class| needed.contains(class)));
        let key = own.contains(&NalClass::KeySlice);
        if key {
            self.counters.key_frames += 1;
            if !needed.iter().all(|class| own.contains(class)) {
                self.counters.key_frames_without_parameter_sets += 1;
            }
            if !started
                && let Some(missing) = needed
                    .iter()
                    .find(|class| !self.parameter_sets.contains(class))
            {
                self.violation(|| {
                    format!("no {missing:?} ahead of the first key frame, in band or in the SDP")
                });
            }
        } else if !started {
            self.counters.frames_before_key_frame += 1;
        }
        self.counters.frame(unit);
    }

    fn measure(&mut self, report: Option<SenderReport>, codec: Codec, unit: &AccessUnit) {
        let stamp = unit.nals.iter().find_map(|nal| stamp::find(codec, nal));
        let mapped = report.and_then(|report| mapped_ns(&report, unit.timestamp));
        self.latency.unit(unit, stamp, mapped);
    }

    fn sender_report(&mut self, report: SenderReport, arrival_ns: u64) {
        self.counters.sender_reports += 1;
        self.counters.reported_packets = u64::from(report.packets);
        match &mut self.source {
            Some(source) if source.ssrc == report.ssrc => {
                source.report = Some((report, arrival_ns))
            }
            Some(_) => {
                // A new source's report can overtake its first packet, too.
                self.counters.reports_of_others += 1;
                self.early_report = Some((report, arrival_ns));
                return;
            }
            None => self.early_report = Some((report, arrival_ns)),
        }
        if let Some(report_ns) = report.unix_ns() {
            self.latency.sender_report(report_ns, arrival_ns);
        }
    }

    fn violation(&mut self, text: impl FnOnce() -> String) {
        self.violations.add(text);
    }

    fn warning(&mut self, text: impl FnOnce() -> String) {
        if self.config.strict {
            self.violations.add(text);
        } else {
            self.warnings.add(text);
        }
    }
}

/// The wall clock at an RTP time, by the pair of times in a sender report.
fn mapped_ns(report: &SenderReport, timestamp: u32) -> Option<u64> {
    let units = i64::from(timestamp.wrapping_sub(report.rtp_timestamp) as i32);
    // 90 kHz: one unit is 100000/9 ns.
    report.unix_ns()?.checked_add_signed(units * 100_000 / 9)
}

#[cfg(test)]
#[path = "receiver_tests.rs"]
mod tests;
