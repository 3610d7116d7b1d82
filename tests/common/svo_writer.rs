//! Writes recordings for tests: the layout of the contract's section 9, made with the MCAP
//! library and by hand, never with the reader under test.

use std::collections::BTreeMap;
use std::io::Cursor;

use base64::Engine as _;
use mcap::{Compression, WriteOptions, records::MessageHeader};

/// What kind of file is written.
#[derive(Debug, Clone)]
pub struct SvoOptions {
    pub serial: u32,
    pub fps: u32,
    pub compression: Option<Compression>,
    pub chunk_size: u64,
    /// Chunks have a checksum; without it damage of a payload is for the decoder to find.
    pub checksums: bool,
    /// `side_by_side` for a recording; anything else for a file without video.
    pub video_topic: &'static str,
}

impl Default for SvoOptions {
    fn default() -> Self {
        Self {
            serial: 31_000_009,
            fps: 30,
            compression: None,
            chunk_size: 786_432,
            checksums: true,
            video_topic: "side_by_side",
        }
    }
}

/// A whole recording of `frames`: (timestamp in ns, payload, key).
pub fn write_svo<'p>(
    options: &SvoOptions,
    frames: impl IntoIterator<Item = (u64, &'p [u8], bool)>,
) -> Vec<u8> {
    let mut writer = WriteOptions::new()
        .profile("")
        .library("libmcap stereolabs")
        .compression(options.compression)
        .chunk_size(Some(options.chunk_size))
        .calculate_chunk_crcs(options.checksums)
        .create(Cursor::new(Vec::new()))
        .expect("writing to memory");
    let mut channel = |topic: &str, schema: &str, encoding: &str, message: &str| {
        let schema = writer.add_schema(schema, encoding, b"").expect("a schema");
        let id = writer
            .add_channel(schema, topic, message, &BTreeMap::new())
            .expect("a channel");
        (id, topic.to_owned())
    };
    let camera = format!("Camera_SN{}", options.serial);
    let video_topic = format!("{camera}/{}", options.video_topic);
    let header = channel("svo_header", "sl_type", "jsonschema", "json");
    let video = channel(
        &video_topic,
        &video_topic,
        "zed_sdk_encoded",
        "zed_sdk_encoded",
    );
    let sensors = channel(
        &format!("{camera}/sensors"),
        "sensors",
        "jsonschema",
        "json",
    );
    let footer = channel("svo_footer", "sl_type", "jsonschema", "json");
    let mut put = |channel: u16, time: u64, data: &[u8]| {
        let header = MessageHeader {
            channel_id: channel,
            sequence: 0,
            log_time: time,
            publish_time: time,
        };
        writer
            .write_to_known_channel(&header, data)
            .expect("writing to memory");
    };

    // Weeks away from the frames, as in real files.
    put(
        header.0,
        1_771_000_000_000_000_000,
        header_json(options).as_bytes(),
    );
    let (mut times, mut last_key) = (Vec::new(), 0);
    for (index, (time, payload, key)) in frames.into_iter().enumerate() {
        if key {
            last_key = index as u32;
        }
        for half in [0, 1] {
            put(
                sensors.0,
                time - 5_000_000 * half,
                sensor_json(time).as_bytes(),
            );
        }
        put(
            video.0,
            time,
            &frame_message(payload, time, index as u32, last_key, key),
        );
        times.push(time);
    }
    let list = serde_json::json!({ video_topic: times }).to_string();
    put(footer.0, 1_779_000_000_000_000_000, list.as_bytes());
    writer.finish().expect("writing to memory");
    writer.into_inner().into_inner()
}

/// One message: u32 total, u32 n, payload, 56 bytes (contract section 2).
pub fn frame_message(payload: &[u8], time: u64, index: u32, last_key: u32, key: bool) -> Vec<u8> {
    let n = payload.len() as u32;
    let mut data = Vec::with_capacity(payload.len() + 64);
    data.extend((4 + n + 56).to_le_bytes());
    data.extend(n.to_le_bytes());
    data.extend(payload);
    data.extend(1920_u32.to_le_bytes()); // 0x00 width, not looked at
    data.extend(600_u32.to_le_bytes()); // 0x04 height, not looked at
    data.extend(0x5C00_2C00_u32.to_le_bytes()); // 0x08
    data.extend(1_i32.to_le_bytes()); // 0x0C
    data.extend(2_i32.to_le_bytes()); // 0x10
    data.extend((-1_i32).to_le_bytes()); // 0x14
    data.extend(time.to_le_bytes()); // 0x18
    data.extend(n.to_le_bytes()); // 0x20
    data.extend(if key { 3_i32 } else { 0 }.to_le_bytes()); // 0x24
    data.extend(last_key.to_le_bytes()); // 0x28
    data.extend(index.to_le_bytes()); // 0x2C
    data.extend(time.to_le_bytes()); // 0x30
    data
}

fn header_json(options: &SvoOptions) -> String {
    let mut block = [0_u8; 128];
    block[0x08..0x0C].copy_from_slice(&options.serial.to_le_bytes());
    block[0x0C..0x10].copy_from_slice(&options.fps.to_le_bytes());
    let block = base64::engine::general_purpose::STANDARD.encode(block);
    serde_json::json!({
        "version": "2.0.5",
        "ZED_SDK_version": "5.1.2",
        "IMU_frequency": 200.0,
        "header": block,
    })
    .to_string()
}

fn sensor_json(time: u64) -> String {
    let mut data = [0_u8; 360];
    data[0x10..0x18].copy_from_slice(&time.to_le_bytes());
    let data = base64::engine::general_purpose::STANDARD.encode(data);
    serde_json::json!({ "__title__": "sensors", "data": data }).to_string()
}
