//! A negative control for every kind of leak, and what depends on the kind of GPU: each in a process of its own,
//! since leaks are told when that ends, and switches are read once.

use std::ffi::c_void;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::ptr::null_mut;

use nvenc_emu::cuda::*;
use nvenc_emu::report::{Stats, stats};

use crate::client::*;
use crate::{READ_ONLY, alone, shared_mapping};

/// Leaves things behind; what the emulator has to say of each.
const KINDS: &[(&str, fn())] = &[
    ("contexts", || std::mem::forget(Client::bare())),
    ("streams", || {
        let _client = Client::bare();
        cuda!(cuStreamCreate(&raw mut *Box::leak(Box::new(null_mut())), 1));
    }),
    ("events", || {
        let _client = Client::bare();
        let mut event: *mut c_void = null_mut();
        assert_eq!(cuda!(cuEventCreate(&raw mut event, 2)), 0);
    }),
    ("modules", || {
        let _client = Client::bare();
        let mut module: *mut c_void = null_mut();
        let ptx = c".version 4.0\n.target sm_50\n.visible .entry mix()\n{ ret; }\n";
        assert_eq!(
            cuda!(cuModuleLoadData(&raw mut module, ptx.as_ptr().cast())),
            0
        );
    }),
    ("allocations", || {
        let _client = Client::bare();
        let mut memory = 0;
        assert_eq!(cuda!(cuMemAlloc_v2(&raw mut memory, 64)), 0);
    }),
    ("registered mappings", || {
        let _client = Client::bare();
        let memory = shared_mapping(libc::PROT_READ, libc::MAP_SHARED);
        assert_eq!(cuda!(cuMemHostRegister_v2(memory, 8192, READ_ONLY)), 0);
    }),
    ("sessions", || {
        let mut client = Client::opened();
        client.session = null_mut();
    }),
];

/// Not a test of its own: what the others start.
#[test]
fn child() {
    let Ok(kind) = std::env::var("NVENC_EMU_TEST_LEAVES") else {
        return;
    };
    match KINDS.iter().find(|(name, _)| *name == kind) {
        Some((_, leave)) => leave(),
        None if kind == "a sized buffer" => {
            // The chip that this runs on leaves no choice of it.
            let mut client = Client::opened();
            let vbv = client.initialize(|_, config| config.rcParams.vbvBufferSize = 100_000);
            assert_eq!(vbv, 8);
            client.end();
        }
        None if kind == "a locked emulator" => {
            let mut client = Client::ready();
            client.submitted();
            let (session, output) = (client.session as usize, client.output as usize);
            let (context, lock) = (
                client.context as usize,
                client.list.nvEncLockBitstream.unwrap(),
            );
            std::mem::forget(client);
            std::thread::spawn(move || {
                cuda!(cuCtxSetCurrent(context as Handle));
                let mut params = nvenc_sys::NV_ENC_LOCK_BITSTREAM {
                    version: nvenc_sys::NV_ENC_LOCK_BITSTREAM_VER,
                    outputBitstream: output as Handle,
                    ..Default::default()
                };
                // SAFETY: a live session; the call takes longer than this process lives.
                unsafe { lock(session as Handle, &raw mut params) };
            });
            while !stats().calls.contains_key("nvEncLockBitstream") {
                std::thread::yield_now();
            }
        }
        None => drop(Client::bare()),
    }
    // Not a return: the emulator's handler runs at exit.
    std::process::exit(0);
}

/// How a process that leaves `kind` ends, and what the emulator wrote of it.
fn run(kind: &str, switches: &[(&str, &str)]) -> (ExitStatus, Stats) {
    let folder = std::env::temp_dir().join(format!(
        "nvenc-emu-{}-{}",
        std::process::id(),
        kind.replace(' ', "-")
    ));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("stats.json");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "leaks::child", "--nocapture"])
        .env("NVENC_EMU_TEST_LEAVES", kind)
        .env("NVENC_EMU_STATS", &path);
    for (name, value) in switches {
        command.env(format!("NVENC_EMU_{name}"), value);
    }
    let output = command.output().unwrap();
    let text = std::fs::read(&path);
    std::fs::remove_dir_all(&folder).unwrap();
    (
        output.status,
        serde_json::from_slice(&text.unwrap()).unwrap(),
    )
}

/// As [`run`], of a process that ends well.
fn after(kind: &str, switches: &[(&str, &str)]) -> Stats {
    let (status, stats) = run(kind, switches);
    assert!(status.success() && stats.finished, "{kind}: {status}");
    stats
}

#[test]
fn each_thing_that_is_left_behind_is_told_at_the_end_of_the_process() {
    let _one = alone();
    for (kind, _) in KINDS {
        assert_eq!(after(kind, &[]).leaks, [format!("1 {kind}")]);
    }
    assert_eq!(after("nothing", &[]).leaks, Vec::<String>::new());
    let locked = after("a locked emulator", &[("ENCODE_MS", "600000")]).leaks;
    assert_eq!(locked[0], "sessions are locked");
}

/// The names of the list in the emulator's source.
#[test]
fn every_kind_of_leak_has_its_control() {
    let _one = alone();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda.rs");
    let text = std::fs::read_to_string(source).unwrap();
    let list = text.split("for (what, count) in [").nth(1).unwrap();
    let list = list.split("] {").next().unwrap();
    let mut told: Vec<_> = list.split('"').skip(1).step_by(2).collect();
    // Told by session.rs.
    told.push("sessions");
    let controls: Vec<_> = KINDS.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(told, controls);
}

#[test]
fn a_buffer_of_ones_own_size_is_refused_where_the_chip_leaves_no_choice() {
    let _one = alone();
    let seen = after("a sized buffer", &[("CAPS", "small")]);
    assert_eq!(seen.violation_counts.get("initialize"), Some(&1));
}

#[test]
fn strict_is_the_end_of_a_process_at_its_first_violation() {
    let _one = alone();
    let switches = [("CAPS", "small"), ("STRICT", "abort")];
    let (status, stats) = run("a sized buffer", &switches);
    assert_eq!(status.signal(), Some(libc::SIGABRT));
    // What was seen is there all the same.
    assert_eq!(stats.violation_counts.get("initialize"), Some(&1));
    assert!(!stats.finished);
}
