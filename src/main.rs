//! Parse, run, map to an exit code.

#![deny(unsafe_code)]

use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use clap::Parser;
use cvmmap_streamer::cli::streamer::{Command, ShellArg, StreamerArgs};
use cvmmap_streamer::config::{Input, StreamerConfig};
use cvmmap_streamer::exit::Exit;
use cvmmap_streamer::gpu_info::GpuInfo;
use cvmmap_streamer::pipeline::status::LogWriter;
use cvmmap_streamer::pipeline::stop::{StopReason, StopToken};
use cvmmap_streamer::{cli, heap, pipeline};
use rustix::process::Resource;
use signal_hook::consts::{SIGINT, SIGTERM};

fn main() -> ExitCode {
    let args = match StreamerArgs::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nothing can be done about a closed terminal here.
            let _ = error.print();
            return Exit::of_parse_error(&error).into();
        }
    };
    log_to_stderr(args.report.verbose);
    match &args.command {
        Some(Command::Ctl(args)) => cli::control::ctl(args),
        Some(Command::Discover(args)) => cli::discover::discover(args),
        Some(Command::Completions { shell }) => print_generated(match shell {
            ShellArg::Bash => cli::generated::BASH,
            ShellArg::Zsh => cli::generated::ZSH,
            ShellArg::Fish => cli::generated::FISH,
        }),
        Some(Command::Man) => print_generated(cli::generated::MAN),
        Some(Command::GpuInfo) => gpu_info(),
        None => stream(&args),
    }
    .into()
}

fn stream(args: &StreamerArgs) -> Exit {
    heap::give_back_large_blocks();
    let mut config = match StreamerConfig::from_args(args) {
        Ok(config) => config,
        Err(error) => {
            cli::complain(&format!("error: {error}\n\nFor all flags, try '--help'."));
            return Exit::Invalid;
        }
    };
    if !config.ignored.is_empty() {
        let flags = config.ignored.join(", ");
        log::warn!("{flags}: ignored without --input-mode dummy");
    }
    #[cfg(feature = "nvenc")]
    match args.encoder.gpu.as_deref().map(str::parse).transpose() {
        Ok(choice) => cvmmap_streamer::encode::nvenc::choose_gpu(choice.unwrap_or_default()),
        Err(reason) => {
            cli::complain(&format!("error: --gpu {reason}"));
            return Exit::Invalid;
        }
    }
    if let Err(reason) = descriptors().and_then(|()| threads()) {
        cli::complain(&format!("error: {reason}"));
        return Exit::Pipeline;
    }
    // Before the first thread that stays, so that all have it.
    if let Some(priority) = config.realtime
        && let Err(error) = cvmmap_streamer::realtime::enter(priority)
    {
        log::warn!(
            "--realtime {priority} is not to be had ({error}): the stream runs under the ordinary \
             scheduler. Raise the limit (ulimit -r {priority}) or give CAP_SYS_NICE"
        );
    }
    let stop = StopToken::new();
    if let Err(error) = stop_on_signals(stop.clone()) {
        cli::complain(&format!("error: signals cannot be handled: {error}"));
        return Exit::Pipeline;
    }
    if config.input == Input::Discover {
        match cli::discover::the_one_producer(&config, &stop) {
            Ok(names) => config.input = Input::Cvmmap(names),
            Err(exit) => return exit,
        }
    }
    let (report, result) = pipeline::run(&config, &stop);
    let mut exit = match &result {
        Ok(()) => Exit::Success,
        Err(error) => {
            log::error!("{error}");
            error.exit()
        }
    };
    if let Some(report) = report {
        cli::say(&report.to_string());
        if let Some(path) = &config.report_json
            && let Err(error) = report.write_json(path)
        {
            log::error!("--report-json {}: {error}", path.display());
            if exit == Exit::Success {
                exit = Exit::Pipeline;
            }
        }
    }
    exit
}

/// Sees to enough file descriptors: ZeroMQ aborts the process when it gets none.
fn descriptors() -> Result<(), String> {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        limit.current = limit.maximum;
        // What is there has to do then.
        let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    }
    match rustix::process::getrlimit(Resource::Nofile).current {
        Some(few) if few < LEAST_DESCRIPTORS => Err(format!(
            "{few} open files are allowed, at least {LEAST_DESCRIPTORS} are needed: raise the limit (ulimit -n)"
        )),
        _ => Ok(()),
    }
}

/// Three times what a run with two sinks has open.
const LEAST_DESCRIPTORS: u64 = 64;

/// Sees to enough threads, by having them for a moment: ZeroMQ aborts the process when it gets none.
fn threads() -> Result<(), String> {
    let before = threads_now();
    let gate = RwLock::new(());
    std::thread::scope(|scope| {
        let closed = gate.write();
        for had in 0..LEAST_THREADS {
            let thread = std::thread::Builder::new().stack_size(1 << 16);
            if let Err(error) = thread.spawn_scoped(scope, || drop(gate.read())) {
                drop(closed);
                return Err(format!(
                    "{had} threads can be had ({error}), at least {LEAST_THREADS} are needed: raise the limit (ulimit -u)"
                ));
            }
        }
        drop(closed);
        Ok(())
    })?;
    until_gone(before);
    Ok(())
}

/// Waits until the system counts no more threads than `before`: one that was joined goes on to count against
/// the limit until the kernel has put it away, and under a tight limit the stream's own would be refused for it.
fn until_gone(before: Option<usize>) {
    let patience = Instant::now() + Duration::from_secs(5);
    // Without /proc nobody can say: the pause is what a busy machine was seen to take.
    let unseen = Instant::now() + Duration::from_millis(100);
    loop {
        let done = match before.zip(threads_now()) {
            Some((before, now)) => now <= before || Instant::now() >= patience,
            None => Instant::now() >= unseen,
        };
        if done {
            return;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// This process's threads as the kernel lists them; it takes one off its count before it takes it off here.
fn threads_now() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.flatten().count())
}

/// Half as many again as a run with two sinks and the control plane has.
const LEAST_THREADS: usize = 24;

/// The first SIGINT or SIGTERM drains and ends with the report; a second one leaves at once.
fn stop_on_signals(stop: StopToken) -> std::io::Result<()> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // This order: the check for a second signal runs before the first one is noted.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&asked))?;
        signal_hook::flag::register(signal, Arc::clone(&asked))?;
    }
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if signals.forever().next().is_some() {
                log::info!("stopping: draining what is on its way (again to leave at once)");
                stop.stop(StopReason::Signal);
            }
        })?;
    Ok(())
}

/// Always 0: that there is no GPU is an answer, not a failure.
fn gpu_info() -> Exit {
    let info = GpuInfo::collect();
    cli::say(&info.map_or_else(|reason| reason, |info| info.to_string()));
    Exit::Success
}

fn print_generated(text: &str) -> Exit {
    cli::say(text);
    Exit::Success
}

fn log_to_stderr(verbose: u8) {
    let default = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let env = env_logger::Env::default().default_filter_or(default);
    env_logger::Builder::from_env(env)
        .format_timestamp_millis()
        .format_target(false)
        .target(env_logger::Target::Pipe(Box::new(LogWriter)))
        .init();
}
