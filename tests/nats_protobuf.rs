//! What `ctl` sends, and what the simulator answers, read by an implementation of protobuf that is
//! nobody's here: Python's, installed into a virtual environment of its own.

mod common;
mod nats_support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use common::{LIMIT, expect_exit, finish, streamer};
use nats_support::{Server, Stage, wait_for};
use serde_json::{Value, json};

/// The interpreter that has `google.protobuf`. Without it a line says why nothing is checked, which
/// `scripts/test.sh` does not put up with.
fn python() -> Option<&'static Path> {
    // The tests of this file run at the same time, and the environment is made once.
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PYTHON.get_or_init(install) {
        Ok(python) => Some(python),
        Err(reason) => {
            let said =
                format!("NOT CHECKED against Python's protobuf: it cannot be installed: {reason}");
            let all = std::env::var("CVMMAP_TEST_ALL").is_ok_and(|value| value == "1");
            assert!(!all, "{said}");
            println!("{said}");
            None
        }
    }
}

fn install() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-protobuf");
    let python = folder.join("bin/python");
    let works = || {
        let import = Command::new(&python)
            .args(["-c", "import google.protobuf"])
            .stderr(Stdio::null())
            .status();
        import.is_ok_and(|status| status.success())
    };
    if works() {
        return Ok(python);
    }
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .output()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    };
    let target = folder.to_string_lossy().into_owned();
    run(Path::new("python3"), &["-m", "venv", &target])?;
    run(&python, &["-m", "pip", "install", "--quiet", "protobuf"])?;
    Ok(python)
}

/// Contract section 5.1, as a descriptor; then each line "Message hex" becomes one of JSON.
const READER: &str = r#"
import json, sys
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
D = descriptor_pb2.FieldDescriptorProto
KINDS = {"bool": D.TYPE_BOOL, "u32": D.TYPE_UINT32, "u64": D.TYPE_UINT64, "string": D.TYPE_STRING,
         "int32": D.TYPE_INT32, "sint32": D.TYPE_SINT32}
MESSAGES = {
    "ResetFrameCountResponse": "error=1:int32",
    "GetSourceInfoResponse": "error=1:int32 source_kind=2:int32 timestamp_domain=3:int32 flags=4:u32 "
        "timeline_start_ns=5:u64 timeline_end_ns=6:u64 duration_ns=7:u64 current_timestamp_ns=8:u64 "
        "current_frame_count=9:u32",
    "PlaylistInfo": "has_playlist=1:bool paths=2:*string sort_by_recording_time=3:bool current_index=4:u32 "
        "current_path=5:string",
    "ApplyPlaylistRequest": "paths=1:*string sort_by_recording_time=2:bool",
    "PlaylistResponse": "error=1:int32 playlist_info=2:PlaylistInfo error_message=3:string",
    "CameraControlState": "setting=1:int32 kind=2:int32 value=3:sint32 min_value=4:sint32 max_value=5:sint32",
    "CameraControlCapabilities": "error=1:int32 supported=2:bool supported_settings=3:*int32 error_message=4:string",
    "GetCameraControlRequest": "setting=1:int32",
    "SetCameraControlRequest": "setting=1:int32 mode=2:int32 value=3:sint32",
    "SetCameraControlRangeRequest": "setting=1:int32 min_value=2:sint32 max_value=3:sint32",
    "CameraControlResponse": "error=1:int32 control=2:CameraControlState error_message=3:string",
    "ModuleStatusEvent": "status=1:int32 instance=2:string timestamp_ns=3:u64",
    "Empty": "",
}
file = descriptor_pb2.FileDescriptorProto(name="control.proto", package="cvmmap.proto", syntax="proto3")
for name, fields in MESSAGES.items():
    message = file.message_type.add(name=name)
    for field in fields.split():
        field, kind = field.split(":")
        field, number = field.split("=")
        repeated = kind.startswith("*")
        kind = kind.lstrip("*")
        added = message.field.add(name=field, number=int(number),
            label=D.LABEL_REPEATED if repeated else D.LABEL_OPTIONAL)
        if kind in KINDS:
            added.type = KINDS[kind]
        else:
            added.type = D.TYPE_MESSAGE
            added.type_name = ".cvmmap.proto." + kind
pool = descriptor_pool.DescriptorPool()
pool.Add(file)
for line in sys.stdin:
    name, _, data = line.rstrip("\n").partition(" ")
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("cvmmap.proto." + name))()
    message.ParseFromString(bytes.fromhex(data))
    # What an implementation does not know it keeps: none may be there.
    again = message.SerializeToString(deterministic=True)
    message.DiscardUnknownFields()
    assert message.SerializeToString(deterministic=True) == again, "unknown fields in " + line
    print(json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True)))
"#;

fn read_all(python: &Path, messages: &[(&str, Vec<u8>)]) -> Vec<Value> {
    let mut child = Command::new(python)
        .args(["-c", READER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python");
    let mut lines = String::new();
    for (name, bytes) in messages {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push_str(&format!("{name} {hex}\n"));
    }
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(lines.as_bytes()).expect("python reads");
    drop(stdin);
    let output = child.wait_with_output().expect("python");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[test]
fn pythons_protobuf_reads_what_is_sent() {
    let Some(python) = python() else { return };
    let (stage, server) = (Stage::new(), Server::running());
    let (nats, messages) = server.client();
    let prefix = format!("cvmmap.{}.producer.", stage.key());
    nats.subscribe(&format!("{prefix}>"), None).unwrap();
    let sent = [
        ("info", "Empty", json!({})),
        ("reset", "Empty", json!({})),
        ("playlist", "Empty", json!({})),
        (
            "playlist apply a.svo b.svo --sort-by-recording-time",
            "ApplyPlaylistRequest",
            json!({"paths": ["a.svo", "b.svo"], "sort_by_recording_time": true}),
        ),
        ("camera capabilities", "Empty", json!({})),
        (
            "camera get wb-temperature",
            "GetCameraControlRequest",
            json!({"setting": 4}),
        ),
        (
            "camera set gain -7",
            "SetCameraControlRequest",
            json!({"setting": 2, "mode": 1, "value": -7}),
        ),
        (
            "camera set exposure auto",
            "SetCameraControlRequest",
            json!({"setting": 1, "mode": 2}),
        ),
        (
            "camera set-range auto-exposure-time-range -5 66000",
            "SetCameraControlRangeRequest",
            json!({"setting": 10, "min_value": -5, "max_value": 66000}),
        ),
    ];
    let mut captured = Vec::new();
    for (arguments, name, _) in &sent {
        let asked = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                finish(
                    streamer()
                        .args(["ctl", "--timeout-ms", "30000", "--input-uri", &stage.label])
                        .args(["--nats-url", &server.url()])
                        .args(arguments.split_whitespace()),
                )
            });
            let asked = messages.recv_timeout(LIMIT).expect("asked");
            nats.publish(asked.reply.as_deref().expect("a reply subject"), None, b"");
            expect_exit(&asking.join().expect("ctl"), 0);
            asked
        });
        assert!(asked.subject.starts_with(&prefix));
        captured.push((*name, asked.data));
    }
    let read = read_all(python, &captured);
    for ((arguments, _, expected), read) in sent.iter().zip(read) {
        assert_eq!(read, *expected, "{arguments}");
    }
}

#[test]
fn pythons_protobuf_reads_what_the_simulator_says() {
    let Some(python) = python() else { return };
    let (stage, server) = (Stage::new(), Server::running());
    let (nats, messages) = server.client();
    let status = format!("cvmmap.{}.status", stage.key());
    nats.subscribe(&status, None).unwrap();
    let _sim = stage.sim(
        &server,
        "--width 64 --height 64 --frames 10 --fps 10 --ending loop --media-time --camera",
    );
    let online = messages.recv_timeout(LIMIT).expect("ONLINE");
    let (asker, answers) = server.client();
    let ask = |suffix: &str, data: &[u8]| {
        let subject = format!("cvmmap.{}.producer.{suffix}", stage.key());
        wait_for(suffix, || {
            asker
                .request(&answers, &subject, data, Duration::from_secs(5))
                .filter(|answer| !answer.is_no_responders())
        })
        .data
    };
    let read = read_all(
        python,
        &[
            ("ModuleStatusEvent", online.data),
            ("GetSourceInfoResponse", ask("source.info", b"")),
            ("ResetFrameCountResponse", ask("source.reset", b"")),
            // ApplyPlaylistRequest: paths = ["64x64"]
            (
                "PlaylistResponse",
                ask("source.playlist.apply", b"\x0a\x0564x64"),
            ),
            (
                "CameraControlCapabilities",
                ask("camera_control.capabilities", b""),
            ),
            // SetCameraControlRequest: setting 2, mode 1, value -1 (zigzag 1)
            (
                "CameraControlResponse",
                ask("camera_control.set", b"\x08\x02\x10\x01\x18\x01"),
            ),
        ],
    );
    assert_eq!(read[0]["status"], 1);
    assert_eq!(read[0]["instance"], stage.label.as_str());
    assert_eq!(read[1]["source_kind"], 2);
    assert_eq!(read[1]["duration_ns"], "1000000000");
    assert_eq!(read[1]["flags"], 0x11);
    assert_eq!(read[2], json!({}));
    assert_eq!(read[3]["playlist_info"]["paths"], json!(["64x64"]));
    assert_eq!(read[4]["supported_settings"], json!([1, 2]));
    assert_eq!(
        read[5]["control"],
        json!({"setting": 2, "kind": 1, "value": -1})
    );
}
