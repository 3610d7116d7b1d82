//! The RTMP sink against servers that are slow, silent or talk without end, and a stop in the middle of it.

mod rtmp_support;

use std::io::Write;
use std::time::{Duration, Instant};

use cvmmap_streamer::encode::Codec;
use cvmmap_streamer::pipeline::stop::StopReason;
use cvmmap_streamer::sink::rtmp::RtmpSinkConfig;
use cvmmap_streamer::sink::{Sent, Sink};

use rtmp_support::{Driver, Film, Guest, LIMIT, Received, listen, quick};

#[test]
fn a_server_that_never_stops_talking_does_not_keep_the_sink_from_its_deadline() {
    let (listener, port) = listen();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut guest = Guest::accept(&listener);
            guest.start();
            let mut data = vec![0x04, 0, 0, 0, 0, 0, 128, 18, 1, 0, 0, 0];
            data.extend([0; 128]);
            let flood = data.repeat(200);
            while guest.socket.write_all(&flood).is_ok() {}
            assert!(done.load(std::sync::atomic::Ordering::Relaxed));
        });
        let mut driver = Driver::open(quick(port));
        driver.connect().unwrap();
        let film = Film::new(Codec::H264, 10, 10);
        driver.send_all(&film);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        driver.sink.close();
    });
}

#[test]
fn a_stalled_server_is_left_after_the_timeout_and_the_stream_starts_over() {
    let (listener, port) = listen();
    socket2::SockRef::from(&listener)
        .set_recv_buffer_size(4096)
        .unwrap();
    let film = Film::new(Codec::H264, 40, 10);
    let sessions: Vec<Vec<Received>> = std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut stalled = Guest::accept(&listener);
            stalled.start();
            // Reads nothing more, and keeps the connection.
            let mut second = Guest::accept(&listener);
            second.start();
            let read = std::iter::from_fn(|| second.next()).collect();
            let late = std::iter::from_fn(|| stalled.next()).collect();
            vec![late, read]
        });
        let mut driver = Driver::open(RtmpSinkConfig {
            write_timeout: Duration::from_millis(600),
            ..quick(port)
        });
        driver.connect().unwrap();
        let mut taken = 0;
        let start = Instant::now();
        let mut units = film.units.iter().cycle();
        for unit in &mut units {
            match driver.sink.send(unit).unwrap() {
                Sent::All => taken += unit.payload_len(),
                Sent::GivenUp => break,
            }
        }
        assert!(start.elapsed() >= Duration::from_millis(600));
        // What the kernel took for a server that reads nothing: the unsent limit, one wake-up
        // step beyond it, and what fits into the server's window. 512 kB are a second of video.
        assert!(taken < 512 * 1024, "{taken} bytes were taken");
        driver.connect().unwrap();
        assert_eq!(driver.count(|stats| &stats.reconnects), 1);
        let error = driver.sink.last_error().unwrap();
        assert!(error.contains("has not taken a picture"), "{error}");
        // In the middle of a group: given up until the key frame.
        let next: Vec<_> = units.skip_while(|unit| unit.key).take(15).collect();
        let sent: Vec<_> = next
            .iter()
            .map(|unit| driver.sink.send(unit).unwrap())
            .collect();
        let key = next.iter().position(|unit| unit.key).unwrap();
        assert!(sent[..key].iter().all(|sent| *sent == Sent::GivenUp));
        assert!(sent[key..].iter().all(|sent| *sent == Sent::All));
        driver.sink.close();
        server.join().unwrap()
    });
    // Metadata, sequence header and key frame of the second session, at its time 0.
    let media: Vec<_> = sessions[1]
        .iter()
        .filter(|m| matches!(m.kind, 9 | 18))
        .collect();
    assert_eq!(media[0].name().as_deref(), Some("@setDataFrame"));
    assert_eq!(
        (&media[1].body[..2], media[1].timestamp),
        (&[0x17, 0][..], 0)
    );
    assert_eq!(
        (&media[2].body[..2], media[2].timestamp),
        (&[0x17, 1][..], 0)
    );
    assert_eq!(
        (&media[3].body[..2], media[3].timestamp),
        (&[0x27, 1][..], 40)
    );
}

#[test]
fn a_short_stall_costs_no_connection() {
    let (listener, port) = listen();
    socket2::SockRef::from(&listener)
        .set_recv_buffer_size(4096)
        .unwrap();
    let film = Film::new(Codec::H264, 40, 10);
    let blocked = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut guest = Guest::accept(&listener);
            guest.start();
            blocked.wait();
            std::iter::from_fn(|| guest.next())
                .filter(|message| message.kind == 9)
                .count()
        });
        let mut driver = Driver::open(quick(port));
        driver.connect().unwrap();
        let mut sent = 0;
        let waiter = scope.spawn(|| {
            // The sender is stuck in a write by then, or has not begun: both are fine.
            std::thread::sleep(Duration::from_millis(300));
            blocked.wait();
        });
        for unit in film.units.iter().cycle().take(200) {
            assert_eq!(driver.sink.send(unit).unwrap(), Sent::All);
            sent += 1;
        }
        waiter.join().unwrap();
        driver.sink.close();
        assert_eq!(driver.count(|stats| &stats.errors), 0);
        // a sequence header in front, an end behind
        assert_eq!(server.join().unwrap(), sent + 2);
    });
}

#[test]
fn a_silent_server_delays_neither_stop_nor_close() {
    let (listener, port) = listen();
    let mut driver = Driver::open(quick(port));
    let start = Instant::now();
    for _ in 0..5 {
        driver.sink.poll().unwrap();
    }
    let _guest = Guest::accept(&listener);
    driver.stop.stop(StopReason::Signal);
    driver.sink.close();
    // Five waits of a twentieth of a second, and no patience for the handshake's five seconds.
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_stop_ends_a_write_to_a_stalled_server() {
    let (listener, port) = listen();
    socket2::SockRef::from(&listener)
        .set_recv_buffer_size(4096)
        .unwrap();
    let film = Film::new(Codec::H264, 20, 10);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut guest = Guest::accept(&listener);
            guest.start();
            guest
        });
        let mut driver = Driver::open(RtmpSinkConfig {
            write_timeout: LIMIT * 10,
            ..quick(port)
        });
        driver.connect().unwrap();
        let _stalled = server.join().unwrap();
        let stop = driver.stop.clone();
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            stop.stop(StopReason::Signal);
        });
        let start = Instant::now();
        let all = film.units.iter().cycle();
        assert!(
            all.take(100_000)
                .any(|unit| driver.sink.send(unit).unwrap() == Sent::GivenUp)
        );
        assert!(start.elapsed() < LIMIT);
    });
}
