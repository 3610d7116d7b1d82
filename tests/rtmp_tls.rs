//! The RTMP sink over TLS: certificates that are in order, and those that are not.

#[path = "common/authority.rs"]
mod authority;
mod rtmp_support;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use authority::{Authority, GOOD_YEAR};
use cvmmap_streamer::encode::Codec;
use cvmmap_streamer::sink::Sink;
use cvmmap_streamer::sink::rtmp::RtmpSinkConfig;

use rtmp_support::{Driver, Film, LIMIT, listen, quick};

/// The server configuration of a certificate for `name`.
fn tls_server(authority: &Authority, name: &str) -> Arc<rustls::ServerConfig> {
    let (certificate, key) = authority.sign(name, GOOD_YEAR);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    Arc::new(config)
}

/// Publishes `film` over TLS to a server with `name` in its certificate; what it read, or why
/// the sink was lost.
fn over_tls(
    name: &str,
    film: &Film,
    trust: impl FnOnce(&mut RtmpSinkConfig, std::path::PathBuf),
) -> Result<(Option<String>, Vec<u8>), String> {
    let authority = Authority::new("of the server");
    let server_config = tls_server(&authority, name);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &authority.pem).unwrap();
    let (listener, port) = listen();
    let mut sink_config = quick(port);
    sink_config.url = format!("rtmps://localhost:{port}/live/key")
        .parse()
        .unwrap();
    sink_config.max_retries = 1;
    trust(&mut sink_config, file.path().to_owned());
    let mut driver = Driver::open(sink_config);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, listener) = (&stop, &listener);
        // Also when the sink panics: the scope waits for its server.
        let ending = Ending(stop);
        let server = scope.spawn(move || {
            listener.set_nonblocking(true).unwrap();
            loop {
                let Ok((mut socket, _)) = listener.accept() else {
                    if stop.load(Ordering::Relaxed) {
                        return None;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                socket.set_nonblocking(false).unwrap();
                socket.set_read_timeout(Some(LIMIT)).unwrap();
                socket.set_write_timeout(Some(LIMIT)).unwrap();
                let mut tls = rustls::ServerConnection::new(Arc::clone(&server_config)).unwrap();
                let mut stream = rustls::Stream::new(&mut tls, &mut socket);
                if let Some(read) = serve_tls(&mut stream) {
                    return Some((tls.server_name().map(str::to_owned), read));
                }
            }
        });
        let result = driver.connect().map_err(|error| error.to_string());
        if result.is_ok() {
            driver.send_all(film);
        }
        driver.sink.close();
        drop(ending);
        let read = server.join().unwrap();
        result.map(|()| read.unwrap())
    })
}

/// Sets its flag when it is dropped.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Plays a server blindly: answers are timed by what must have come. Gives all media bytes.
fn serve_tls(stream: &mut (impl Read + Write)) -> Option<Vec<u8>> {
    let mut c0c1 = [0; 1537];
    stream.read_exact(&mut c0c1).ok()?;
    let s = [&[3][..], &[0; 8], &[0x5A; 1528], &c0c1[1..]].concat();
    stream.write_all(&s).ok()?;
    let mut replies = Vec::new();
    let command = |body: &[u8]| {
        let mut wire = vec![3, 0, 0, 0, 0, 0, body.len() as u8, 20, 0, 0, 0, 0];
        wire.extend(body);
        wire
    };
    let result = |id: [u8; 8], tail: &[u8]| {
        let head = [&[2, 0, 7][..], b"_result", &[0], &id, &[5]].concat();
        command(&[&head[..], tail].concat())
    };
    replies.extend(result(1.0_f64.to_be_bytes(), &[5]));
    replies.extend(result(
        4.0_f64.to_be_bytes(),
        &[&[0][..], &1.0_f64.to_be_bytes()].concat(),
    ));
    let start = b"NetStream.Publish.Start";
    let status = [
        &[2, 0, 8][..],
        b"onStatus",
        &[0; 9],
        &[5, 3, 0, 4],
        b"code",
        &[2, 0, start.len() as u8],
        start,
        &[0, 0, 9],
    ]
    .concat();
    replies.extend(command(&status));
    stream.write_all(&replies).ok()?;
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read);
    Some(read)
}

#[test]
fn rtmps_publishes_to_a_server_whose_certificate_is_in_order() {
    let film = Film::new(Codec::H264, 20, 10);
    let (name, read) = over_tls("localhost", &film, |config, ca| {
        config.tls.ca_file = Some(ca)
    })
    .unwrap();
    assert_eq!(name.as_deref(), Some("localhost"), "SNI");
    // The first key frame's slice lies in there in one piece (chunks of 64 KiB).
    let slice = film.units[0].nals().last().unwrap().bytes();
    assert!(memchr::memmem::find(&read, &slice[..slice.len().min(20_000)]).is_some());
    let payload: usize = film.units.iter().map(|unit| unit.payload_len()).sum();
    assert!(read.len() > payload / 2);
}

#[test]
fn a_certificate_that_is_not_in_order_is_explained() {
    let film = Film::new(Codec::H264, 2, 2);
    let folder = tempfile::tempdir().unwrap();
    let stranger = over_tls("localhost", &film, |config, _| {
        // An authority, but not the one that signed.
        let stranger = Authority::new("of somebody else");
        std::fs::write(folder.path().join("ca.pem"), &stranger.pem).unwrap();
        config.tls.ca_file = Some(folder.path().join("ca.pem"));
    });
    let error = stranger.unwrap_err();
    assert!(
        error.contains("signed by nobody") && error.contains("--rtmp-tls-ca"),
        "{error}"
    );
    let error = over_tls("other.example", &film, |config, ca| {
        config.tls.ca_file = Some(ca)
    })
    .unwrap_err();
    assert!(error.contains("another name"), "{error}");
    // The explicit opt-out takes both.
    over_tls("other.example", &film, |config, _| {
        config.tls.insecure = true
    })
    .unwrap();
}
