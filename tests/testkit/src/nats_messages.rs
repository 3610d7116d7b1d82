//! The producer's protobuf messages, written and read field by field (contract section 5.1; the
//! protobuf encoding's own documentation for varints and tags).

/// Appends fields of a message.
#[derive(Debug, Default, Clone)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// Zero is the default, and not written.
    pub fn number(mut self, field: u32, value: u64) -> Self {
        if value != 0 {
            self.varint(u64::from(field << 3));
            self.varint(value);
        }
        self
    }

    /// `sint32`: zigzag.
    pub fn signed(self, field: u32, value: i32) -> Self {
        let zigzag = ((value << 1) ^ (value >> 31)) as u32;
        self.number(field, u64::from(zigzag))
    }

    /// An empty text is the default, and not written.
    pub fn text(self, field: u32, value: &str) -> Self {
        if value.is_empty() {
            return self;
        }
        self.bytes(field, value.as_bytes())
    }

    pub fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.varint(u64::from(field << 3 | 2));
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A field of a message: its number, and a number or bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    Number(u32, u64),
    Bytes(u32, Vec<u8>),
}

/// All fields; `None` if the bytes are no message of such fields.
pub fn fields(mut rest: &[u8]) -> Option<Vec<Field>> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0)?;
        match tag & 7 {
            0 => all.push(Field::Number(number, take_varint(&mut rest)?)),
            2 => {
                let len = usize::try_from(take_varint(&mut rest)?).ok()?;
                let (bytes, tail) = rest.split_at_checked(len)?;
                all.push(Field::Bytes(number, bytes.to_vec()));
                rest = tail;
            }
            _ => return None,
        }
    }
    Some(all)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The number of a field; 0 where it is absent.
pub fn number_of(all: &[Field], wanted: u32) -> u64 {
    all.iter()
        .find_map(|field| match field {
            Field::Number(number, value) if *number == wanted => Some(*value),
            _ => None,
        })
        .unwrap_or(0)
}

/// `sint32` of a field.
pub fn signed_of(all: &[Field], wanted: u32) -> i32 {
    let zigzag = number_of(all, wanted) as u32;
    (zigzag >> 1) as i32 ^ -((zigzag & 1) as i32)
}

pub const OK: u64 = 0;
pub const UNSUPPORTED: u64 = 3;
pub const INVALID_PAYLOAD: u64 = 4;
pub const OUT_OF_RANGE: u64 = 5;

pub const ONLINE: u64 = 1;
pub const OFFLINE: u64 = 2;
pub const STREAM_RESET: u64 = 3;

/// `ModuleStatusEvent`.
pub fn status(code: u64, instance: &str, timestamp_ns: u64) -> Vec<u8> {
    Writer::default()
        .number(1, code)
        .text(2, instance)
        .number(3, timestamp_ns)
        .0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
            .collect()
    }

    // wire_samples.json of the contract: captured from a producer.
    #[test]
    fn status_events_are_the_bytes_of_the_real_producer() {
        let wire = bytes("0801120673696c656e7418f1dbc4c0ff8596f518");
        let read = fields(&wire).expect("fields");
        assert_eq!(status(ONLINE, "silent", number_of(&read, 3)), wire);
        let info = bytes("1001180140c7e6eb829b8596f518489a07");
        let read = fields(&info).expect("fields");
        assert_eq!(number_of(&read, 8), 1_795_344_337_536_217_927);
        assert_eq!(number_of(&read, 9), 922);
    }

    #[test]
    fn signed_numbers_are_zigzag() {
        for (value, wire) in [(0, 0), (-1, 1), (1, 2), (i32::MIN, 4_294_967_295_u64)] {
            let message = Writer::default().signed(3, value).0;
            let read = fields(&message).expect("fields");
            assert_eq!(number_of(&read, 3), wire);
            assert_eq!(signed_of(&read, 3), value);
        }
        assert_eq!(fields(&[0x0A, 5, 1]), None);
        assert_eq!(fields(&[0xFF; 12]), None);
    }
}
