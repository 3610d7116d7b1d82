//! H.264 under codec id 7, one fault at a time.

use super::*;

/// The hand-made sets of `config_record`: 30x28, Baseline.
const RECORD: &[u8] = &[
    1, 66, 0xC0, 30, 0xFF, 0xE1, 0, 8, 0x67, 66, 0xC0, 30, 0xDA, 0x25, 0xEA, 0xD0, 1, 0, 2, 0x68,
    0xCE,
];
const IDR: &[u8] = &[0, 0, 0, 3, 0x65, 0x88, 0x84];
const P: &[u8] = &[0, 0, 0, 2, 0x41, 0x9A];

fn header() -> (u32, Vec<u8>) {
    (0, [&[0x17, 0, 0, 0, 0], RECORD].concat())
}

fn key(time: u32) -> (u32, Vec<u8>) {
    (time, [&[0x17, 1, 0, 0, 0], IDR].concat())
}

fn inter(time: u32) -> (u32, Vec<u8>) {
    (time, [&[0x27, 1, 0, 0, 0], P].concat())
}

fn judge(messages: &[(u32, Vec<u8>)]) -> (StreamCheck, Vec<Verdict>) {
    let mut check = StreamCheck::new(Mode::H264, false);
    let verdicts = messages
        .iter()
        .map(|(time, body)| check.video(*time, body, &mut |_| {}))
        .collect();
    (check, verdicts)
}

#[test]
fn a_right_stream_is_counted() {
    let (check, verdicts) = judge(&[
        header(),
        key(0),
        inter(40),
        inter(40),
        (80, vec![0x17, 2, 0, 0, 0]),
    ]);
    assert!(verdicts.iter().all(|v| *v == Verdict::Fine));
    assert_eq!(check.violations().texts, Vec::<String>::new());
    let counters = check.counters();
    assert_eq!(
        (
            counters.frames,
            counters.key_frames,
            counters.sequence_headers
        ),
        (3, 1, 1)
    );
    assert_eq!((counters.width, counters.height), (Some(30), Some(28)));
    assert_eq!(
        (counters.first_timestamp_ms, counters.last_timestamp_ms),
        (Some(0), Some(40))
    );
}

#[test]
fn faults_are_named() {
    let change = |message: (u32, Vec<u8>), at: usize, value: u8| {
        let (time, mut body) = message;
        body[at] = value;
        (time, body)
    };
    let sets = [&[0x17, 1, 0, 0, 0][..], &[0, 0, 0, 2, 0x68, 0xCF], IDR].concat();
    let rows = [
        ("no sequence header", vec![key(0)]),
        ("no key frame", vec![header(), inter(0)]),
        ("record version", vec![change(header(), 5, 0)]),
        ("AVCProfileIndication", vec![change(header(), 6, 77)]),
        ("time goes back", vec![header(), key(40), inter(39)]),
        ("do not fill", vec![header(), change(key(0), 8, 9)]),
        (
            "marked as key frame, and holds none",
            vec![header(), key(0), change(inter(40), 0, 0x17)],
        ),
        ("not marked as one", vec![header(), change(key(0), 0, 0x27)]),
        ("FourCC avc1", vec![(0, [b"\x90avc1", RECORD].concat())]),
        (
            "composition time -",
            vec![header(), change(key(0), 2, 0xFF)],
        ),
        (
            "no sequence header has announced",
            vec![header(), (0, sets)],
        ),
        (
            "after the end",
            vec![header(), key(0), (40, vec![0x17, 2, 0, 0, 0]), inter(40)],
        ),
        (
            "without a slice",
            vec![header(), (0, vec![0x27, 1, 0, 0, 0, 0, 0, 0, 2, 0x06, 5])],
        ),
        ("packet type 3", vec![change(header(), 1, 3)]),
    ];
    for (text, messages) in rows {
        let (check, _) = judge(&messages);
        let found = check.violations().texts.join("; ");
        assert!(found.contains(text), "'{text}' is not in '{found}'");
    }
}

#[test]
fn another_packaging_is_another_mode() {
    for (body, seen) in [
        (&b"\x90hvc1"[..], "h265-enhanced"),
        (&[0x1C, 0, 0, 0, 0], "h265-domestic"),
        (b"\x90av01", "FourCC av01"),
        (&[0x12, 0], "codec id 2"),
    ] {
        let (_, verdicts) = judge(&[(0, body.to_vec())]);
        assert_eq!(verdicts, [Verdict::WrongMode(seen.into())]);
    }
}

#[test]
fn changed_sets_ask_for_a_key_frame_and_repeated_ones_are_odd() {
    let mut other = header();
    *other.1.last_mut().expect("not empty") = 0xCF;
    let (check, _) = judge(&[header(), key(0), other.clone(), inter(40)]);
    assert!(check.violations().texts[0].contains("no key frame"));
    let (check, _) = judge(&[header(), key(0), header(), inter(40)]);
    assert_eq!(check.violations().count, 0);
    assert!(
        check
            .warnings()
            .texts
            .iter()
            .any(|text| text.contains("repeats"))
    );
}

#[test]
fn metadata_is_compared_with_what_follows() {
    let mut check = StreamCheck::new(Mode::H264, true);
    let values = [("width", 30.0), ("height", 30.0), ("videocodecid", 12.0)];
    let pairs = values.map(|(key, value)| (key.to_owned(), Value::Number(value)));
    check.metadata_message(&Value::EcmaArray(pairs.to_vec()));
    let (time, body) = header();
    check.video(time, &body, &mut |_| {});
    let found = check.violations().texts.join("; ");
    assert!(
        found.contains("videocodecid 12") && found.contains("the SPS"),
        "{found}"
    );
}
