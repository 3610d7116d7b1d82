//! AMF0 (Action Message Format, AMF 0, section 2): the values of commands and metadata.
//!
//! ```text
//! marker  value                          marker  value
//! 0       f64                            8       ECMA array: u32 hint, then as an object
//! 1       u8, not 0 = true               9       end of object, after an empty key
//! 2       u16 length, UTF-8              10      u32 count, values
//! 3       (u16 length, key, value)*,     11      date: f64 ms, s16 zone
//!         00 00 09                       12, 15  u32 length, UTF-8 (long string, XML)
//! 5, 6    null, undefined; no body       16      u16 length, class name, then as an object
//! 7       u16 reference                  17      the rest is AMF3
//! ```

use std::borrow::Cow;

/// One value, borrowing from the message that it was read from.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    Number(f64),
    Boolean(bool),
    String(Cow<'a, str>),
    Object(Vec<(Cow<'a, str>, Value<'a>)>),
    Null,
    Undefined,
    Reference(u16),
    EcmaArray(Vec<(Cow<'a, str>, Value<'a>)>),
    StrictArray(Vec<Value<'a>>),
    Date {
        millis: f64,
        zone: i16,
    },
    /// Everything after the switch to AMF3, unread.
    Amf3(&'a [u8]),
}

impl<'a> Value<'a> {
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The property `key` of an object or ECMA array.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        match self {
            Self::Object(properties) | Self::EcmaArray(properties) => properties
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Amf0Error {
    #[error("an AMF0 value ends early")]
    Truncated,
    #[error("AMF0 marker {0} is unknown")]
    Marker(u8),
    #[error("AMF0 values nested deeper than {}", Reader::DEEPEST)]
    TooDeep,
    #[error("more than {} AMF0 values in one message", Reader::MOST_VALUES)]
    TooMany,
}

/// Reads values one after another. What it builds is bounded by its two limits and by the length
/// of the input, whatever counts the input claims.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    values_left: u32,
}

impl<'a> Reader<'a> {
    pub const DEEPEST: u32 = 16;
    pub const MOST_VALUES: u32 = 4096;

    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            values_left: Self::MOST_VALUES,
        }
    }

    /// The next value, or `None` at the end.
    ///
    /// # Errors
    ///
    /// If the bytes are no AMF0 or go past a limit.
    pub fn read(&mut self) -> Result<Option<Value<'a>>, Amf0Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        self.value(Self::DEEPEST).map(Some)
    }

    fn value(&mut self, depth: u32) -> Result<Value<'a>, Amf0Error> {
        self.values_left = self.values_left.checked_sub(1).ok_or(Amf0Error::TooMany)?;
        let inner = depth.checked_sub(1).ok_or(Amf0Error::TooDeep)?;
        Ok(match self.u8()? {
            marker::NUMBER => Value::Number(self.f64()?),
            marker::BOOLEAN => Value::Boolean(self.u8()? != 0),
            marker::STRING => Value::String(self.short_text()?),
            marker::OBJECT => Value::Object(self.properties(inner)?),
            marker::NULL => Value::Null,
            marker::UNDEFINED | marker::UNSUPPORTED => Value::Undefined,
            marker::REFERENCE => Value::Reference(u16::from_be_bytes(self.array()?)),
            marker::ECMA_ARRAY => {
                self.take(4)?; // the count is a hint that many writers get wrong
                Value::EcmaArray(self.properties(inner)?)
            }
            marker::STRICT_ARRAY => {
                let count = u32::from_be_bytes(self.array()?);
                let mut values = Vec::new(); // grows with what is there, not with the claim
                for _ in 0..count {
                    values.push(self.value(inner)?);
                }
                Value::StrictArray(values)
            }
            marker::DATE => Value::Date {
                millis: self.f64()?,
                zone: i16::from_be_bytes(self.array()?),
            },
            marker::LONG_STRING | marker::XML => {
                let len = u32::from_be_bytes(self.array()?);
                Value::String(String::from_utf8_lossy(self.take(len as usize)?))
            }
            marker::TYPED_OBJECT => {
                self.short_text()?;
                Value::Object(self.properties(inner)?)
            }
            marker::AMF3 => Value::Amf3(std::mem::take(&mut self.rest)),
            unknown => return Err(Amf0Error::Marker(unknown)),
        })
    }

    fn properties(&mut self, depth: u32) -> Result<Vec<(Cow<'a, str>, Value<'a>)>, Amf0Error> {
        let mut properties = Vec::new();
        loop {
            let key = self.short_text()?;
            if key.is_empty() && self.rest.first() == Some(&marker::OBJECT_END) {
                self.rest = &self.rest[1..];
                return Ok(properties);
            }
            properties.push((key, self.value(depth)?));
        }
    }

    fn short_text(&mut self) -> Result<Cow<'a, str>, Amf0Error> {
        let len = u16::from_be_bytes(self.array()?);
        Ok(String::from_utf8_lossy(self.take(len.into())?))
    }

    fn f64(&mut self) -> Result<f64, Amf0Error> {
        Ok(f64::from_be_bytes(self.array()?))
    }

    fn u8(&mut self) -> Result<u8, Amf0Error> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Amf0Error> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(Amf0Error::Truncated)?;
        self.rest = rest;
        Ok(*array)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Amf0Error> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(Amf0Error::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Appends values to a message body.
#[derive(Debug)]
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    pub fn number(&mut self, number: f64) -> &mut Self {
        self.0.push(marker::NUMBER);
        self.0.extend(number.to_be_bytes());
        self
    }

    pub fn boolean(&mut self, value: bool) -> &mut Self {
        self.0.extend([marker::BOOLEAN, u8::from(value)]);
        self
    }

    /// As a string, or as a long string where 16 bits of length do not do.
    pub fn string(&mut self, text: &str) -> &mut Self {
        match u16::try_from(text.len()) {
            Ok(len) => {
                self.0.push(marker::STRING);
                self.0.extend(len.to_be_bytes());
            }
            Err(_) => {
                self.0.push(marker::LONG_STRING);
                self.0.extend((text.len() as u32).to_be_bytes());
            }
        }
        self.0.extend(text.as_bytes());
        self
    }

    pub fn null(&mut self) -> &mut Self {
        self.0.push(marker::NULL);
        self
    }

    /// Starts an object; [`Writer::key`] and a value for each property, then [`Writer::end`].
    pub fn object(&mut self) -> &mut Self {
        self.0.push(marker::OBJECT);
        self
    }

    /// Starts an ECMA array of `count` properties; then as an object.
    pub fn ecma_array(&mut self, count: u32) -> &mut Self {
        self.0.push(marker::ECMA_ARRAY);
        self.0.extend(count.to_be_bytes());
        self
    }

    /// Starts a strict array: exactly `count` values follow.
    pub fn strict_array(&mut self, count: u32) -> &mut Self {
        self.0.push(marker::STRICT_ARRAY);
        self.0.extend(count.to_be_bytes());
        self
    }

    /// The name of the property that is written next. Longer ones than 65535 bytes are cut.
    pub fn key(&mut self, key: &str) -> &mut Self {
        let bytes = &key.as_bytes()[..key.len().min(usize::from(u16::MAX))];
        self.0.extend((bytes.len() as u16).to_be_bytes());
        self.0.extend(bytes);
        self
    }

    pub fn end(&mut self) -> &mut Self {
        self.0.extend([0, 0, marker::OBJECT_END]);
        self
    }
}

/// AMF0 section 2.1.
mod marker {
    pub const NUMBER: u8 = 0;
    pub const BOOLEAN: u8 = 1;
    pub const STRING: u8 = 2;
    pub const OBJECT: u8 = 3;
    pub const NULL: u8 = 5;
    pub const UNDEFINED: u8 = 6;
    pub const REFERENCE: u8 = 7;
    pub const ECMA_ARRAY: u8 = 8;
    pub const OBJECT_END: u8 = 9;
    pub const STRICT_ARRAY: u8 = 10;
    pub const DATE: u8 = 11;
    pub const LONG_STRING: u8 = 12;
    pub const UNSUPPORTED: u8 = 13;
    pub const XML: u8 = 15;
    pub const TYPED_OBJECT: u8 = 16;
    pub const AMF3: u8 = 17;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(bytes: &[u8]) -> Result<Vec<Value<'_>>, Amf0Error> {
        let mut reader = Reader::new(bytes);
        let mut values = Vec::new();
        while let Some(value) = reader.read()? {
            values.push(value);
        }
        Ok(values)
    }

    #[test]
    fn the_layouts_of_section_2() {
        let mut out = Vec::new();
        Writer(&mut out)
            .number(1.0)
            .boolean(true)
            .string("ab")
            .null()
            .object()
            .key("k")
            .number(0.0)
            .end()
            .ecma_array(1)
            .key("x")
            .boolean(false)
            .end()
            .strict_array(1)
            .string("hvc1");
        let expected = [
            &[0x00, 0x3F, 0xF0, 0, 0, 0, 0, 0, 0][..], // number 1.0 is IEEE 754 0x3FF0...
            &[0x01, 0x01],                             // boolean
            &[0x02, 0x00, 0x02, b'a', b'b'],           // string
            &[0x05],                                   // null
            &[
                0x03, 0x00, 0x01, b'k', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x00, 0x09,
            ],
            &[0x08, 0, 0, 0, 1, 0, 1, b'x', 1, 0, 0, 0, 9],
            &[0x0A, 0, 0, 0, 1, 2, 0, 4, b'h', b'v', b'c', b'1'],
        ]
        .concat();
        assert_eq!(out, expected);
        let values = all(&out).unwrap();
        assert_eq!(values.len(), 7);
        assert_eq!(values[4].get("k"), Some(&Value::Number(0.0)));
        assert_eq!(values[5].get("x"), Some(&Value::Boolean(false)));
    }

    #[test]
    fn what_only_peers_send_is_read_too() {
        // undefined, date, long string, typed object, reference, AMF3 switch
        let bytes = [
            &[0x06][..],
            &[0x0B, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFE],
            &[0x0C, 0, 0, 0, 1, b'z'],
            &[0x10, 0, 1, b'C', 0, 1, b'a', 0x05, 0, 0, 9],
            &[0x07, 0, 2],
            &[0x11, 0x06, 0x01],
        ]
        .concat();
        let values = all(&bytes).unwrap();
        assert_eq!(values[0], Value::Undefined);
        assert_eq!(
            values[1],
            Value::Date {
                millis: 0.0,
                zone: -2
            }
        );
        assert_eq!(values[2].as_str(), Some("z"));
        assert_eq!(values[3].get("a"), Some(&Value::Null));
        assert_eq!(values[4], Value::Reference(2));
        assert_eq!(values[5], Value::Amf3(&[0x06, 0x01]));
    }

    #[test]
    fn bombs_are_refused_at_their_limit() {
        let nested = [3, 0, 1, b'a'].repeat(100);
        assert_eq!(all(&nested), Err(Amf0Error::TooDeep));
        let arrays = [10, 0xFF, 0xFF, 0xFF, 0xFF].repeat(100);
        assert_eq!(all(&arrays), Err(Amf0Error::TooDeep));
        let mut many = vec![10, 0xFF, 0xFF, 0xFF, 0xFF];
        many.extend([5].repeat(10_000));
        assert_eq!(all(&many), Err(Amf0Error::TooMany));
        assert_eq!(all(&[2, 0xFF, 0xFF, 1]), Err(Amf0Error::Truncated));
        assert_eq!(
            all(&[12, 0xFF, 0xFF, 0xFF, 0xFF, 1]),
            Err(Amf0Error::Truncated)
        );
        assert_eq!(all(&[0x0E]), Err(Amf0Error::Marker(0x0E)));
    }

    fn write(value: &Value<'_>, out: &mut Vec<u8>) {
        let mut writer = Writer(out);
        match value {
            Value::Number(number) => drop(writer.number(*number)),
            Value::Boolean(value) => drop(writer.boolean(*value)),
            Value::String(text) => drop(writer.string(text)),
            Value::Null => drop(writer.null()),
            Value::Object(properties) => {
                writer.object();
                for (key, value) in properties {
                    Writer(out).key(key);
                    write(value, out);
                }
                Writer(out).end();
            }
            Value::StrictArray(values) => {
                writer.strict_array(values.len() as u32);
                for value in values {
                    write(value, out);
                }
            }
            other => unreachable!("{other:?} is not generated"),
        }
    }

    fn value() -> impl Strategy<Value = Value<'static>> {
        let leaf = prop_oneof![
            (-1e9..1e9).prop_map(Value::Number),
            any::<bool>().prop_map(Value::Boolean),
            ".{0,40}".prop_map(|text| Value::String(text.into())),
            Just(Value::Null),
        ];
        leaf.prop_recursive(6, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(("[a-z]{1,9}".prop_map(Cow::from), inner.clone()), 0..6)
                    .prop_map(Value::Object),
                prop::collection::vec(inner, 0..6).prop_map(Value::StrictArray),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in value()) {
            let mut out = Vec::new();
            write(&value, &mut out);
            prop_assert_eq!(all(&out).unwrap(), vec![value]);
        }

        #[test]
        fn any_bytes_give_values_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = all(&bytes);
        }
    }
}
