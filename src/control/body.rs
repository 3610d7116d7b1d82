//! Body tracking packets (contract section 6). Bytes only.
//!
//! A packet is a header of 64 bytes and `body_count` records of 3248, little-endian throughout.
//! Every length is checked before anything is read; what follows the last record is ignored.

/// Bytes of the header.
pub const HEADER: usize = 64;
/// Bytes of one body's record.
pub const RECORD: usize = 3248;
/// Keypoints for which a record has room.
pub const KEYPOINTS: usize = 38;
/// More bodies than this in one picture come from no tracker.
pub const MOST_BODIES: usize = 256;

/// One packet: the bodies of one frame.
#[derive(Debug, Clone, PartialEq)]
pub struct BodyFrame {
    pub frame_count: u32,
    /// The capture time of the frame that it belongs to, on the producer's clock.
    pub timestamp_ns: u64,
    pub sdk_timestamp_ns: u64,
    pub coordinate_system: CoordinateSystem,
    pub reference_frame: ReferenceFrame,
    pub format: BodyFormat,
    pub flags: u16,
    /// The producer's instance; may be empty.
    pub label: String,
    pub bodies: Vec<Body>,
}

/// One body. NaN occurs in boxes that the tracker left unset.
#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    pub id: i32,
    pub tracking: TrackingState,
    pub moving: bool,
    pub confidence: f32,
    /// Metres or millimetres, as the producer is set up; in its coordinate system.
    pub position: [f32; 3],
    pub velocity: [f32; 3],
    /// Corners in pixels of the left picture.
    pub box_2d: [[f32; 2]; 4],
    pub dimensions: [f32; 3],
    /// In pixels of the left picture; as many as the body format has, at most.
    pub keypoints_2d: Vec<[f32; 2]>,
    pub keypoints_3d: Vec<[f32; 3]>,
    pub keypoint_confidence: Vec<f32>,
}

macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $code:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($variant = $code,)* }
        impl $name {
            fn from_wire(code: u8) -> Result<Self, BodyError> {
                match code {
                    $($code => Ok(Self::$variant),)*
                    value => Err(BodyError::Enum { field: stringify!($name), value }),
                }
            }
        }
    };
}

wire_enum!(CoordinateSystem {
    Unknown = 0,
    Image = 1,
    RightHandedYUp = 2,
});
wire_enum!(ReferenceFrame {
    Unknown = 0,
    Camera = 1,
    World = 2,
});
wire_enum!(BodyFormat {
    Body18 = 0,
    Body34 = 1,
    Body38 = 2,
});
wire_enum!(TrackingState {
    Off = 0,
    Ok = 1,
    Searching = 2,
    Terminate = 3,
});

impl BodyFormat {
    pub const fn keypoints(self) -> usize {
        match self {
            Self::Body18 => 18,
            Self::Body34 => 34,
            Self::Body38 => 38,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("{len} bytes are shorter than the {HEADER} bytes of the header")]
    Short { len: usize },
    #[error("magic {0:#04x} instead of 0x62")]
    Magic(u8),
    #[error("version {0}: this program knows 1")]
    Version(u8),
    #[error("records of {0} bytes instead of {RECORD}")]
    RecordSize(u16),
    #[error("{bodies} bodies in a payload said to have {said} bytes, of which {there} are there")]
    PayloadSize {
        bodies: usize,
        said: u32,
        there: usize,
    },
    #[error("{0} bodies are more than {MOST_BODIES}")]
    TooMany(usize),
    #[error("{value} is no {field}")]
    Enum { field: &'static str, value: u8 },
    #[error("{count} keypoints are more than {KEYPOINTS}")]
    Keypoints { count: u16 },
}

impl BodyFrame {
    /// # Errors
    ///
    /// What contract section 6 says to reject. Nothing outside `packet` is believed.
    pub fn parse(packet: &[u8]) -> Result<Self, BodyError> {
        if packet.len() < HEADER {
            return Err(BodyError::Short { len: packet.len() });
        }
        let header = Fields(&packet[..HEADER]);
        if header.u8(0) != 0x62 {
            return Err(BodyError::Magic(header.u8(0)));
        }
        if header.u8(2) != 1 {
            return Err(BodyError::Version(header.u8(2)));
        }
        let bodies = usize::from(header.u16(24));
        if header.u16(26) != RECORD as u16 {
            return Err(BodyError::RecordSize(header.u16(26)));
        }
        let (said, there) = (header.u32(36), packet.len() - HEADER);
        if said as usize != bodies * RECORD || there < bodies * RECORD {
            return Err(BodyError::PayloadSize {
                bodies,
                said,
                there,
            });
        }
        if bodies > MOST_BODIES {
            return Err(BodyError::TooMany(bodies));
        }
        let format = BodyFormat::from_wire(header.u8(28))?;
        for (field, offset, most) in [("selection", 29, 1), ("model", 30, 2), ("precision", 31, 2)]
        {
            let value = header.u8(offset);
            if value > most {
                return Err(BodyError::Enum { field, value });
            }
        }
        let label = &packet[40..64];
        let end = label.iter().position(|byte| *byte == 0).unwrap_or(24);
        Ok(Self {
            frame_count: header.u32(4),
            timestamp_ns: header.u64(8),
            sdk_timestamp_ns: header.u64(16),
            coordinate_system: CoordinateSystem::from_wire(header.u8(1))?,
            reference_frame: ReferenceFrame::from_wire(header.u8(34))?,
            format,
            flags: header.u16(32),
            label: String::from_utf8_lossy(&label[..end]).into_owned(),
            bodies: packet[HEADER..HEADER + bodies * RECORD]
                .chunks_exact(RECORD)
                .map(|record| Body::parse(&Fields(record)))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl Body {
    fn parse(record: &Fields<'_>) -> Result<Self, BodyError> {
        let count = record.u16(3244);
        let keypoints = usize::from(count);
        if keypoints > KEYPOINTS {
            return Err(BodyError::Keypoints { count });
        }
        let action = record.u8(5);
        if action > 1 {
            return Err(BodyError::Enum {
                field: "action state",
                value: action,
            });
        }
        Ok(Self {
            id: record.u32(0) as i32,
            tracking: TrackingState::from_wire(record.u8(4))?,
            moving: action == 1,
            confidence: record.f32(8),
            position: record.floats(12),
            velocity: record.floats(24),
            box_2d: std::array::from_fn(|corner| record.floats(60 + corner * 8)),
            dimensions: record.floats(188),
            keypoints_2d: (0..keypoints).map(|n| record.floats(200 + n * 8)).collect(),
            keypoints_3d: (0..keypoints)
                .map(|n| record.floats(504 + n * 12))
                .collect(),
            keypoint_confidence: (0..keypoints).map(|n| record.f32(960 + n * 4)).collect(),
        })
    }
}

/// Little-endian fields of a slice whose length was checked by whoever made it.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("N bytes")
    }

    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn f32(&self, at: usize) -> f32 {
        f32::from_le_bytes(self.bytes(at))
    }

    fn floats<const N: usize>(&self, at: usize) -> [f32; N] {
        std::array::from_fn(|n| self.f32(at + n * 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn valid() -> Vec<u8> {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/control/body_tracking_valid.bin"
        );
        std::fs::read(path).unwrap()
    }

    #[test]
    fn the_fixture_has_the_values_that_its_manifest_names() {
        let frame = BodyFrame::parse(&valid()).unwrap();
        assert_eq!((frame.frame_count, frame.timestamp_ns), (42, 1000));
        assert_eq!(frame.sdk_timestamp_ns, 2000);
        assert_eq!(frame.format, BodyFormat::Body18);
        assert_eq!(frame.coordinate_system, CoordinateSystem::RightHandedYUp);
        assert_eq!(frame.reference_frame, ReferenceFrame::World);
        assert_eq!((frame.flags, frame.label.as_str()), (17, "example"));
        let [body] = &frame.bodies[..] else {
            panic!("one body");
        };
        assert_eq!((body.id, body.tracking), (7, TrackingState::Ok));
        assert_eq!((body.moving, body.confidence), (false, 88.5));
        assert_eq!(body.position, [1.0, 2.0, 3.0]);
        assert_eq!(body.keypoints_2d.len(), 1);
    }

    #[test]
    fn each_thing_to_reject_is_rejected_by_name() {
        let with = |offset: usize, value: u8| {
            let mut packet = valid();
            packet[offset] = value;
            BodyFrame::parse(&packet).unwrap_err()
        };
        assert_eq!(with(0, 0x5A), BodyError::Magic(0x5A));
        assert_eq!(with(2, 2), BodyError::Version(2));
        assert_eq!(with(26, 1), BodyError::RecordSize(0x0C01));
        assert!(matches!(with(24, 2), BodyError::PayloadSize { .. }));
        assert!(matches!(with(36, 0), BodyError::PayloadSize { .. }));
        for (offset, value) in [(1, 3), (28, 3), (29, 2), (30, 3), (31, 3), (34, 3)] {
            assert!(matches!(with(offset, value), BodyError::Enum { .. }));
        }
        assert!(matches!(with(HEADER + 4, 4), BodyError::Enum { .. }));
        assert!(matches!(
            with(HEADER + 3244, 39),
            BodyError::Keypoints { .. }
        ));
        let short = BodyFrame::parse(&valid()[..HEADER + RECORD - 1]).unwrap_err();
        assert!(matches!(short, BodyError::PayloadSize { .. }));
        assert_eq!(BodyFrame::parse(&[]), Err(BodyError::Short { len: 0 }));
    }

    #[test]
    fn an_empty_picture_and_trailing_bytes_are_legal() {
        let mut packet = valid();
        packet.push(0);
        assert!(BodyFrame::parse(&packet).is_ok());
        packet.truncate(HEADER);
        packet[24] = 0;
        packet[36..40].fill(0);
        assert_eq!(BodyFrame::parse(&packet).unwrap().bodies, []);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut packet in proptest::collection::vec(any::<u8>(), 0..4000), real in any::<bool>()) {
            if real && packet.len() >= 40 {
                // Past the first checks, into the rest.
                packet[0] = 0x62;
                packet[2] = 1;
                packet[26..28].copy_from_slice(&(RECORD as u16).to_le_bytes());
                let bodies = (packet.len().saturating_sub(HEADER) / RECORD) as u16;
                packet[24..26].copy_from_slice(&bodies.to_le_bytes());
                packet[36..40].copy_from_slice(&(u32::from(bodies) * RECORD as u32).to_le_bytes());
            }
            let _ = BodyFrame::parse(&packet);
        }
    }
}
