//! `fault_suite`: everything that takes a streamer down in the field, done to this one.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::json;
use testkit::exit;
use testkit::faults::case::{Case, Run, Settings};
use testkit::faults::evidence::{Evidence, Totals};
use testkit::faults::feed::{Feed, Writes};
use testkit::faults::leftovers::{self, Leftover};
use testkit::faults::probe;
use testkit::faults::scenarios::{self, soak};
use testkit::names::Names;
use testkit::producer::unix_ns;

/// Plays faults against cvmmap_streamer and checks what it promises; every scenario has a control that shows that its check
/// can fail.
///
/// Exit codes: 0 all passed; 4 one failed; 1 and 2 wrong arguments; 5 the suite itself cannot run.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Folder of cvmmap_streamer
    #[arg(long, value_name = "FOLDER")]
    binaries: Option<PathBuf>,
    /// Where the evidence goes
    #[arg(
        long,
        value_name = "FOLDER",
        env = "CVMMAP_EVIDENCE_DIR",
        default_value = ".sisyphus/evidence"
    )]
    evidence: PathBuf,
    /// `--encoder` of every streamer; nvenc may have the emulator in the driver's place
    #[arg(
        long,
        value_name = "ENCODER",
        env = "CVMMAP_ENCODER",
        default_value = "software"
    )]
    encoder: String,
    /// Only these scenarios; repeatable
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// 100,000 pictures a rate in torn_read, in place of 1,000
    #[arg(long)]
    full: bool,
    /// So many pictures a rate in torn_read
    #[arg(long, value_name = "N", conflicts_with = "full")]
    torn_pictures: Option<u64>,
    /// Frames per second of torn_read, of 30, 60, 200 and 1000; repeatable [default: all]
    #[arg(long, value_name = "FPS")]
    torn_fps: Vec<u32>,
    /// One streamer through faults at random for so long [default: 180]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "180", conflicts_with_all = ["only", "full"])]
    soak: Option<u64>,
    /// Of everything random [default: the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Without the runs that show that the checks can fail
    #[arg(long)]
    no_controls: bool,
    /// Names and promises, and nothing else
    #[arg(long)]
    list: bool,
    /// Is a producer until it is killed: segment, endpoint, label
    #[arg(long, num_args = 3, hide = true, value_names = ["SHM", "ZMQ", "LABEL"])]
    as_producer: Option<Vec<String>>,
    /// Says what a dump of a run that was stopped shows
    #[arg(long, hide = true, value_name = "FILE")]
    look_at: Option<PathBuf>,
    /// Takes ever more of everything until it is killed
    #[arg(long, hide = true)]
    as_leak: bool,
}

fn main() -> ExitCode {
    let arguments: Arguments = exit::parse_arguments();
    if let Some(names) = &arguments.as_producer {
        return produce(names);
    }
    if arguments.as_leak {
        return leak();
    }
    if let Some(dump) = &arguments.look_at {
        return match probe::ids_of(dump).and_then(|ids| probe::verify(dump, &ids, 640, 360)) {
            Ok(seen) => {
                println!(
                    "{} pictures, {} right, {} wrong, {} unreadable, {} units without one, torn: {:?}",
                    seen.pictures,
                    seen.right,
                    seen.wrong,
                    seen.unreadable,
                    seen.undecoded,
                    seen.torn
                );
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("error: {}: {error}", dump.display());
                ExitCode::from(exit::INITIALIZATION)
            }
        };
    }
    if arguments.list {
        for scenario in scenarios::ALL {
            println!("{:<22} {}", scenario.name, scenario.promise);
        }
        return ExitCode::SUCCESS;
    }
    let unknown = arguments
        .only
        .iter()
        .find(|name| scenarios::ALL.iter().all(|s| s.name != **name));
    if let Some(name) = unknown {
        eprintln!("error: --only {name} is no scenario; --list shows them");
        return ExitCode::from(exit::CONFIG);
    }
    match run(&arguments) {
        Ok(totals) => {
            println!("{totals}");
            ExitCode::from(if totals.fail == 0 {
                exit::OK
            } else {
                exit::THRESHOLD_NOT_MET
            })
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(exit::INITIALIZATION)
        }
    }
}

fn run(arguments: &Arguments) -> Result<Totals, Box<dyn std::error::Error>> {
    let itself = std::env::current_exe()?;
    let beside = itself.parent().map(PathBuf::from).unwrap_or_default();
    let now = unix_ns();
    let seed = arguments.seed.unwrap_or(now);
    let sockets = std::env::temp_dir().join(format!("fs{}", std::process::id()));
    leftovers::remove_on_signals()?;
    let _folder = Leftover::folder(sockets.clone());
    std::fs::create_dir_all(&sockets)?;
    let settings = Settings {
        binaries: arguments.binaries.clone().unwrap_or(beside),
        itself,
        sockets,
        torn_frames: match arguments.torn_pictures {
            Some(pictures) => pictures,
            None if arguments.full => 100_000,
            None => 1000,
        },
        torn_fps: arguments.torn_fps.clone(),
        encoder: arguments.encoder.clone(),
        seed,
    };
    let mut evidence = Evidence::open(&arguments.evidence, now / 1_000_000_000)?;
    println!(
        "fault suite: seed {seed}, evidence {}",
        evidence.run.display()
    );
    let wanted: Vec<_> = scenarios::ALL
        .iter()
        .filter(|s| arguments.only.is_empty() || arguments.only.iter().any(|name| s.name == name))
        .collect();
    let facts = json!({ "seed": seed, "full": arguments.full, "soak_seconds": arguments.soak, "encoder": arguments.encoder });
    let mut rows = Vec::new();
    match arguments.soak {
        None => {
            for (number, scenario) in wanted.iter().enumerate() {
                let controls = !arguments.no_controls;
                rows.push(scenario.run(&settings, &evidence.run, number, controls)?);
                evidence.write(&rows, &facts)?;
            }
        }
        Some(seconds) => {
            let case = Case::new(&settings, "soak", Run::Fault, &evidence.run.join("soak"), 0)?;
            rows = soak::run(case, seconds, &mut evidence, &facts)?;
        }
    }
    println!("timeline: {}", evidence.run.join("timeline.png").display());
    Ok(Totals::of(&rows))
}

/// A MiB, a descriptor and a thread each 20 ms, up to what a forgotten one may take of a machine.
fn leak() -> ExitCode {
    let mut kept = Vec::new();
    for n in 0..100_u8 {
        // Written, or the system gives none.
        let memory = vec![n | 1; 1 << 20];
        let thread = std::thread::Builder::new().spawn(std::thread::park);
        match (std::fs::File::open("/dev/null"), thread) {
            (Ok(file), Ok(thread)) => kept.push((memory, file, thread)),
            (file, thread) => {
                eprintln!("error: {:?} {:?}", file.err(), thread.err());
                return ExitCode::from(exit::INITIALIZATION);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    std::hint::black_box(&kept);
    std::thread::sleep(Duration::from_secs(60));
    ExitCode::SUCCESS
}

/// Publishes numbered pictures until it is killed.
fn produce(names: &[String]) -> ExitCode {
    let [shm_name, zmq_endpoint, label] = names else {
        return ExitCode::from(exit::CONFIG);
    };
    let names = Names {
        label: label.clone(),
        shm_name: shm_name.clone(),
        zmq_endpoint: zmq_endpoint.clone(),
        nats_key: String::new(),
    };
    let forever = Duration::from_secs(3600);
    match Feed::open(&names, 640, 360, &Writes::default())
        .and_then(|mut feed| feed.run(30, forever))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(exit::INITIALIZATION)
        }
    }
}
