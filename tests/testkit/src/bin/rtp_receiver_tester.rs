//! `rtp_receiver_tester`: receives one RTP stream and says whether it is right.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use testkit::bitstream::Codec;
use testkit::exit;
use testkit::rtp::receiver::Config;
use testkit::rtp::report::Report;
use testkit::rtp::sdp::Session;
use testkit::rtp::tester::{Options, Tester};

/// Receives H.264 or H.265 over RTP, checks every packet, and reports what it saw.
///
/// Exit codes: 0 right; 3 another payload type (at once); 4 too little came; 7 the stream breaks its rules;
/// 124 nothing came in time; 1 and 2 wrong arguments; 5 the port cannot be had.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  rtp_receiver_tester --port 5004\n  \
    rtp_receiver_tester --port 5004 --frame-threshold 80 --dump got.h264 --json report.json"
)]
struct Arguments {
    /// UDP port of RTP; RTCP is taken at the next one, and at this one. 0 picks a free pair
    #[arg(long, default_value_t = 5004, help_heading = "Stream")]
    port: u16,
    /// Address to receive at; a multicast group is joined
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), value_name = "ADDRESS", help_heading = "Stream")]
    bind: IpAddr,
    /// Payload type that the packets must have
    #[arg(long, default_value_t = 96, value_name = "PT", help_heading = "Stream")]
    expect_pt: u8,
    /// Session description: its codec, payload type and parameter sets are expected
    #[arg(long, value_name = "FILE", help_heading = "Stream")]
    sdp: Option<PathBuf>,
    /// h264 or h265; recognised from the payload without it
    #[arg(long, help_heading = "Stream")]
    codec: Option<String>,
    /// RTP times that go back are a violation: no B-frames are expected
    #[arg(long, help_heading = "Stream")]
    monotonic: bool,
    /// Warnings are violations: what ffmpeg and others do against the RFCs, and receivers live with
    #[arg(long, help_heading = "Stream")]
    strict: bool,

    /// Packets that must come
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "End")]
    packet_threshold: u64,
    /// Whole frames that must come
    #[arg(long, value_name = "N", help_heading = "End")]
    frame_threshold: Option<u64>,
    /// The run's longest time
    #[arg(
        long,
        default_value_t = 10_000,
        value_name = "MS",
        help_heading = "End"
    )]
    timeout_ms: u64,

    /// Silence that ends a run which goes on past its threshold
    #[arg(long, default_value_t = 2_000, value_name = "MS", help_heading = "End")]
    silence_ms: u64,

    /// Writes the whole frames as Annex B
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    dump: Option<PathBuf>,
    /// Writes the poses that came with whole frames, a line of JSON each
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    body_jsonl: Option<PathBuf>,
    /// Writes the report as JSON; - is standard output
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", help_heading = "Output")]
    json: Option<PathBuf>,

    /// Sends a receiver report with a picture loss indication each so many milliseconds
    #[arg(long, value_name = "MS", help_heading = "Feedback")]
    send_pli_every: Option<u64>,
    /// Sends full intra requests in place of picture loss indications
    #[arg(long, requires = "send_pli_every", help_heading = "Feedback")]
    fir: bool,
    /// Reads datagrams one by one, without UDP_GRO
    #[arg(long, help_heading = "Feedback")]
    no_gro: bool,
}

impl Arguments {
    /// Whether the run goes on past its threshold.
    fn runs_on(&self) -> bool {
        self.dump.is_some()
            || self.body_jsonl.is_some()
            || self.json.is_some()
            || self.frame_threshold.is_some()
    }
}

fn main() -> ExitCode {
    exit::main(config, run)
}

fn config(arguments: &Arguments) -> Result<Config, String> {
    if arguments.expect_pt > 127 {
        return Err(format!(
            "--expect-pt {} is not within 0 to 127",
            arguments.expect_pt
        ));
    }
    if arguments.packet_threshold == 0 || arguments.frame_threshold == Some(0) {
        return Err("a threshold of 0 would be met by nothing: give 1 or more".into());
    }
    if arguments.silence_ms == 0 {
        return Err("--silence-ms 0 would end the run between two packets: give 1 or more".into());
    }
    if arguments.send_pli_every == Some(0) {
        return Err("--send-pli-every 0 would never stop sending: give 1 or more".into());
    }
    let mut config = Config {
        payload_type: arguments.expect_pt,
        codec: None,
        parameter_sets: Vec::new(),
        monotonic: arguments.monotonic,
        strict: arguments.strict,
    };
    if let Some(codec) = &arguments.codec {
        config.codec = Some(
            codec
                .parse::<Codec>()
                .map_err(|e| format!("--codec: {e}"))?,
        );
    }
    if let Some(path) = &arguments.sdp {
        let fail = |e: &dyn std::fmt::Display| format!("--sdp {}: {e}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| fail(&e))?;
        let session = Session::parse(&text).map_err(|e| fail(&e))?;
        if session.payload_type != arguments.expect_pt {
            return Err(format!(
                "--sdp names payload type {}, --expect-pt is {}",
                session.payload_type, arguments.expect_pt
            ));
        }
        if config.codec.is_some_and(|codec| codec != session.codec) {
            return Err(format!("--sdp names {}, --codec another", session.codec));
        }
        config.codec = Some(session.codec);
        config.parameter_sets = session.parameter_sets;
    }
    Ok(config)
}

fn run(arguments: &Arguments, config: Config) -> Result<u8, Box<dyn std::error::Error>> {
    let stop = exit::stop_on(&[SIGINT, SIGTERM])?;
    let tester = Tester::open(Options {
        bind: arguments.bind,
        port: arguments.port,
        config,
        packet_threshold: arguments.packet_threshold,
        frame_threshold: arguments.frame_threshold,
        timeout: Duration::from_millis(arguments.timeout_ms),
        runs_on: arguments.runs_on(),
        silence: Duration::from_millis(arguments.silence_ms),
        dump: arguments.dump.clone(),
        body_jsonl: arguments.body_jsonl.clone(),
        ask_every: arguments.send_pli_every.map(Duration::from_millis),
        full_intra: arguments.fir,
        gro: !arguments.no_gro,
        status: true,
    })?;
    let port = tester.port()?;
    let rtcp = if tester.has_rtcp_port() {
        format!(" and {}", port + 1)
    } else {
        String::new()
    };
    eprintln!("receiving at {} port {port}{rtcp}", arguments.bind);
    let report = tester.run(&stop)?;
    if let Some(found) = report.foreign_payload_type {
        eprintln!(
            "error: payload type {found} where {} is expected",
            report.payload_type
        );
    }
    tell(arguments, &report)?;
    Ok(report.exit_code)
}

fn tell(arguments: &Arguments, report: &Report) -> io::Result<()> {
    match arguments.json.as_deref() {
        Some(path) if path.as_os_str() == "-" => {
            eprintln!("{report}");
            println!("{}", serde_json::to_string_pretty(report)?);
        }
        Some(path) => {
            println!("{report}");
            std::fs::write(path, serde_json::to_string_pretty(report)? + "\n")?;
        }
        None => println!("{report}"),
    }
    Ok(())
}
