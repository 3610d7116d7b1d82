//! The `svo_header` and `svo_footer` messages (contract section 1). All of it is hints.

use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What the header of a recording says about it; every part may be missing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SvoHeader {
    pub version: Option<String>,
    pub sdk_version: Option<String>,
    pub serial: Option<u32>,
    /// Nominal frames per second.
    pub fps: Option<u32>,
}

#[derive(Deserialize)]
struct Json {
    version: Option<serde_json::Value>,
    #[serde(alias = "ZED_SDK_version")]
    zed_sdk_version: Option<serde_json::Value>,
    header: Option<serde_json::Value>,
}

impl SvoHeader {
    /// Reads what can be read; what cannot is left out.
    ///
    /// The `header` key is base64 of 128 bytes, little-endian: u32 width of one eye, u32 height,
    /// u32 serial number at 0x08, u32 frames per second at 0x0C, and fields of unknown meaning.
    pub fn parse(json: &[u8]) -> Self {
        let Ok(json) = serde_json::from_slice::<Json>(json) else {
            return Self::default();
        };
        let text = |value: Option<serde_json::Value>| Some(value?.as_str()?.to_owned());
        let block = text(json.header)
            .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok())
            .unwrap_or_default();
        let word = |at: usize| {
            let bytes = block.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?)).filter(|value| *value != 0)
        };
        Self {
            version: text(json.version),
            sdk_version: text(json.zed_sdk_version),
            serial: word(0x08),
            fps: word(0x0C).filter(|fps| (1..=1000).contains(fps)),
        }
    }
}

/// How many frames the footer lists for the channel `topic`: one JSON array of timestamps for
/// each channel.
pub fn footer_frame_count(json: &[u8], topic: &str) -> Option<usize> {
    let lists: HashMap<String, Count> = serde_json::from_slice(json).ok()?;
    lists.get(topic)?.0
}

/// The length of a JSON array, `None` of anything else. Its members are not kept: a long
/// recording's footer lists millions.
struct Count(Option<usize>);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything).map(Self)
    }
}

struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut count = 0;
        while list.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Some(count))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// The serial number in a topic such as `Camera_SN40735594/side_by_side`.
pub fn serial_of_topic(topic: &str) -> Option<u32> {
    let (_, rest) = topic.split_once("SN")?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_gives_serial_and_rate() {
        let mut block = [0_u8; 128];
        block[0x08..0x0C].copy_from_slice(&38_486_288_u32.to_le_bytes());
        block[0x0C..0x10].copy_from_slice(&15_u32.to_le_bytes());
        let block = base64::engine::general_purpose::STANDARD.encode(block);
        let json = format!(r#"{{"version":"2.0.5","ZED_SDK_version":"5.1.2","header":"{block}"}}"#);
        let header = SvoHeader::parse(json.as_bytes());
        assert_eq!(header.version.as_deref(), Some("2.0.5"));
        assert_eq!(header.sdk_version.as_deref(), Some("5.1.2"));
        assert_eq!((header.serial, header.fps), (Some(38_486_288), Some(15)));
        let other = SvoHeader::parse(br#"{"zed_sdk_version":"5.2.0","header":7}"#);
        assert_eq!(other.sdk_version.as_deref(), Some("5.2.0"));
    }

    #[test]
    fn nonsense_gives_no_hints() {
        for json in [&b"{"[..], b"[]", b"{\"header\":\"AAAA\"}", b"\xFF\xFE", b""] {
            assert_eq!(SvoHeader::parse(json), SvoHeader::default());
        }
        assert_eq!(footer_frame_count(b"{\"a\":[1,2]}", "a"), Some(2));
        assert_eq!(footer_frame_count(b"{\"a\":3}", "a"), None);
        let mixed = br#"{"n":null,"s":"x","m":{"k":[1]},"f":1.5,"a":[1,[2,3],{"b":4}],"t":true}"#;
        assert_eq!(footer_frame_count(mixed, "a"), Some(3));
        assert_eq!(footer_frame_count(mixed, "m"), None);
    }

    #[test]
    fn the_serial_is_in_the_topic() {
        assert_eq!(
            serial_of_topic("Camera_SN40735594/side_by_side"),
            Some(40_735_594)
        );
        assert_eq!(serial_of_topic("Camera_SN/side_by_side"), None);
        assert_eq!(serial_of_topic("Camera_SN99999999999/x"), None);
        assert_eq!(serial_of_topic("lidar"), None);
    }
}
