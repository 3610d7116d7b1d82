//! `rtmp_stub_tester`: an RTMP server for one publisher that says whether it publishes right.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use testkit::exit;
use testkit::rtmp::report::Report;
use testkit::rtmp::server::{Faults, Options, Server};
use testkit::rtmp::session::Refusal;
use testkit::rtmp::video::Mode;

/// Takes an RTMP publish, checks handshake, chunks, commands and every video message, and reports what it saw.
///
/// Exit codes: 0 right; 4 too little came; 6 another packaging than --mode; 7 the publisher breaks the protocol;
/// 124 nothing came in time; 1 and 2 wrong arguments; 5 the port cannot be had.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  rtmp_stub_tester --mode h264 --listen-port 1935\n  \
    rtmp_stub_tester --mode h265-enhanced --video-threshold 80 --dump got.flv --json report.json"
)]
struct Arguments {
    /// h264, h265-enhanced or h265-domestic: the packaging that must come
    #[arg(long, help_heading = "Stream")]
    mode: String,
    /// Address to listen at
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "ADDRESS", help_heading = "Stream")]
    listen_host: IpAddr,
    /// TCP port; 0 picks a free one
    #[arg(
        long,
        default_value_t = 1935,
        value_name = "PORT",
        help_heading = "Stream"
    )]
    listen_port: u16,
    /// Warnings are violations: what other publishers do, and servers live with
    #[arg(long, help_heading = "Stream")]
    strict: bool,

    /// Frames that must come
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "End")]
    video_threshold: u64,
    /// The run's longest time
    #[arg(
        long,
        default_value_t = 10_000,
        value_name = "MS",
        help_heading = "End"
    )]
    timeout_ms: u64,
    /// Silence of a publisher that ends a run which goes on past its threshold
    #[arg(long, default_value_t = 2_000, value_name = "MS", help_heading = "End")]
    silence_ms: u64,
    /// Takes so many connections, one after the other
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "End")]
    accept_connections: u32,

    /// Writes what is published as FLV
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    dump: Option<PathBuf>,
    /// Writes the frames as Annex B, parameter sets out of the sequence headers ahead of them
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    dump_annexb: Option<PathBuf>,
    /// Writes the report as JSON; - is standard output
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", help_heading = "Output")]
    json: Option<PathBuf>,

    /// Stops reading after so many bytes
    #[arg(
        long,
        value_name = "BYTES",
        help_heading = "Faults (of the first connection)"
    )]
    stall_after: Option<u64>,
    /// Reads on after so long; without it never
    #[arg(
        long,
        value_name = "MS",
        requires = "stall_after",
        help_heading = "Faults (of the first connection)"
    )]
    stall_ms: Option<u64>,
    /// Closes the connection after so many bytes
    #[arg(
        long,
        value_name = "BYTES",
        help_heading = "Faults (of the first connection)"
    )]
    close_after: Option<u64>,
    /// Refuses the publish
    #[arg(long, help_heading = "Faults (of the first connection)")]
    refuse: bool,
    /// Code of the refusal; NetConnection.* answers `connect`, `silent` closes without a word
    #[arg(
        long,
        value_name = "CODE",
        requires = "refuse",
        default_value = "NetStream.Publish.BadName",
        help_heading = "Faults (of the first connection)"
    )]
    refuse_code: String,
    /// Reads at most so many bytes per second
    #[arg(
        long,
        value_name = "BYTES_PER_S",
        help_heading = "Faults (of the first connection)"
    )]
    slow: Option<u64>,
    /// The faults are those of every connection
    #[arg(long, help_heading = "Faults (of the first connection)")]
    every_connection: bool,

    /// Window that the publisher is told to acknowledge
    #[arg(
        long,
        default_value_t = 2_500_000,
        value_name = "BYTES",
        help_heading = "Server"
    )]
    window: u32,
    /// Size of the socket's receive buffer; small ones make stalls felt early
    #[arg(long, value_name = "BYTES", help_heading = "Server")]
    receive_buffer: Option<usize>,
    /// Sends a PingRequest each so many milliseconds
    #[arg(long, value_name = "MS", help_heading = "Server")]
    ping: Option<u64>,
    /// Answers publish with its own transaction id, as ZLMediaKit does
    #[arg(long, help_heading = "Server")]
    echo_transaction: bool,
}

impl Arguments {
    /// Whether the run goes on past its threshold.
    fn runs_on(&self) -> bool {
        self.dump.is_some()
            || self.dump_annexb.is_some()
            || self.json.is_some()
            || self.accept_connections > 1
    }
}

fn main() -> ExitCode {
    exit::main(mode, run)
}

fn mode(arguments: &Arguments) -> Result<Mode, String> {
    let mode = arguments.mode.parse().map_err(|e| format!("--mode: {e}"))?;
    for (flag, value) in [
        ("--video-threshold", Some(arguments.video_threshold)),
        (
            "--accept-connections",
            Some(u64::from(arguments.accept_connections)),
        ),
        ("--silence-ms", Some(arguments.silence_ms)),
        ("--slow", arguments.slow),
        ("--ping", arguments.ping),
        ("--window", Some(u64::from(arguments.window))),
    ] {
        if value == Some(0) {
            return Err(format!("{flag} 0 makes no sense: give 1 or more"));
        }
    }
    Ok(mode)
}

fn run(arguments: &Arguments, mode: Mode) -> Result<u8, Box<dyn std::error::Error>> {
    let stop = exit::stop_on(&[SIGINT, SIGTERM])?;
    let server = Server::open(options(arguments, mode))?;
    eprintln!("listening at {}", server.address()?);
    let report = server.run(&stop)?;
    if report.exit_code == exit::RTMP_MODE_MISMATCH {
        let seen = report.mode_seen.as_deref().unwrap_or("another mode");
        eprintln!("error: {seen} where {} is expected", mode.name());
    }
    tell(arguments, &report)?;
    Ok(report.exit_code)
}

fn options(arguments: &Arguments, mode: Mode) -> Options {
    let refusal = arguments
        .refuse
        .then(|| match arguments.refuse_code.as_str() {
            "silent" => Refusal::Silent,
            code => Refusal::Code(code.to_owned()),
        });
    Options {
        mode,
        host: arguments.listen_host,
        port: arguments.listen_port,
        strict: arguments.strict,
        video_threshold: arguments.video_threshold,
        timeout: Duration::from_millis(arguments.timeout_ms),
        silence: Duration::from_millis(arguments.silence_ms),
        connections: arguments.accept_connections,
        runs_on: arguments.runs_on(),
        dump: arguments.dump.clone(),
        dump_annexb: arguments.dump_annexb.clone(),
        faults: Faults {
            stall_after: arguments.stall_after,
            stall_for: arguments.stall_ms.map(Duration::from_millis),
            close_after: arguments.close_after,
            refusal,
            slow: arguments.slow,
            every_connection: arguments.every_connection,
        },
        window: arguments.window,
        receive_buffer: arguments.receive_buffer,
        ping_every: arguments.ping.map(Duration::from_millis),
        echo_transaction: arguments.echo_transaction,
        status: true,
    }
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
