//! Other people's servers take what the RTMP sink sends: Debian's nginx, and a new ffmpeg.

mod rtmp_support;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use cvmmap_streamer::bitstream::{AccessUnit, NalUnit};
use cvmmap_streamer::encode::Codec;
use cvmmap_streamer::flv::Packaging;
use cvmmap_streamer::sink::Sink;
use cvmmap_streamer::sink::rtmp::RtmpSinkConfig;

use rtmp_support::peer::{Nginx, Tag, new_ffmpeg, read_flv, wait_for_file, wait_for_port};
use rtmp_support::{
    Child, Driver, Film, Guest, HEIGHT, LIMIT, WIDTH, config, probe, reserve_tcp, run,
};

/// Publishes the whole film to a server, and says goodbye.
fn publish(config: RtmpSinkConfig, film: &Film) {
    let mut driver = Driver::open(config);
    driver.connect().unwrap();
    driver.send_all(film);
    driver.sink.close();
    assert_eq!(driver.count(|stats| &stats.units), film.units.len() as u64);
    assert_eq!(driver.count(|stats| &stats.errors), 0);
}

fn payload(film: &Film) -> u64 {
    film.units
        .iter()
        .map(|unit| unit.payload_len() as u64)
        .sum()
}

#[test]
fn nginx_records_every_picture_of_an_h264_stream() {
    let nginx = Nginx::start();
    let film = Film::new(Codec::H264, 60, 25);
    publish(config(nginx.port, "live/h264", Packaging::LegacyAvc), &film);
    let file = nginx.recording("h264");
    wait_for_file(&file, payload(&film) / 2);
    assert_eq!(probe(&file), ("h264".to_owned(), WIDTH, HEIGHT, 60));
}

#[test]
fn nginx_follows_past_the_end_of_24_bit_timestamps() {
    let nginx = Nginx::start();
    let film = Film::new(Codec::H264, 75, 25);
    // 0xFFFFFF ms lie 2.2 s away; chunks are small, so that most headers are of type 3.
    let config = RtmpSinkConfig {
        first_timestamp: 16_775_000,
        chunk_size: 500,
        ..config(nginx.port, "live/late", Packaging::LegacyAvc)
    };
    publish(config, &film);
    let file = nginx.recording("late");
    wait_for_file(&file, payload(&film) / 2);
    assert_eq!(probe(&file), ("h264".to_owned(), WIDTH, HEIGHT, 75));
    let video = read_flv(&file).into_iter().filter(|tag| tag.kind == 9);
    let times: Vec<_> = video.skip(1).map(|tag| tag.timestamp).collect();
    let steps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(steps[..74], [40; 74]);
    assert_eq!(steps[74..], [0]); // the end of the sequence
}

/// What FLV holds for a picture of the domestic form, written from the table of contract section
/// 14: frame type and 12, packet type 1, composition time, NAL units with their lengths.
fn domestic_body(unit: &AccessUnit) -> Vec<u8> {
    let key = unit.key;
    let mut body = vec![if key { 0x1C } else { 0x2C }, 1, 0, 0, 0];
    for NalUnit(nal) in unit.nals() {
        if !matches!((nal[0] >> 1) & 0x3F, 32..=34) {
            body.extend((nal.len() as u32).to_be_bytes());
            body.extend(nal);
        }
    }
    body
}

#[test]
fn nginx_stores_the_domestic_stream_byte_for_byte() {
    let nginx = Nginx::start();
    let film = Film::new(Codec::H265, 30, 10);
    publish(
        config(nginx.port, "live/domestic", Packaging::DomesticHevc),
        &film,
    );
    let file = nginx.recording("domestic");
    wait_for_file(&file, payload(&film) / 2);
    let tags: Vec<Tag> = read_flv(&file)
        .into_iter()
        .filter(|tag| tag.kind == 9)
        .collect();
    let (header, pictures) = tags.split_first().unwrap();
    assert_eq!(header.body[..5], [0x1C, 0, 0, 0, 0]);
    // hvcC: version 1, Main profile, then the three arrays with the sets as they are.
    assert_eq!(header.body[5..7], [1, 1]);
    let sets = &film.units[0].parameters;
    let mut arrays = vec![3];
    for (kind, set) in [(0xA0, &sets.vps), (0xA1, &sets.sps), (0xA2, &sets.pps)] {
        arrays.extend([kind, 0, 1]);
        arrays.extend((set[0].len() as u16).to_be_bytes());
        arrays.extend(&set[0]);
    }
    assert_eq!(header.body[5 + 22..], arrays);
    let end = [0x1C, 2, 0, 0, 0].to_vec();
    let mut expected: Vec<(u32, Vec<u8>)> = (0..)
        .zip(&film.units)
        .map(|(at, unit)| (at * 40, domestic_body(unit)))
        .collect();
    expected.push((29 * 40, end));
    let stored: Vec<_> = pictures
        .iter()
        .map(|tag| (tag.timestamp, tag.body.clone()))
        .collect();
    assert_eq!(stored.len(), expected.len());
    for (at, (stored, expected)) in stored.iter().zip(&expected).enumerate() {
        assert!(stored == expected, "tag {at} differs");
    }
}

/// The pictures of a decoded file or stream: presentation time and MD5, by ffmpeg's `framemd5`.
fn pictures(text: &str) -> Vec<(i64, String)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut pictures: Vec<_> = lines
        .map(|line| {
            let fields: Vec<_> = line.split(',').map(str::trim).collect();
            (fields[2].parse::<i64>().unwrap(), fields[5].to_owned())
        })
        .collect();
    let first = pictures[0].0;
    pictures.iter_mut().for_each(|(pts, _)| *pts -= first);
    pictures
}

/// A listener of the new ffmpeg that decodes what it is sent.
fn ffmpeg_listens(ffmpeg: &Path, port: u16, out: &Path) -> Child {
    let url = format!("rtmp://127.0.0.1:{port}/live/key");
    let child = Command::new(ffmpeg)
        .args(["-v", "error", "-y", "-listen", "1", "-i", &url])
        .args([
            "-fps_mode",
            "passthrough",
            "-copyts",
            "-enc_time_base",
            "1:1000",
        ])
        .args(["-f", "framemd5"])
        .arg(out)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    Child(child)
}

#[test]
fn a_new_ffmpeg_decodes_every_picture_of_all_three_packagings() {
    let Some(ffmpeg) = new_ffmpeg() else { return };
    for packaging in [
        Packaging::LegacyAvc,
        Packaging::EnhancedHevc,
        Packaging::DomesticHevc,
    ] {
        for b_frames in [0, 2] {
            let film = Film::with_options(packaging.codec(), 40, 20, b_frames);
            let dir = tempfile::tempdir().unwrap();
            let (stream, received) = (dir.path().join("film"), dir.path().join("received"));
            let hold = reserve_tcp();
            let port = hold.port;
            let mut listener = ffmpeg_listens(&ffmpeg, port, &received);
            // The listener takes one connection: trying the port out would use it up.
            let mut driver = Driver::open(config(port, "live/key", packaging));
            driver.connect().unwrap();
            driver.send_all(&film);
            driver.sink.close();
            wait_for_end(&mut listener);
            // The same ffmpeg decodes the same pictures from the elementary stream.
            std::fs::write(&stream, annexb(&film)).unwrap();
            let format = if packaging.codec() == Codec::H264 {
                "h264"
            } else {
                "hevc"
            };
            let direct = run(Command::new(&ffmpeg)
                .args(["-v", "error", "-f", format, "-r", "25", "-i"])
                .arg(&stream)
                .args(["-fps_mode", "passthrough", "-enc_time_base", "1:1000"])
                .args(["-f", "framemd5", "-"]));
            let direct = pictures(&String::from_utf8(direct).unwrap());
            let received = pictures(&std::fs::read_to_string(&received).unwrap());
            assert_eq!(direct.len(), 40);
            assert_eq!(
                received.iter().map(|(_, md5)| md5).collect::<Vec<_>>(),
                direct.iter().map(|(_, md5)| md5).collect::<Vec<_>>(),
                "{packaging:?}, {b_frames} B-frames"
            );
            let expected: Vec<i64> = (0..40).map(|at| at * 40).collect();
            let times: Vec<i64> = received.iter().map(|(pts, _)| *pts).collect();
            assert_eq!(times, expected, "{packaging:?}, {b_frames} B-frames");
        }
    }
}

fn wait_for_end(child: &mut Child) {
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the listener does not end"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn annexb(film: &Film) -> Vec<u8> {
    let nals = film.units.iter().flat_map(|unit| unit.nals());
    nals.flat_map(|NalUnit(nal)| [&[0, 0, 0, 1][..], nal])
        .flatten()
        .copied()
        .collect()
}

/// The video messages that `publisher` sends to `port`, goodbye included.
fn messages_of(listener: &TcpListener, publisher: impl FnOnce() + Send) -> Vec<(u32, Vec<u8>)> {
    std::thread::scope(|scope| {
        scope.spawn(publisher);
        let mut guest = Guest::accept(listener);
        guest.start();
        let mut video = Vec::new();
        while let Some(message) = guest.next() {
            if message.kind == 9 {
                video.push((message.timestamp, message.body));
            }
            // Both our sink and ffmpeg wait for the close behind it.
            if video.len() > 1 && guest_is_leaving(&video) {
                break;
            }
        }
        drop(guest);
        video
    })
}

fn guest_is_leaving(video: &[(u32, Vec<u8>)]) -> bool {
    let last = &video[video.len() - 1].1;
    last.len() == 5 && (last[..2] == [0x17, 2] || last[0] == 0x92)
}

/// A body split into what is in front of the NAL units, and those that are no parameter sets.
fn split(codec: Codec, body: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let head = match body {
        [first, ..] if first & 0x8F == 0x81 => 8, // CodedFrames
        _ => 5,
    };
    let (mut rest, mut nals) = (&body[head..], Vec::new());
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let (nal, tail) = tail.split_at(u32::from_be_bytes(*len) as usize);
        rest = tail;
        let kept = match codec {
            Codec::H264 => !matches!(nal[0] & 0x1F, 7..=9),
            Codec::H265 => !matches!((nal[0] >> 1) & 0x3F, 32..=35),
        };
        if kept {
            nals.push(nal.to_vec());
        }
    }
    (body[..head].to_vec(), nals)
}

/// ffmpeg leaves parameter sets and delimiters in the bodies, we do not; all else is equal.
#[test]
fn what_ffmpeg_sends_for_the_same_pictures_is_what_we_send() {
    let Some(ffmpeg) = new_ffmpeg() else { return };
    for packaging in [Packaging::LegacyAvc, Packaging::EnhancedHevc] {
        for b_frames in [0, 2] {
            let codec = packaging.codec();
            let film = Film::with_options(codec, 30, 10, b_frames);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let ours = messages_of(&listener, || {
                let mut driver = Driver::open(config(port, "live/key", packaging));
                driver.connect().unwrap();
                driver.send_all(&film);
                driver.sink.close();
            });
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("film.nut");
            film.save(&file);
            let theirs = messages_of(&listener, || {
                let url = format!("rtmp://127.0.0.1:{port}/live/key");
                let mut publish = Command::new(&ffmpeg);
                publish.args(["-v", "error", "-nostdin", "-i"]).arg(&file);
                publish
                    .args(["-c", "copy", "-f", "flv", &url])
                    .stderr(Stdio::null());
                // We hang up behind the last message, which ffmpeg may call an error.
                let _ = publish.status().unwrap();
            });
            compare(packaging, &ours, &theirs);
        }
    }
}

fn compare(packaging: Packaging, ours: &[(u32, Vec<u8>)], theirs: &[(u32, Vec<u8>)]) {
    // ffmpeg 9 sends a colour description (packet type 4) that receivers skip.
    let theirs: Vec<_> = theirs
        .iter()
        .filter(|(_, body)| body[0] & 0x8F != 0x84)
        .collect();
    let (ours, our_end) = ours.split_at(ours.len() - 1);
    let theirs = match packaging {
        Packaging::LegacyAvc => {
            let (theirs, their_end) = theirs.split_at(ours.len());
            assert_eq!(our_end[0].1, their_end[0].1, "end of sequence");
            assert_eq!(ours[0].1, theirs[0].1, "sequence header");
            theirs
        }
        // ffmpeg ends an enhanced stream without a word.
        _ => {
            assert_eq!(arrays(&ours[0].1), arrays(&theirs[0].1), "sequence header");
            &theirs[..]
        }
    };
    assert_eq!(ours.len(), theirs.len(), "{packaging:?}");
    let origin = theirs[1].0;
    for (at, (our, their)) in ours.iter().zip(theirs).enumerate().skip(1) {
        let what = format!("{packaging:?}: message {at}");
        assert_eq!(our.0, their.0 - origin, "{what}: time");
        let split = |body: &[u8]| split(packaging.codec(), body);
        let (our, their) = (split(&our.1), split(&their.1));
        assert!(our == their, "{what}: {:?} {:?}", our.0, their.0);
    }
}

/// NAL type and sets.
type SetArray = (u8, Vec<Vec<u8>>);

/// The fixed part of an `hvcC` in a sequence header without its number of arrays, and the arrays
/// as type and sets. ffmpeg calls them incomplete and adds the encoder's SEI; both are left out.
fn arrays(body: &[u8]) -> (Vec<u8>, Vec<SetArray>) {
    let (fixed, mut rest) = body.split_at(5 + 22);
    let number = rest[0];
    rest = &rest[1..];
    let word = |bytes: &[u8]| usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let mut arrays = Vec::new();
    for _ in 0..number {
        let (kind, count) = (rest[0] & 0x3F, word(&rest[1..]));
        rest = &rest[3..];
        let mut sets = Vec::new();
        for _ in 0..count {
            let len = word(rest);
            sets.push(rest[2..2 + len].to_vec());
            rest = &rest[2 + len..];
        }
        if (32..=34).contains(&kind) {
            arrays.push((kind, sets));
        }
    }
    assert!(rest.is_empty());
    (fixed.to_vec(), arrays)
}

/// A server killed and started again in mid-stream: the stream comes back with its key frame.
#[test]
fn a_killed_and_restarted_nginx_gets_the_stream_again_from_a_key_frame() {
    let mut nginx = Nginx::start();
    let film = Film::new(Codec::H264, 50, 10);
    let mut driver = Driver::open(config(nginx.port, "live/again", Packaging::LegacyAvc));
    driver.connect().unwrap();
    let (before, after) = film.units.split_at(25);
    for unit in before {
        driver.sink.send(unit).unwrap();
    }
    nginx.child.0.kill().unwrap();
    nginx.child.0.wait().unwrap();
    driver.until(|driver| !driver.sink.is_live()).unwrap();
    std::fs::remove_file(nginx.recording("again")).unwrap();
    let asked = driver.key_frames.asked();
    nginx.restart();
    wait_for_port(nginx.port);
    driver.connect().unwrap();
    assert!(driver.key_frames.asked() > asked);
    let mut given_up = 0;
    for unit in after {
        let sent = driver.sink.send(unit).unwrap();
        given_up += u64::from(sent == cvmmap_streamer::sink::Sent::GivenUp);
    }
    driver.sink.close();
    // Units 25 to 29 are in the middle of a group; 30 is the key frame.
    assert_eq!(given_up, 5);
    assert_eq!(driver.count(|stats| &stats.given_up), 5);
    assert_eq!(driver.count(|stats| &stats.reconnects), 1);
    let file = nginx.recording("again");
    wait_for_file(&file, 1000);
    assert_eq!(probe(&file), ("h264".to_owned(), WIDTH, HEIGHT, 20));
    let tags = read_flv(&file);
    let video: Vec<_> = tags.iter().filter(|tag| tag.kind == 9).collect();
    assert_eq!(video[0].body[..2], [0x17, 0]);
    assert_eq!(
        (video[1].body[..2].to_vec(), video[1].timestamp),
        (vec![0x17, 1], 0)
    );
}
