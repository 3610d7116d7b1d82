//! What the RTMP sink puts in front of a key frame, and where it goes when a server asks it to.

mod rtmp_support;

use std::time::{Duration, Instant};

use cvmmap_streamer::encode::Codec;
use cvmmap_streamer::sink::{Sent, Sink};

use rtmp_support::{Driver, Film, Guest, LIMIT, Received, listen, quick};

#[test]
fn new_parameter_sets_are_announced_in_front_of_their_key_frame_only() {
    let (listener, port) = listen();
    let films = Film::changing(Codec::H264);
    let messages = std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut guest = Guest::accept(&listener);
            guest.start();
            let messages: Vec<_> = std::iter::from_fn(|| guest.next()).collect();
            messages
        });
        let mut driver = Driver::open(quick(port));
        driver.connect().unwrap();
        driver.send_all(&films);
        driver.sink.close();
        server.join().unwrap()
    });
    let kinds: String = messages
        .iter()
        .filter_map(|message| match (message.kind, message.body.get(..2)) {
            (18, _) => Some('m'),
            (9, Some([0x17, 0])) => Some('h'),
            (9, Some([0x17, 1])) => Some('K'),
            (9, Some([0x27, 1])) => Some('p'),
            (9, Some([0x17, 2])) => Some('e'),
            _ => None,
        })
        .collect();
    // Two groups of five of one size, two of another.
    assert_eq!(kinds, "mhKppppKppppmhKppppKppppe");
    let times = messages.iter().filter(|message| message.kind == 9);
    let times: Vec<_> = times.map(|message| message.timestamp).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn a_reconnect_request_moves_the_stream_at_a_key_frame() {
    let (old, old_port) = listen();
    let (new, new_port) = listen();
    let film = Film::new(Codec::H264, 40, 10);
    std::thread::scope(|scope| {
        let old_server = scope.spawn(|| {
            let mut guest = Guest::accept(&old);
            guest.start();
            guest.expect("@setDataFrame");
            guest.command(|amf| {
                amf.string("onStatus").number(0.0).null().object();
                amf.key("level").string("status");
                amf.key("code")
                    .string("NetConnection.Connect.ReconnectRequest");
                amf.key("tcUrl")
                    .string(&format!("rtmp://127.0.0.1:{new_port}/other"))
                    .end();
            });
            let messages: Vec<_> = std::iter::from_fn(|| guest.next()).collect();
            messages
        });
        let new_server = scope.spawn(|| {
            let mut guest = Guest::accept(&new);
            guest.start();
            let messages: Vec<_> = std::iter::from_fn(|| guest.next()).collect();
            messages
        });
        let mut driver = Driver::open(quick(old_port));
        driver.connect().unwrap();
        let mut units = film.units.iter().cycle();
        let deadline = Instant::now() + LIMIT;
        while driver.count(|stats| &stats.reconnects) == 0 {
            assert_eq!(driver.sink.send(units.next().unwrap()).unwrap(), Sent::All);
            driver.sink.poll().unwrap();
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        for unit in units.take(25) {
            assert_eq!(driver.sink.send(unit).unwrap(), Sent::All);
        }
        driver.sink.close();
        let (old, new) = (old_server.join().unwrap(), new_server.join().unwrap());
        let names: Vec<_> = old.iter().filter_map(Received::name).collect();
        assert_eq!(names, ["FCUnpublish", "deleteStream"]);
        let video: Vec<_> = new.iter().filter(|message| message.kind == 9).collect();
        assert_eq!(video[0].body[..2], [0x17, 0]);
        assert_eq!(video[1].body[..2], [0x17, 1]);
        // No picture was lost or sent twice.
        let pictures = |messages: &[Received]| {
            messages
                .iter()
                .filter(|m| m.kind == 9 && m.body[1] == 1)
                .count() as u64
        };
        let sent = driver.count(|stats| &stats.units);
        assert_eq!(pictures(&old) + pictures(&new), sent);
        assert_eq!(driver.count(|stats| &stats.given_up), 0);
    });
}
