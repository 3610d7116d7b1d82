//! The producer's side of NATS: status, requests, bodies, discovery (contract sections 5 and 6),
//! with what the real one does that a consumer must live with.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use crate::names::Names;
use crate::nats::{Message, Nats};
use crate::nats_messages::{
    INVALID_PAYLOAD, OFFLINE, ONLINE, OUT_OF_RANGE, STREAM_RESET, UNSUPPORTED, Writer, fields,
    number_of, signed_of, status,
};
use crate::producer::unix_ns;

/// What the source is, for `source.info`.
#[derive(Debug, Clone, Copy, Default)]
pub struct SourceKind {
    /// Frames until it ends or begins anew; 0 is live.
    pub frames: u64,
    pub interval_ns: u64,
    /// Capture time of frame 0, where frames are not stamped with the system clock.
    pub first_capture_ns: u64,
    /// `source_kind` and `timestamp_domain` (contract section 5.1).
    pub told_kind: u64,
    pub told_clock: u64,
    /// It begins anew at its end, and says so or not.
    pub loops: bool,
    pub loops_silently: bool,
    pub has_depth: bool,
    pub has_bodies: bool,
    /// Camera settings can be read and written.
    pub camera: bool,
}

/// What requests want of the loop that publishes frames, and what that tells about itself.
#[derive(Debug, Default)]
pub struct Source {
    reset: AtomicBool,
    playlist: Mutex<Vec<String>>,
    switched: AtomicBool,
    frame_id: AtomicU32,
    timestamp_ns: AtomicU64,
    /// Exposure and gain.
    camera: Mutex<[i32; 2]>,
}

impl Source {
    /// A frame was published.
    pub fn note(&self, frame_id: u32, timestamp_ns: u64) {
        // Relaxed: two numbers for an answer, which may be a frame apart.
        self.frame_id.store(frame_id, Ordering::Relaxed);
        self.timestamp_ns.store(timestamp_ns, Ordering::Relaxed);
    }

    /// Somebody asked for frame 0.
    pub fn take_reset(&self) -> bool {
        self.reset.swap(false, Ordering::Relaxed)
    }

    /// A playlist was applied: its paths.
    pub fn take_playlist(&self) -> Option<Vec<String>> {
        self.switched
            .swap(false, Ordering::Relaxed)
            .then(|| self.paths().clone())
    }

    fn paths(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.playlist.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection of a running producer.
#[derive(Debug, Clone)]
pub struct NatsProducer {
    nats: Nats,
    instance: String,
    prefix: String,
}

impl NatsProducer {
    /// Connects, serves requests on a thread of its own, and says ONLINE.
    ///
    /// # Errors
    ///
    /// If the server is not there: the real producer exits 1.
    pub fn start(
        url: &str,
        names: &Names,
        kind: SourceKind,
        source: &Arc<Source>,
    ) -> io::Result<Self> {
        let (nats, messages) = Nats::connect(url)?;
        let id = format!("SIM{:X}{:X}", std::process::id(), unix_ns());
        let prefix = format!("cvmmap.{}", names.nats_key);
        let mut served = Vec::new();
        for (name, suffix) in ENDPOINTS {
            let sid = nats.subscribe(&format!("{prefix}.producer.{suffix}"), Some("q"))?;
            served.push((sid, Served::Request(name)));
        }
        for verb in ["PING", "INFO", "STATS"] {
            for subject in [
                format!("$SRV.{verb}"),
                format!("$SRV.{verb}.{SERVICE}"),
                format!("$SRV.{verb}.{SERVICE}.{id}"),
            ] {
                served.push((nats.subscribe(&subject, None)?, Served::Verb(verb)));
            }
        }
        let own = Server {
            nats: nats.clone(),
            names: names.clone(),
            kind,
            source: Arc::clone(source),
            id,
        };
        std::thread::Builder::new()
            .name("nats-serve".to_owned())
            .spawn(move || {
                for message in messages {
                    if let Some((_, what)) = served.iter().find(|(sid, _)| *sid == message.sid) {
                        own.serve(*what, &message);
                    }
                }
            })?;
        let producer = Self {
            nats,
            instance: names.label.clone(),
            prefix,
        };
        producer.tell(ONLINE);
        Ok(producer)
    }

    pub fn offline(&self) {
        self.tell(OFFLINE);
    }

    pub fn stream_reset(&self) {
        self.tell(STREAM_RESET);
    }

    pub fn body(&self, packet: &[u8]) {
        self.nats
            .publish(&format!("{}.body", self.prefix), None, packet);
    }

    fn tell(&self, code: u64) {
        let event = status(code, &self.instance, unix_ns());
        self.nats
            .publish(&format!("{}.status", self.prefix), None, &event);
    }
}

/// The number of an enumeration's value that `flag` names; they count from 0.
///
/// # Errors
///
/// If it is none of them.
pub fn told(
    flag: &str,
    given: Option<&str>,
    names: [&str; 3],
    otherwise: u64,
) -> Result<u64, String> {
    let Some(given) = given else {
        return Ok(otherwise);
    };
    (0..)
        .zip(names)
        .find_map(|(number, name)| (name == given).then_some(number))
        .ok_or_else(|| format!("{flag} '{given}' is none of {}", names.join(", ")))
}

const SERVICE: &str = "cvmmap_producer";

/// Endpoint names and the ends of their subjects (contract sections 5 and 5.4).
const ENDPOINTS: [(&str, &str); 12] = [
    ("source_info", "source.info"),
    ("source_reset", "source.reset"),
    ("source_playlist_apply", "source.playlist.apply"),
    ("source_playlist_info", "source.playlist.info"),
    ("camera_control_capabilities", "camera_control.capabilities"),
    ("camera_control_get", "camera_control.get"),
    ("camera_control_set", "camera_control.set"),
    ("camera_control_set_range", "camera_control.set_range"),
    ("recorder_svo_capabilities", "recorder.svo.capabilities"),
    ("recorder_svo_start", "recorder.svo.start"),
    ("recorder_svo_stop", "recorder.svo.stop"),
    ("recorder_svo_status", "recorder.svo.status"),
];

#[derive(Debug, Clone, Copy)]
enum Served {
    Request(&'static str),
    Verb(&'static str),
}

struct Server {
    nats: Nats,
    names: Names,
    kind: SourceKind,
    source: Arc<Source>,
    id: String,
}

impl Server {
    fn serve(&self, what: Served, message: &Message) {
        let Some(reply) = &message.reply else { return };
        let answer = match what {
            Served::Request(name) => self.request(name, &message.data),
            Served::Verb(verb) => self.describe(verb),
        };
        self.nats.publish(reply, None, &answer);
    }

    fn request(&self, name: &str, data: &[u8]) -> Vec<u8> {
        let refuse = |code, words: &str| Writer::default().number(1, code).text(3, words).0;
        match name {
            "source_info" => self.info(),
            "source_reset" => {
                self.source.reset.store(true, Ordering::Relaxed);
                // OK is zero, and a message of zeros has no bytes.
                Vec::new()
            }
            "source_playlist_info" => {
                let list = self.playlist();
                Writer::default().bytes(2, &list).0
            }
            "source_playlist_apply" => {
                let Some(all) = fields(data) else {
                    return refuse(INVALID_PAYLOAD, "the request is no message");
                };
                let paths: Vec<String> = all
                    .iter()
                    .filter_map(|field| match field {
                        crate::nats_messages::Field::Bytes(1, path) => {
                            String::from_utf8(path.clone()).ok()
                        }
                        _ => None,
                    })
                    .collect();
                if paths.is_empty() {
                    return refuse(INVALID_PAYLOAD, "playlist paths must not be empty");
                }
                *self.source.paths() = paths;
                self.source.switched.store(true, Ordering::Relaxed);
                Writer::default().bytes(2, &self.playlist()).0
            }
            "camera_control_capabilities" => {
                let answer = Writer::default().number(2, u64::from(self.kind.camera));
                if self.kind.camera {
                    answer.bytes(3, &[1, 2]).0 // exposure, gain; packed
                } else {
                    answer.0
                }
            }
            _ if name.starts_with("camera_control") && self.kind.camera => {
                self.camera(name, data, refuse)
            }
            _ if name.starts_with("camera_control") => {
                refuse(UNSUPPORTED, "camera control is not supported")
            }
            "recorder_svo_capabilities" => Vec::new(),
            _ => {
                let words = "SVO recording is not supported by the active producer";
                Writer::default().number(1, UNSUPPORTED).text(10, words).0
            }
        }
    }

    fn info(&self) -> Vec<u8> {
        let kind = &self.kind;
        let (frames, interval) = (kind.frames, kind.interval_ns);
        let flags = [
            (kind.loops, 0x01),
            (kind.has_depth, 0x02),
            (kind.has_bodies, 0x04),
            (kind.loops && !kind.loops_silently, 0x10),
        ];
        let flags = flags.iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum();
        Writer::default()
            .number(2, kind.told_kind)
            .number(3, kind.told_clock)
            .number(4, flags)
            .number(5, kind.first_capture_ns)
            .number(
                6,
                kind.first_capture_ns + frames.saturating_sub(1) * interval,
            )
            .number(7, frames * interval)
            .number(8, self.source.timestamp_ns.load(Ordering::Relaxed))
            .number(9, self.source.frame_id.load(Ordering::Relaxed).into())
            .0
    }

    /// `PlaylistInfo`.
    fn playlist(&self) -> Vec<u8> {
        let paths = self.source.paths();
        let mut list = Writer::default().number(1, u64::from(!paths.is_empty()));
        for path in paths.iter() {
            list = list.text(2, path);
        }
        list.text(5, paths.first().map_or("", String::as_str)).0
    }

    fn camera(&self, name: &str, data: &[u8], refuse: impl Fn(u64, &str) -> Vec<u8>) -> Vec<u8> {
        let all = fields(data).unwrap_or_default();
        let setting = number_of(&all, 1);
        if setting == 0 {
            return refuse(INVALID_PAYLOAD, "no setting is given");
        }
        if !(1..=2).contains(&setting) {
            return refuse(UNSUPPORTED, "the camera has no such setting");
        }
        let mut camera = self
            .source
            .camera
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let value = &mut camera[setting as usize - 1];
        match name {
            "camera_control_get" => {}
            "camera_control_set" => match number_of(&all, 2) {
                0 => return refuse(INVALID_PAYLOAD, "no mode is given"),
                // -1 is what automatic control reads as.
                2 => *value = -1,
                _ => {
                    let wanted = signed_of(&all, 3);
                    if !(-1..=100).contains(&wanted) {
                        return refuse(OUT_OF_RANGE, "-1 to 100");
                    }
                    *value = wanted;
                }
            },
            _ => return refuse(UNSUPPORTED, "the camera has no ranges"),
        }
        let state = Writer::default()
            .number(1, setting)
            .number(2, 1)
            .signed(3, *value)
            .0;
        Writer::default().bytes(2, &state).0
    }

    fn describe(&self, verb: &str) -> Vec<u8> {
        let names = &self.names;
        let (namespace, _) = names
            .shm_name
            .split_once('_')
            .unwrap_or((&names.shm_name, ""));
        let prefix = format!("cvmmap.{}", names.nats_key);
        let mut answer = json!({
            "type": format!("io.nats.micro.v1.{}_response", verb.to_ascii_lowercase()),
            "name": SERVICE,
            "id": self.id,
            "version": "0.1.0",
            "metadata": {
                "instance_name": names.label,
                "namespace": namespace,
                "base_name": names.shm_name,
                "nats_target_key": names.nats_key,
                "shm_name": names.shm_name,
                "zmq_addr": names.zmq_endpoint,
                "body_subject": format!("{prefix}.body"),
                "status_subject": format!("{prefix}.status"),
                "producer_subject_prefix": format!("{prefix}.producer"),
                "backend": "sim",
                "build_tag": env!("CARGO_PKG_VERSION"),
            },
        });
        if verb != "PING" {
            let of = |(name, suffix): &(&str, &str)| {
                json!({
                    "name": name,
                    "subject": format!("{prefix}.producer.{suffix}"),
                    "queue_group": "q",
                })
            };
            answer["endpoints"] = ENDPOINTS.iter().map(of).collect();
        }
        answer.to_string().into_bytes()
    }
}
