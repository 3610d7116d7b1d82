//! The server's half of the RTMP handshake: the simple form (RTMP 1.0 section 5.2) and the digest form
//! that Flash-era peers insist on (contract `rtp-rtmp.md` section 9).

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;

/// C1, C2, S1 and S2 each.
pub const BLOCK_BYTES: usize = 1536;
const VERSION: u8 = 3;
const DIGEST_BYTES: usize = 32;
/// The client's key; 30 bytes of it sign C1.
const CLIENT_KEY: &[u8] = b"Genuine Adobe Flash Player 001";
/// The server's key; 36 bytes of it sign S1.
const SERVER_KEY: &[u8] = b"Genuine Adobe Flash Media Server 001";
/// Follows either key where a whole C2 or S2 is signed.
const KEY_TAIL: [u8; 32] = [
    0xF0, 0xEE, 0xC2, 0x4A, 0x80, 0x68, 0xBE, 0xE8, 0x2E, 0x00, 0xD0, 0xD1, 0x02, 0x9E, 0x7E, 0x57,
    0x6E, 0xEC, 0x5D, 0x2D, 0x29, 0x80, 0x6F, 0xAB, 0x93, 0xB8, 0xE6, 0x36, 0xCF, 0xEB, 0x31, 0xAE,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HandshakeError {
    #[error("RTMP version {0} instead of 3")]
    Version(u8),
}

/// Which form the client chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    Simple,
    Digest,
}

/// Takes C0, C1 and C2, and gives S0, S1 and S2.
#[derive(Debug)]
pub struct Handshake {
    random: Box<[u8; BLOCK_BYTES]>,
    form: Option<Form>,
}

/// What the bytes so far allow.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    Wait,
    /// So many bytes were taken, and this is to be sent.
    Reply(usize, Vec<u8>),
    /// C2 was taken, so many bytes; chunks follow.
    Done(usize),
}

impl Handshake {
    /// `random` is S1; its first eight bytes are overwritten.
    pub fn new(random: Box<[u8; BLOCK_BYTES]>) -> Self {
        Handshake { random, form: None }
    }

    /// The form, once C1 has come.
    pub fn form(&self) -> Option<Form> {
        self.form
    }

    /// # Errors
    ///
    /// If C0 is no version that this server speaks.
    pub fn advance(&mut self, input: &[u8]) -> Result<Step, HandshakeError> {
        if self.form.is_some() {
            return Ok(if input.len() < BLOCK_BYTES {
                Step::Wait
            } else {
                Step::Done(BLOCK_BYTES)
            });
        }
        match input.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(HandshakeError::Version(other)),
            None => return Ok(Step::Wait),
        }
        let Some(c1) = input[1..].first_chunk::<BLOCK_BYTES>() else {
            return Ok(Step::Wait);
        };
        let digest = client_digest(c1);
        self.form = Some(if digest.is_some() {
            Form::Digest
        } else {
            Form::Simple
        });
        let mut reply = vec![VERSION];
        match digest {
            Some((schema, digest)) => self.digest_reply(schema, &digest, &mut reply),
            None => {
                let mut s1 = *self.random;
                s1[..8].fill(0);
                reply.extend(s1);
                reply.extend(c1);
            }
        }
        Ok(Step::Reply(1 + BLOCK_BYTES, reply))
    }

    fn digest_reply(&self, schema: usize, client: &[u8; DIGEST_BYTES], reply: &mut Vec<u8>) {
        let mut s1 = *self.random;
        s1[..4].fill(0);
        s1[4..8].copy_from_slice(&[4, 5, 0, 1]);
        let at = digest_offset(&s1, schema);
        let signature = hmac(SERVER_KEY, &[&s1[..at], &s1[at + DIGEST_BYTES..]]);
        s1[at..at + DIGEST_BYTES].copy_from_slice(&signature);
        reply.extend(s1);
        let mut s2 = *self.random;
        let key = hmac(&[SERVER_KEY, &KEY_TAIL].concat(), &[client]);
        let body = BLOCK_BYTES - DIGEST_BYTES;
        let signature = hmac(&key, &[&s2[..body]]);
        s2[body..].copy_from_slice(&signature);
        reply.extend(s2);
    }
}

/// Schema and digest of a C1 whose digest is right.
pub fn client_digest(c1: &[u8; BLOCK_BYTES]) -> Option<(usize, [u8; DIGEST_BYTES])> {
    // Zeros in place of a version: the simple form.
    if c1[4..8] == [0; 4] {
        return None;
    }
    [0, 1].into_iter().find_map(|schema| {
        let at = digest_offset(c1, schema);
        let found = c1[at..].first_chunk::<DIGEST_BYTES>()?;
        let wanted = hmac(CLIENT_KEY, &[&c1[..at], &c1[at + DIGEST_BYTES..]]);
        (*found == wanted).then_some((schema, *found))
    })
}

/// Schema 1 sums the four bytes at 8, schema 0 those at 772; the digest lies behind the four.
fn digest_offset(block: &[u8; BLOCK_BYTES], schema: usize) -> usize {
    let from = if schema == 1 { 8 } else { 772 };
    let sum: usize = block[from..from + 4].iter().map(|&b| usize::from(b)).sum();
    sum % 728 + from + 4
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; DIGEST_BYTES] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn server() -> Handshake {
        Handshake::new(Box::new([0x5A; BLOCK_BYTES]))
    }

    #[test]
    fn the_simple_form_echoes_c1() {
        let mut c1 = [0x11; BLOCK_BYTES];
        c1[4..8].fill(0);
        let input = [&[3][..], &c1].concat();
        let mut server = server();
        assert_eq!(server.advance(&input[..1000]), Ok(Step::Wait));
        let Ok(Step::Reply(taken, reply)) = server.advance(&input) else {
            panic!("a reply")
        };
        assert_eq!(
            (taken, reply.len(), server.form()),
            (1537, 3073, Some(Form::Simple))
        );
        assert_eq!((reply[0], &reply[1..9]), (3, &[0; 8][..]));
        assert_eq!(reply[1537..], c1);
        assert_eq!(server.advance(&[0; 1535]), Ok(Step::Wait));
        assert_eq!(server.advance(&[0; 1600]), Ok(Step::Done(1536)));
        assert_eq!(
            Handshake::new(Box::new([0; BLOCK_BYTES])).advance(&[6]),
            Err(HandshakeError::Version(6))
        );
    }

    // Offsets by hand: schema 1 sums bytes 8 to 11 (4 * 200 = 800, mod 728 = 72, plus 12 = 84);
    // schema 0 those at 772 (4 * 1 = 4, plus 776 = 780).
    #[test]
    fn the_digest_form_is_found_in_both_schemas() {
        for (schema, at) in [(1, 84), (0, 780)] {
            let mut c1 = [1; BLOCK_BYTES];
            c1[4..8].copy_from_slice(&[0x0C, 0, 0x0D, 0x0E]);
            c1[8..12].fill(200);
            assert_eq!(digest_offset(&c1, schema), at);
            let signature = hmac(CLIENT_KEY, &[&c1[..at], &c1[at + 32..]]);
            c1[at..at + 32].copy_from_slice(&signature);
            assert_eq!(client_digest(&c1).map(|(schema, _)| schema), Some(schema));
            let mut server = server();
            let reply = server.advance(&[&[3][..], &c1].concat());
            assert!(matches!(reply, Ok(Step::Reply(1537, ref bytes)) if bytes.len() == 3073));
            assert_eq!(server.form(), Some(Form::Digest));
            c1[100] ^= 1;
            assert_eq!(
                client_digest(&c1),
                None,
                "a wrong digest is the simple form"
            );
        }
    }

    // RFC 4231 test case 2.
    #[test]
    fn hmac_is_the_standards() {
        let digest = hmac(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
        assert_eq!(
            digest[..8],
            [0x5B, 0xDC, 0xC1, 0x46, 0xBF, 0x60, 0x75, 0x4E]
        );
    }

    proptest! {
        #[test]
        fn no_block_panics(bytes in prop::collection::vec(any::<u8>(), BLOCK_BYTES)) {
            let _ = server().advance(&[&[3][..], &bytes].concat());
        }
    }
}
