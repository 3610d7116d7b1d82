//! The client's handshake (RTMP 1.0 section 5.2), in the simple form and in the digest form of
//! Flash Player 9 that some servers insist on.
//!
//! ```text
//! C0, S0   1     version 3
//! C1, S1   1536  time(4) zero(4) random(1528); digest form: version instead of zero, and an
//!                HMAC-SHA256 over the rest at an offset drawn from four of the bytes
//! S2, C2   1536  simple form: echo of C1, S1; digest form: random(1504), HMAC over it with a key
//!                made of the peer's digest
//! ```

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::RtmpError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HandshakeForm {
    /// Enough for every server that was tried (contract section 9).
    #[default]
    Simple,
    Digest,
}

/// Fed with what the server sends; gives C0 and C1 at once, C2 when S1 is there.
#[derive(Debug)]
pub struct ClientHandshake {
    form: HandshakeForm,
    c1: Box<[u8; BLOCK]>,
    received: Vec<u8>,
    c2_given: bool,
}

impl ClientHandshake {
    /// `random` fills C1 (and C2 in the digest form). `time` in milliseconds, any origin.
    pub fn new(form: HandshakeForm, time: u32, random: &[u8; BLOCK]) -> Self {
        let mut c1 = Box::new(*random);
        c1[..4].copy_from_slice(&time.to_be_bytes());
        match form {
            HandshakeForm::Simple => c1[4..8].fill(0),
            HandshakeForm::Digest => {
                c1[4..8].copy_from_slice(&CLIENT_VERSION);
                let at = digest_offset(&c1[..], DigestSchema::First);
                let digest = digest_without(&CLIENT_KEY[..30], &c1[..], at);
                c1[at..at + 32].copy_from_slice(&digest);
            }
        }
        Self {
            form,
            c1,
            received: Vec::with_capacity(1 + 2 * BLOCK),
            c2_given: false,
        }
    }

    /// Appends C0 and C1.
    pub fn start(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.extend_from_slice(&self.c1[..]);
    }

    /// Takes bytes from the front of `input`, appends C2 once S1 has come; true when S2 has come
    /// too and what is left in `input` is chunks. Neither the text nor the digest of S2 is
    /// checked: servers put all kinds of bytes there.
    ///
    /// # Errors
    ///
    /// If S0 is not version 3: the peer does not speak RTMP.
    pub fn input(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, RtmpError> {
        let missing = 1 + 2 * BLOCK - self.received.len();
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.received.extend_from_slice(taken);
        *input = rest;
        match self.received.first() {
            Some(&VERSION) | None => {}
            Some(other) => {
                return Err(RtmpError::protocol(
                    "handshake",
                    format!("the peer does not speak RTMP: version {other} instead of {VERSION}"),
                ));
            }
        }
        if !self.c2_given && self.received.len() > BLOCK {
            self.c2_given = true;
            self.append_c2(out);
        }
        Ok(self.received.len() == 1 + 2 * BLOCK)
    }

    fn append_c2(&self, out: &mut Vec<u8>) {
        let s1 = &self.received[1..=BLOCK];
        let their_digest = (self.form == HandshakeForm::Digest)
            .then(|| find_digest(&SERVER_KEY[..36], s1))
            .flatten();
        let Some(their_digest) = their_digest else {
            // The simple form, or a server that fell back to it.
            out.extend_from_slice(s1);
            return;
        };
        let key = hmac(CLIENT_KEY, &[their_digest]);
        let random = &self.c1[8..8 + BLOCK - 32];
        out.extend_from_slice(random);
        out.extend_from_slice(&hmac(&key, &[random]));
    }
}

/// Where the digest of a C1 or S1 block lies: in the first half of it, or in the second.
#[derive(Debug, Clone, Copy)]
enum DigestSchema {
    First,
    Second,
}

fn digest_offset(block: &[u8], schema: DigestSchema) -> usize {
    let pointer = match schema {
        DigestSchema::First => 8,
        DigestSchema::Second => 772,
    };
    let sum: usize = block[pointer..pointer + 4]
        .iter()
        .map(|b| usize::from(*b))
        .sum();
    pointer + 4 + sum % 728
}

fn digest_without(key: &[u8], block: &[u8], at: usize) -> [u8; 32] {
    hmac(key, &[&block[..at], &block[at + 32..]])
}

/// The digest in `block`, if there is one that is right.
fn find_digest<'a>(key: &[u8], block: &'a [u8]) -> Option<&'a [u8]> {
    [DigestSchema::First, DigestSchema::Second]
        .into_iter()
        .map(|schema| digest_offset(block, schema))
        .find(|at| block[*at..at + 32] == digest_without(key, block, *at))
        .map(|at| &block[at..at + 32])
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// Bytes of C1, C2, S1 and S2.
pub const BLOCK: usize = 1536;
const VERSION: u8 = 3;
/// A version that announces the digest form, as Flash Player 12.0.13.14 would.
const CLIENT_VERSION: [u8; 4] = [0x0C, 0x00, 0x0D, 0x0E];

const KEY_TAIL: [u8; 32] = [
    0xF0, 0xEE, 0xC2, 0x4A, 0x80, 0x68, 0xBE, 0xE8, 0x2E, 0x00, 0xD0, 0xD1, 0x02, 0x9E, 0x7E, 0x57,
    0x6E, 0xEC, 0x5D, 0x2D, 0x29, 0x80, 0x6F, 0xAB, 0x93, 0xB8, 0xE6, 0x36, 0xCF, 0xEB, 0x31, 0xAE,
];
/// "Genuine Adobe Flash Player 001" and a tail that both sides know.
const CLIENT_KEY: &[u8; 62] = &with_tail(b"Genuine Adobe Flash Player 001");
/// "Genuine Adobe Flash Media Server 001" and the same tail.
const SERVER_KEY: &[u8; 68] = &with_tail(b"Genuine Adobe Flash Media Server 001");

const fn with_tail<const N: usize, const M: usize>(name: &[u8; N]) -> [u8; M] {
    let mut key = [0; M];
    let mut at = 0;
    while at < M {
        key[at] = if at < N { name[at] } else { KEY_TAIL[at - N] };
        at += 1;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ramp() -> [u8; BLOCK] {
        std::array::from_fn(|at| (at * 7 % 251) as u8)
    }

    #[test]
    fn the_simple_form_echoes_s1() {
        let mut handshake = ClientHandshake::new(HandshakeForm::Simple, 0x0102_0304, &ramp());
        let mut out = Vec::new();
        handshake.start(&mut out);
        assert_eq!(out.len(), 1537);
        // version; time; zero: the digest form is not meant
        assert_eq!(out[..9], [3, 1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(out[9..], ramp()[8..]);

        let s1 = [0xAB; BLOCK];
        let server = [&[3][..], &s1, &[0xCD; BLOCK], b"chunks"].concat();
        let mut input = &server[..];
        out.clear();
        assert_eq!(handshake.input(&mut input, &mut out), Ok(true));
        assert_eq!(out, s1);
        assert_eq!(input, b"chunks");
    }

    #[test]
    fn c2_does_not_wait_for_s2() {
        let mut handshake = ClientHandshake::new(HandshakeForm::Simple, 0, &ramp());
        let mut out = Vec::new();
        assert_eq!(handshake.input(&mut &[3; BLOCK][..], &mut out), Ok(false));
        assert!(out.is_empty());
        assert_eq!(handshake.input(&mut &[3; 1][..], &mut out), Ok(false));
        assert_eq!(out.len(), BLOCK);
        assert_eq!(handshake.input(&mut &[1; BLOCK][..], &mut out), Ok(true));
        assert_eq!(out.len(), BLOCK);
    }

    #[test]
    fn another_version_is_no_rtmp() {
        let mut handshake = ClientHandshake::new(HandshakeForm::Simple, 0, &ramp());
        let refusal = handshake
            .input(&mut &b"HTTP/1.1 400"[..], &mut Vec::new())
            .unwrap_err();
        assert!(
            refusal.to_string().contains("does not speak RTMP"),
            "{refusal}"
        );
    }

    /// The server's side, written a second time from the layout, with offsets spelled out.
    #[test]
    fn the_digest_form_satisfies_a_server_that_checks_it() {
        let mut handshake = ClientHandshake::new(HandshakeForm::Digest, 5, &ramp());
        let mut c1 = Vec::new();
        handshake.start(&mut c1);
        c1.remove(0);
        assert_ne!(c1[4..8], [0; 4]);
        let at = (8..12).map(|i| usize::from(c1[i])).sum::<usize>() % 728 + 12;
        let mut without = c1.clone();
        let c1_digest: Vec<u8> = without.drain(at..at + 32).collect();
        let sign = |key: &[u8], text: &[u8]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
            mac.update(text);
            mac.finalize().into_bytes().to_vec()
        };
        assert_eq!(sign(b"Genuine Adobe Flash Player 001", &without), c1_digest);

        // S1 with its digest in the second half.
        let mut s1 = ramp().to_vec();
        let at = (772..776).map(|i| usize::from(s1[i])).sum::<usize>() % 728 + 776;
        let mut without = s1.clone();
        without.drain(at..at + 32);
        let s1_digest = sign(b"Genuine Adobe Flash Media Server 001", &without);
        s1[at..at + 32].copy_from_slice(&s1_digest);

        let mut c2 = Vec::new();
        let server = [&[3][..], &s1, &[0; BLOCK]].concat();
        assert_eq!(handshake.input(&mut &server[..], &mut c2), Ok(true));
        let key = sign(
            &[b"Genuine Adobe Flash Player 001", &KEY_TAIL[..]].concat(),
            &s1_digest,
        );
        assert_eq!(sign(&key, &c2[..1504]), c2[1504..]);
    }

    #[test]
    fn a_server_without_digest_gets_the_echo() {
        let mut handshake = ClientHandshake::new(HandshakeForm::Digest, 5, &ramp());
        let mut c2 = Vec::new();
        handshake
            .input(&mut &[3; 1 + 2 * BLOCK][..], &mut c2)
            .unwrap();
        assert_eq!(c2, [3; BLOCK]);
    }

    proptest! {
        #[test]
        fn any_cut_of_the_input_gives_the_same_c2(cuts in prop::collection::vec(1_usize..900, 1..9)) {
            let server: Vec<u8> = [3].into_iter().chain((0..2 * BLOCK).map(|i| i as u8)).collect();
            let mut handshake = ClientHandshake::new(HandshakeForm::Simple, 0, &ramp());
            let (mut c2, mut rest, mut done) = (Vec::new(), &server[..], false);
            for cut in cuts.iter().cycle() {
                let (mut part, tail) = rest.split_at((*cut).min(rest.len()));
                done = handshake.input(&mut part, &mut c2).unwrap();
                prop_assert!(part.is_empty());
                rest = tail;
                if rest.is_empty() { break; }
            }
            prop_assert!(done);
            prop_assert_eq!(&c2[..], &server[1..=BLOCK]);
        }
    }
}
