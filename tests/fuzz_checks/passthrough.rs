//! A producer's own access units, on the whole way to RTP packets, RTMP messages and a session description.

use cvmmap_streamer::bitstream::split::access_units;
use cvmmap_streamer::bitstream::{AccessUnit, AccessUnitPool, NalUnit};
use cvmmap_streamer::encode::passthrough::{AccessUnitSurface, Passthrough};
use cvmmap_streamer::encode::{
    Codec, EncodedQueue, EncoderBackend, EncoderConfig, FrameRate, Picture, Preset, RateControl,
    Tuning,
};
use cvmmap_streamer::flv::Packaging;
use cvmmap_streamer::frame::{
    EncodedPlane, FrameInfo, PictureShape, PixelFormat, PlaneLayout, Snapshot,
};
use cvmmap_streamer::rtp::sdp::Description;
use cvmmap_streamer::rtp::{Packetizer, PacketizerConfig};
use cvmmap_streamer::sink::rtmp::fuzz::Messages;
use cvmmap_streamer::time::MediaTime;

const MTU: usize = 300;

/// The first byte says which frames are missing; the rest is the producer's stream.
pub fn check(bytes: &[u8]) {
    let Some((gaps, stream)) = bytes.split_first() else {
        return;
    };
    for (codec, forms) in [
        (Codec::H264, &[Packaging::LegacyAvc][..]),
        (
            Codec::H265,
            &[Packaging::EnhancedHevc, Packaging::DomesticHevc],
        ),
    ] {
        let mut passthrough = Passthrough::open(&config(codec)).expect("it opens for its codec");
        let mut out = EncodedQueue::new();
        let mut pool = AccessUnitPool::new(codec);
        let mut packetizer = Packetizer::new(PacketizerConfig {
            codec,
            payload_type: 96,
            mtu: MTU,
            ssrc: 1,
            sequence: u16::MAX - 1,
        });
        let mut messages: Vec<_> = forms.iter().map(|form| Messages::new(*form)).collect();
        for (number, range) in (0_u32..).zip(access_units(codec, stream)) {
            let gap = gaps >> (number % 8) & 1 != 0;
            let snapshot = snapshot(&passthrough, codec, number, gap, &stream[range]);
            let picture = Picture {
                snapshot,
                force_key: false,
            };
            passthrough.encode(picture, &mut out).expect("its surface");
            while let Some(coded) = out.pop() {
                let Ok(unit) = pool.make(coded, &mut out, |_| ()) else {
                    continue;
                };
                packets(&mut packetizer, &unit);
                for messages in &mut messages {
                    if let Some(body) = messages.body(&unit) {
                        assert_eq!(
                            of_body(&body).len() + left_out(&unit, &body),
                            unit.nals().len()
                        );
                    }
                }
                description(&unit);
            }
        }
    }
}

fn config(codec: Codec) -> EncoderConfig {
    EncoderConfig {
        codec,
        shape: PictureShape {
            width: 0,
            height: 0,
            format: PixelFormat::Gray,
            encoded: Some(codec),
        },
        frame_rate: FrameRate::THIRTY,
        rate: RateControl::Bitrate(1_000_000),
        gop: 30,
        b_frames: 0,
        intra_refresh: false,
        preset: Preset::Fastest,
        tuning: Tuning::LowLatency,
        surfaces_in_flight: 1,
    }
}

fn snapshot(
    passthrough: &Passthrough,
    codec: Codec,
    number: u32,
    gap: bool,
    unit: &[u8],
) -> Snapshot {
    let mut surface = passthrough.surfaces().take().expect("none is on its way");
    let own: &mut AccessUnitSurface = surface.get_mut().expect("of this encoder");
    own.set(codec, unit).expect("shorter than 16 MiB");
    let size = unit.len() as u32;
    let time = u64::from(number) * 40_000_000;
    Snapshot {
        info: FrameInfo {
            frame_id: number,
            capture_ts_ns: time,
            format: PixelFormat::Gray,
            left: PlaneLayout {
                width: 0,
                height: 0,
                stride: 0,
                offset: 0,
                size: 0,
            },
            encoded: Some(EncodedPlane {
                codec,
                keyframe: false,
                offset: 0,
                size,
                pts_ns: time,
            }),
            frame_rate: None,
            payload_size: size,
        },
        surface,
        epoch: 0,
        gap,
        time: MediaTime(time as i64),
        trace: Default::default(),
    }
}

/// Puts the packets together again: they hold the NAL units that may be sent, none longer than it may be.
fn packets(packetizer: &mut Packetizer, unit: &AccessUnit) {
    let codec = unit.codec();
    let (mut found, mut open) = (Vec::new(), None);
    let packets = packetizer.packets(unit.nals(), 0);
    let count = packets.len();
    let mut drawn = 0;
    let mut sequence = None;
    for packet in packets {
        drawn += 1;
        assert!(packet.len() <= MTU);
        assert_eq!(packet.marker(), drawn == count);
        let expected = sequence.map_or(packet.sequence(), |last: u16| last.wrapping_add(1));
        assert_eq!(packet.sequence(), expected);
        sequence = Some(packet.sequence());
        let packet = packet.to_vec();
        of_packet(codec, &packet[12..], &mut found, &mut open);
    }
    assert_eq!(drawn, count);
    assert_eq!(open, None, "the last fragment has no end");
    let sendable = |nal: &NalUnit<'_>| match codec {
        Codec::H264 => (1..=23).contains(&nal.type_code(codec)),
        Codec::H265 => nal.type_code(codec) <= 47,
    };
    let expected: Vec<_> = unit
        .nals()
        .filter(sendable)
        .map(|n| n.bytes().to_vec())
        .collect();
    assert!(found == expected, "other NAL units than were sent");
}

/// RFC 6184 sections 5.6 to 5.8, RFC 7798 sections 4.4.1 to 4.4.3.
fn of_packet(codec: Codec, payload: &[u8], found: &mut Vec<Vec<u8>>, open: &mut Option<Vec<u8>>) {
    let (kind, header, aggregation, fragment) = match codec {
        Codec::H264 => (payload[0] & 0x1F, 1, 24, 28),
        Codec::H265 => (payload[0] >> 1 & 0x3F, 2, 48, 49),
    };
    if kind == aggregation {
        let mut rest = &payload[header..];
        while let Some((len, behind)) = rest.split_first_chunk::<2>() {
            let (nal, behind) = behind.split_at(u16::from_be_bytes(*len).into());
            found.push(nal.to_vec());
            rest = behind;
        }
        assert!(rest.is_empty());
    } else if kind == fragment {
        let fu = payload[header];
        if fu & 0x80 != 0 {
            assert_eq!(*open, None, "a NAL unit begins inside another");
            *open = Some(match codec {
                Codec::H264 => vec![payload[0] & 0xE0 | fu & 0x1F],
                Codec::H265 => vec![payload[0] & 0x81 | (fu & 0x3F) << 1, payload[1]],
            });
        }
        let nal = open.as_mut().expect("a fragment without a start");
        nal.extend(&payload[header + 1..]);
        if fu & 0x40 != 0 {
            found.extend(open.take());
        }
    } else {
        assert_eq!(*open, None, "a NAL unit begins inside another");
        found.push(payload.to_vec());
    }
}

/// The length-prefixed NAL units behind the header of a video message's body.
fn of_body(body: &[u8]) -> Vec<&[u8]> {
    // Enhanced RTMP: composition time only where it is not 0, and here it is.
    let mut rest = &body[5..];
    let mut found = Vec::new();
    while let Some((len, behind)) = rest.split_first_chunk::<4>() {
        let (nal, behind) = behind.split_at(u32::from_be_bytes(*len) as usize);
        found.push(nal);
        rest = behind;
    }
    assert!(rest.is_empty(), "bytes behind the last NAL unit");
    found
}

/// How many parameter sets of `unit` are not in `body`, since its configuration record has them.
fn left_out(unit: &AccessUnit, body: &[u8]) -> usize {
    let codec = unit.codec();
    let is_set = |nal: NalUnit<'_>| nal.kind(codec).is_parameter_set();
    let all = unit.nals().filter(|nal| is_set(*nal)).count();
    all - of_body(body)
        .into_iter()
        .filter(|nal| is_set(NalUnit(nal)))
        .count()
}

/// One line a field, whatever the parameter sets hold.
fn description(unit: &AccessUnit) {
    let description = Description {
        codec: unit.codec(),
        payload_type: 96,
        destination: [127, 0, 0, 1].into(),
        port: 5004,
        origin: [127, 0, 0, 1].into(),
        session_id: 1,
        version: 1,
        name: "fuzz",
        ssrc: 1,
        cname: "fuzz",
        parameters: &unit.parameters,
        bitrate: None,
        frame_rate: None,
        multicast_ttl: 1,
    };
    let text = description.to_text();
    let longest = 4 * (AccessUnitPool::MOST_SET_BYTES + AccessUnitPool::MOST_SETS * 4);
    assert!(text.len() < 1024 + longest);
    for line in text.split_terminator("\r\n") {
        let (key, value) = line.split_at(2);
        assert!(key.ends_with('=') && !value.chars().any(char::is_control));
    }
}
