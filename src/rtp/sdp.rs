//! The session description that a receiver opens (RFC 8866), and commands that open it.
//!
//! The profile is `RTP/AVP` although PLI and FIR are listened to: RFC 4585 would have `RTP/AVPF`
//! for that, which some readers do not take, and a receiver that knows only this text cannot send
//! feedback anyway (it does not know our RTCP port). One that can does not ask the SDP.

use std::fmt::Write;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::bitstream::ParameterSets;
use crate::bitstream::sps::H265Sps;
use crate::encode::{Codec, FrameRate};

/// Everything that a description says. `to_text` depends on nothing else.
#[derive(Debug, Clone)]
pub struct Description<'a> {
    pub codec: Codec,
    pub payload_type: u8,
    /// Where the packets go; for unicast the receiver's own address.
    pub destination: IpAddr,
    pub port: u16,
    /// The sender's address.
    pub origin: IpAddr,
    pub session_id: u64,
    /// Grows with every change (section 5.2).
    pub version: u64,
    /// Shown to people.
    pub name: &'a str,
    pub ssrc: u32,
    pub cname: &'a str,
    pub parameters: &'a ParameterSets,
    /// Bits per second.
    pub bitrate: Option<u32>,
    pub frame_rate: Option<FrameRate>,
    /// Time to live of IPv4 multicast packets.
    pub multicast_ttl: u8,
}

impl Description<'_> {
    /// The description, its lines ended by CR LF.
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(1024);
        self.write(&mut text)
            .expect("writing to a string cannot fail");
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let pt = self.payload_type;
        let encoding = match self.codec {
            Codec::H264 => "H264",
            Codec::H265 => "H265",
        };
        write!(text, "v=0\r\n")?;
        write!(
            text,
            "o=- {} {} {}\r\n",
            self.session_id,
            self.version,
            address(self.origin)
        )?;
        write!(text, "s={}\r\n", one_line(self.name))?;
        write!(text, "c={}", address(self.destination))?;
        if self.destination.is_ipv4() && self.destination.is_multicast() {
            write!(text, "/{}", self.multicast_ttl)?;
        }
        write!(text, "\r\nt=0 0\r\n")?;
        write!(
            text,
            "a=tool:cvmmap-streamer {}\r\n",
            env!("CARGO_PKG_VERSION")
        )?;
        write!(text, "m=video {} RTP/AVP {pt}\r\n", self.port)?;
        if let Some(bitrate) = self.bitrate {
            write!(text, "b=AS:{}\r\n", bitrate.div_ceil(1000))?;
        }
        write!(text, "a=rtpmap:{pt} {encoding}/90000\r\n")?;
        write!(text, "a=fmtp:{pt} {}\r\n", self.format_parameters())?;
        if let Some(rate) = self.frame_rate {
            let per_second = format!("{:.3}", rate.per_second());
            let short = per_second.trim_end_matches('0').trim_end_matches('.');
            write!(text, "a=framerate:{short}\r\n")?;
        }
        write!(text, "a=sendonly\r\n")?;
        write!(text, "a=ssrc:{} cname:{}\r\n", self.ssrc, self.cname)
    }

    fn format_parameters(&self) -> String {
        let ParameterSets { vps, sps, pps, .. } = self.parameters;
        let list = |sets: &[Vec<u8>]| {
            let sets: Vec<_> = sets.iter().map(|set| BASE64.encode(set)).collect();
            sets.join(",")
        };
        match self.codec {
            // RFC 6184 section 8.1; SPS come first
            Codec::H264 => {
                let mut text = "packetization-mode=1".to_owned();
                if let Some([_, profile, constraints, level, ..]) = sps.first().map(Vec::as_slice) {
                    text += &format!(";profile-level-id={profile:02X}{constraints:02X}{level:02X}");
                }
                let sets = [sps.as_slice(), pps.as_slice()].concat();
                text + &format!(";sprop-parameter-sets={}", list(&sets))
            }
            // RFC 7798 section 7.1; what is left out means Main, level 3.1
            Codec::H265 => {
                let mut text = String::new();
                if let Some(Ok(sps)) = sps.first().map(|sps| H265Sps::parse(sps)) {
                    let [_, _, _, _, _, constraints @ .., level] = sps.profile_tier_level;
                    text += &format!(
                        "profile-id={};tier-flag={};level-id={level};interop-constraints=",
                        sps.profile_idc(),
                        u8::from(sps.high_tier()),
                    );
                    constraints
                        .iter()
                        .for_each(|byte| text += &format!("{byte:02X}"));
                    text.push(';');
                }
                text + &format!(
                    "sprop-vps={};sprop-sps={};sprop-pps={}",
                    list(vps),
                    list(sps),
                    list(pps)
                )
            }
        }
    }

    /// An `ffplay` command that plays the stream, from the file at `path` or, without one, from a
    /// copy of the description in the command itself.
    pub fn ffplay_command(&self, path: Option<&str>) -> String {
        const LOW_DELAY: &str = "-fflags nobuffer -flags low_delay";
        match path {
            Some(path) => format!(
                "ffplay -protocol_whitelist file,udp,rtp {LOW_DELAY} -i {}",
                shell_word(path)
            ),
            None => {
                let text = self.to_text().replace('\\', "").replace("\r\n", "\\n");
                format!(
                    "printf '%b' {} | ffplay -protocol_whitelist pipe,udp,rtp {LOW_DELAY} -f sdp -i -",
                    shell_word(&text)
                )
            }
        }
    }

    /// A `gst-launch-1.0` command that plays the stream; it needs no file.
    pub fn gst_command(&self) -> String {
        let (encoding, element) = match self.codec {
            Codec::H264 => ("H264", "h264"),
            Codec::H265 => ("H265", "h265"),
        };
        format!(
            "gst-launch-1.0 udpsrc address={} port={} buffer-size=4194304 \
             caps=application/x-rtp,media=video,clock-rate=90000,encoding-name={encoding},payload={} \
             ! rtpjitterbuffer latency=20 ! rtp{element}depay ! {element}parse ! avdec_{element} \
             ! videoconvert ! autovideosink sync=false",
            self.destination, self.port, self.payload_type
        )
    }
}

fn address(address: IpAddr) -> String {
    let family = if address.is_ipv4() { "IP4" } else { "IP6" };
    format!("IN {family} {address}")
}

/// A session name is one line and not empty (section 5.3).
fn one_line(name: &str) -> String {
    let line: String = name.chars().filter(|c| !c.is_control()).collect();
    if line.trim().is_empty() {
        "-".to_owned()
    } else {
        line
    }
}

/// `text` as one word of a POSIX shell.
fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h264_sets() -> ParameterSets {
        ParameterSets {
            generation: 1,
            vps: vec![],
            sps: vec![vec![0x67, 0x64, 0x00, 0x1E, 0xAC]],
            pps: vec![vec![0x68, 0xEE], vec![0x68, 0xEF]],
        }
    }

    fn description(parameters: &ParameterSets) -> Description<'_> {
        Description {
            codec: Codec::H264,
            payload_type: 96,
            destination: "192.0.2.7".parse().unwrap(),
            port: 5004,
            origin: "192.0.2.1".parse().unwrap(),
            session_id: 77,
            version: 1,
            name: "cam",
            ssrc: 305_419_896,
            cname: "x@y",
            parameters,
            bitrate: Some(4_000_001),
            frame_rate: Some(FrameRate {
                num: 30_000,
                den: 1001,
            }),
            multicast_ttl: 16,
        }
    }

    #[test]
    fn an_h264_description_has_its_lines_in_the_order_of_rfc_8866() {
        let sets = h264_sets();
        let text = description(&sets).to_text();
        let tool = format!("a=tool:cvmmap-streamer {}", env!("CARGO_PKG_VERSION"));
        // base64 of the sets by coreutils
        let expected = [
            "v=0",
            "o=- 77 1 IN IP4 192.0.2.1",
            "s=cam",
            "c=IN IP4 192.0.2.7",
            "t=0 0",
            &tool,
            "m=video 5004 RTP/AVP 96",
            "b=AS:4001",
            "a=rtpmap:96 H264/90000",
            "a=fmtp:96 packetization-mode=1;profile-level-id=64001E;sprop-parameter-sets=Z2QAHqw=,aO4=,aO8=",
            "a=framerate:29.97",
            "a=sendonly",
            "a=ssrc:305419896 cname:x@y",
            "",
        ];
        assert_eq!(text, expected.join("\r\n"));
    }

    #[test]
    fn an_h265_description_tells_profile_and_level_of_the_sps() {
        let sps = "42 01 01 01 60 00 00 03 00 90 00 00 03 00 00 03 00 78 a0 03 c0 80 11 07 53 65 95
            95 29 30 bc 05 a8 08 08 08 20 00 00 03 00 20 00 00 03 03 c1";
        let byte = |text| u8::from_str_radix(text, 16).unwrap();
        let sets = ParameterSets {
            generation: 1,
            vps: vec![vec![0x40, 1, 0x0C]],
            sps: vec![sps.split_whitespace().map(byte).collect()],
            pps: vec![vec![0x44, 1, 0xC1]],
        };
        let text = Description {
            codec: Codec::H265,
            ..description(&sets)
        }
        .to_text();
        assert!(text.contains("a=rtpmap:96 H265/90000\r\n"), "{text}");
        let expected = "a=fmtp:96 profile-id=1;tier-flag=0;level-id=120;\
            interop-constraints=900000000000;sprop-vps=QAEM;sprop-sps=QgEBAWAAAAMAkAAAAwAAAwB4oAPAg\
            BEHU2WVlSkwvAWoCAgIIAAAAwAgAAADA8E=;sprop-pps=RAHB\r\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn addresses_of_both_families_and_multicast() {
        let sets = h264_sets();
        let text = |destination: &str| {
            let description = Description {
                destination: destination.parse().unwrap(),
                origin: "2001:db8::1".parse().unwrap(),
                ..description(&sets)
            };
            description.to_text()
        };
        assert!(text("2001:db8::7").contains("\r\nc=IN IP6 2001:db8::7\r\n"));
        assert!(text("2001:db8::7").contains("\r\no=- 77 1 IN IP6 2001:db8::1\r\n"));
        assert!(text("239.1.2.3").contains("\r\nc=IN IP4 239.1.2.3/16\r\n"));
        assert!(text("ff02::1").contains("\r\nc=IN IP6 ff02::1\r\n"));
    }

    #[test]
    fn a_name_cannot_add_lines_and_what_is_unknown_is_left_out() {
        let sets = h264_sets();
        let description = Description {
            name: "a\r\nm=audio 1",
            bitrate: None,
            frame_rate: None,
            ..description(&sets)
        };
        let text = description.to_text();
        assert!(text.contains("\r\ns=am=audio 1\r\n"));
        assert!(!text.contains("b=AS") && !text.contains("framerate"));
        let text = Description {
            name: " ",
            ..description
        }
        .to_text();
        assert!(text.contains("\r\ns=-\r\n"));
    }

    #[test]
    fn commands_quote_what_the_shell_would_take_apart() {
        let sets = h264_sets();
        let description = Description {
            name: "it's",
            ..description(&sets)
        };
        assert_eq!(
            description.ffplay_command(Some("/a b/it's.sdp")),
            r"ffplay -protocol_whitelist file,udp,rtp -fflags nobuffer -flags low_delay -i '/a b/it'\''s.sdp'"
        );
        let command = description.ffplay_command(None);
        assert!(command.contains(r"\ns=it'\''s\nc=IN"), "{command}");
        assert!(!command.contains('\r') && !command.contains('\n'));
        assert!(
            description
                .gst_command()
                .contains("payload=96 ! rtpjitterbuffer")
        );
    }
}
