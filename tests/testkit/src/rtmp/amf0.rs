//! AMF 0 values, read within limits and written (AMF0 specification section 2).

use thiserror::Error;

/// A value. Objects and ECMA arrays keep the order of their keys.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Number(f64),
    Boolean(bool),
    String(String),
    Object(Vec<(String, Value)>),
    Null,
    Undefined,
    EcmaArray(Vec<(String, Value)>),
    StrictArray(Vec<Value>),
    /// Milliseconds since 1970.
    Date(f64),
}

/// Values inside of values.
const MAX_DEPTH: u32 = 16;
/// Values in one message.
const MAX_VALUES: u32 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Amf0Error {
    #[error("an AMF value is cut off")]
    Short,
    #[error("AMF marker {0} is not known here")]
    Marker(u8),
    #[error("AMF values nested more than {MAX_DEPTH} deep")]
    Depth,
    #[error("more than {MAX_VALUES} AMF values")]
    Count,
    #[error("an AMF object does not end with 00 00 09")]
    ObjectEnd,
}

impl Value {
    pub fn text(value: &str) -> Self {
        Value::String(value.to_owned())
    }

    pub fn object(pairs: &[(&str, Value)]) -> Self {
        Value::Object(
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
        )
    }

    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_number(&self) -> Option<f64> {
        match self {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// A property of an object or ECMA array.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Object(pairs) | Value::EcmaArray(pairs) => pairs
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// Appends the encoded value.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::Number(number) => {
                out.push(0);
                out.extend(number.to_be_bytes());
            }
            Value::Boolean(value) => out.extend([1, u8::from(*value)]),
            Value::String(text) => match u16::try_from(text.len()) {
                Ok(length) => {
                    out.push(2);
                    out.extend(length.to_be_bytes());
                    out.extend(text.as_bytes());
                }
                Err(_) => {
                    out.push(12);
                    out.extend((text.len() as u32).to_be_bytes());
                    out.extend(text.as_bytes());
                }
            },
            Value::Object(pairs) => {
                out.push(3);
                write_pairs(pairs, out);
            }
            Value::Null => out.push(5),
            Value::Undefined => out.push(6),
            Value::EcmaArray(pairs) => {
                out.push(8);
                out.extend((pairs.len() as u32).to_be_bytes());
                write_pairs(pairs, out);
            }
            Value::StrictArray(values) => {
                out.push(10);
                out.extend((values.len() as u32).to_be_bytes());
                for value in values {
                    value.write(out);
                }
            }
            Value::Date(milliseconds) => {
                out.push(11);
                out.extend(milliseconds.to_be_bytes());
                out.extend([0, 0]);
            }
        }
    }
}

/// All values of a message body.
///
/// # Errors
///
/// If the bytes are no AMF 0, or pass the limits.
pub fn read_all(body: &[u8]) -> Result<Vec<Value>, Amf0Error> {
    let mut reader = Reader {
        rest: body,
        left: MAX_VALUES,
    };
    let mut values = Vec::new();
    while !reader.rest.is_empty() {
        values.push(reader.value(0)?);
    }
    Ok(values)
}

/// Encodes values one after another.
pub fn write_all(values: &[Value]) -> Vec<u8> {
    let mut out = Vec::new();
    for value in values {
        value.write(&mut out);
    }
    out
}

fn write_pairs(pairs: &[(String, Value)], out: &mut Vec<u8>) {
    for (key, value) in pairs {
        out.extend((key.len() as u16).to_be_bytes());
        out.extend(key.as_bytes());
        value.write(out);
    }
    out.extend([0, 0, 9]);
}

struct Reader<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: u32) -> Result<Value, Amf0Error> {
        if depth > MAX_DEPTH {
            return Err(Amf0Error::Depth);
        }
        self.left = self.left.checked_sub(1).ok_or(Amf0Error::Count)?;
        let marker = self.take::<1>()?[0];
        match marker {
            0 => Ok(Value::Number(self.number()?)),
            1 => Ok(Value::Boolean(self.take::<1>()?[0] != 0)),
            2 => self.short_text().map(Value::String),
            3 => self.pairs(depth).map(Value::Object),
            5 => Ok(Value::Null),
            6 => Ok(Value::Undefined),
            8 => {
                // The count is a hint only.
                self.take::<4>()?;
                self.pairs(depth).map(Value::EcmaArray)
            }
            10 => {
                let count = u32::from_be_bytes(*self.take::<4>()?);
                if count > self.left {
                    return Err(Amf0Error::Count);
                }
                (0..count)
                    .map(|_| self.value(depth + 1))
                    .collect::<Result<_, _>>()
                    .map(Value::StrictArray)
            }
            11 => {
                let date = self.number()?;
                self.take::<2>()?;
                Ok(Value::Date(date))
            }
            12 => {
                let length = u32::from_be_bytes(*self.take::<4>()?);
                self.text(length as usize).map(Value::String)
            }
            other => Err(Amf0Error::Marker(other)),
        }
    }

    fn pairs(&mut self, depth: u32) -> Result<Vec<(String, Value)>, Amf0Error> {
        let mut pairs = Vec::new();
        loop {
            let key = self.short_text()?;
            if self.rest.first() == Some(&9) && key.is_empty() {
                self.rest = &self.rest[1..];
                return Ok(pairs);
            }
            if self.rest.is_empty() {
                return Err(Amf0Error::ObjectEnd);
            }
            pairs.push((key, self.value(depth + 1)?));
        }
    }

    fn number(&mut self) -> Result<f64, Amf0Error> {
        Ok(f64::from_be_bytes(*self.take::<8>()?))
    }

    fn short_text(&mut self) -> Result<String, Amf0Error> {
        let length = u16::from_be_bytes(*self.take::<2>()?);
        self.text(usize::from(length))
    }

    fn text(&mut self, length: usize) -> Result<String, Amf0Error> {
        let (text, rest) = self.rest.split_at_checked(length).ok_or(Amf0Error::Short)?;
        self.rest = rest;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], Amf0Error> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Amf0Error::Short)?;
        self.rest = rest;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // AMF0 specification section 2, each type by hand.
    #[test]
    fn both_directions_follow_one_table() {
        let rows: &[(Value, &[u8])] = &[
            (Value::Number(1.0), &[0, 0x3F, 0xF0, 0, 0, 0, 0, 0, 0]),
            (Value::Boolean(true), &[1, 1]),
            (Value::text("ab"), &[2, 0, 2, b'a', b'b']),
            (
                Value::object(&[("k", Value::Null)]),
                &[3, 0, 1, b'k', 5, 0, 0, 9],
            ),
            (Value::Undefined, &[6]),
            (
                Value::EcmaArray(vec![("w".into(), Value::Number(0.0))]),
                &[
                    8, 0, 0, 0, 1, 0, 1, b'w', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9,
                ],
            ),
            (
                Value::StrictArray(vec![Value::text("x")]),
                &[10, 0, 0, 0, 1, 2, 0, 1, b'x'],
            ),
            (Value::Date(0.0), &[11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (value, bytes) in rows {
            assert_eq!(write_all(std::slice::from_ref(value)), *bytes);
            assert_eq!(read_all(bytes), Ok(vec![value.clone()]));
        }
        assert_eq!(
            read_all(&[12, 0, 0, 0, 1, b'x']),
            Ok(vec![Value::text("x")])
        );
        // A wrong count in an ECMA array changes nothing.
        assert_eq!(
            read_all(&[8, 0, 0, 9, 9, 0, 0, 9]),
            Ok(vec![Value::EcmaArray(vec![])])
        );
    }

    #[test]
    fn bombs_are_refused() {
        let nested = [10, 0, 0, 0, 1].repeat(100);
        assert_eq!(read_all(&nested), Err(Amf0Error::Depth));
        assert_eq!(
            read_all(&[10, 0xFF, 0xFF, 0xFF, 0xFF]),
            Err(Amf0Error::Count)
        );
        assert_eq!(read_all(&[5; 5000]), Err(Amf0Error::Count));
        assert_eq!(
            read_all(&[12, 0xFF, 0xFF, 0xFF, 0xFF]),
            Err(Amf0Error::Short)
        );
        assert_eq!(read_all(&[17]), Err(Amf0Error::Marker(17)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(prop_oneof![0_u8..13, any::<u8>()], 0..200)) {
            if let Ok(values) = read_all(&bytes) {
                // What was read can be written and read again.
                let again = read_all(&write_all(&values)).expect("our own bytes");
                prop_assert_eq!(format!("{again:?}"), format!("{values:?}"));
            }
        }
    }
}
