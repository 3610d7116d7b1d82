//! TLS and credentials against a real `nats-server`, and what a man in the middle would read
//! (`docs/control.md`, "What TLS checks"; `docs/threat-model.md`).

#[path = "common/authority.rs"]
mod authority;
mod common;
mod nats_support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use authority::GOOD_YEAR;
use common::{Scene, expect_exit, finish, streamer};
use nats_support::{Guard, Server, accept, dummy, expect_frames, json, wait_for};
use nkeys::KeyPair;

const SECRET: &str = "s3same!0pen";

/// A certificate authority in a folder, which signs for servers.
struct Authority {
    folder: PathBuf,
    signs: authority::Authority,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir(&folder).expect("a folder");
        let signs = authority::Authority::new(name);
        std::fs::write(folder.join("ca.pem"), &signs.pem).expect("a file");
        Self { folder, signs }
    }

    fn pem(&self) -> String {
        self.folder.join("ca.pem").display().to_string()
    }

    /// Flags of a `nats-server` with a certificate for `name`, valid until the end of `year`.
    fn serve(&self, name: &str, year: i32) -> [String; 5] {
        let (certificate, key) = self.signs.sign(name, year);
        let file = |suffix: &str, text: String| {
            let path = self.folder.join(format!("{name}-{year}.{suffix}"));
            std::fs::write(&path, text).expect("a file");
            path.display().to_string()
        };
        [
            "--tls".to_owned(),
            "--tlscert".to_owned(),
            file("pem", certificate.pem()),
            "--tlskey".to_owned(),
            file("key", key.serialize_pem()),
        ]
    }
}

fn serving(flags: &[String], more: &[&str]) -> Server {
    let mut server = Server::absent();
    start(&mut server, flags, more);
    server
}

fn start(server: &mut Server, flags: &[String], more: &[&str]) {
    let all: Vec<&str> = flags
        .iter()
        .map(String::as_str)
        .chain(more.to_vec())
        .collect();
    server.start_with(&all);
}

/// `ctl` for a producer that nobody is: exit 4 from a server that lets us in, else 5.
fn ask(url: &str, more: &[&str], authorities_of_the_system: Option<&str>) -> Output {
    let mut command = streamer();
    command
        .args(["ctl", "--json", "--input-uri", "nobody", "--nats-url", url])
        .args(more)
        .arg("info")
        .env_remove("SSL_CERT_DIR")
        .env_remove("SSL_CERT_FILE");
    if let Some(path) = authorities_of_the_system {
        command.env("SSL_CERT_FILE", path);
    }
    finish(&mut command)
}

/// The kind of the error that `ctl` gives; no secret is in anything it says.
#[track_caller]
fn refused(output: &Output, words: &str) -> String {
    let text = expect_exit(output, 5);
    assert!(!text.contains(SECRET), "{text}");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(text.contains(words), "{words:?} is not in {text}");
    answer["error"].as_str().expect("an error").to_owned()
}

#[test]
fn a_stream_is_served_over_tls_with_a_password_also_after_an_outage() {
    let scene = Scene::new();
    let authority = Authority::new(scene.folder.path(), "own");
    let ca = authority.pem();
    let flags = authority.serve("localhost", GOOD_YEAR);
    let login = ["--user", "me", "--pass", SECRET];
    let mut server = serving(&flags, &login);
    let url = format!("tls://me:{SECRET}@localhost:{}", server.port);
    let run = dummy(&scene, 0, &["--nats-url", &url, "--nats-ca", &ca]);
    let served = |when: &str| {
        wait_for(when, || {
            let output = finish(
                streamer()
                    .args(["ctl", "--json", "--shm-name", &scene.shm_name])
                    .args(["--nats-url", &url, "--nats-ca", &ca, "stats"]),
            );
            output.status.success().then_some(())
        });
    };
    served("an answer");
    server.kill();
    start(&mut server, &flags, &login);
    served("an answer after the outage");
    let text = expect_exit(&run.interrupt(), 0);
    assert!(!text.contains(SECRET), "{text}");
    let report = std::fs::read_to_string(scene.path("report.json")).expect("a report");
    assert!(!report.contains(SECRET), "{report}");
    let counters = &json(&scene.path("report.json"))["control"]["counters"];
    assert_eq!(counters["connects"], 1, "{counters}");
    assert_eq!(counters["reconnects"], 1, "{counters}");
}

#[test]
fn tls_wants_a_valid_certificate_for_the_host_from_the_right_authority() {
    let scene = Scene::new();
    let authority = Authority::new(scene.folder.path(), "own");
    let other = Authority::new(scene.folder.path(), "other").pem();
    let own = authority.pem();
    let of = |server: &Server| format!("tls://me:{SECRET}@localhost:{}", server.port);
    let login = ["--user", "me", "--pass", SECRET];

    let server = serving(&authority.serve("localhost", GOOD_YEAR), &login);
    let url = of(&server);
    expect_exit(&ask(&url, &["--nats-ca", &own], None), 4);
    // Without --nats-ca the system's authorities count, and with it they do not.
    expect_exit(&ask(&url, &[], Some(&own)), 4);
    for output in [
        ask(&url, &["--nats-ca", &other], Some(&own)),
        ask(&url, &[], Some(&other)),
        ask(&url, &[], None),
    ] {
        assert_eq!(refused(&output, "unknown authority"), "tls");
    }
    // nats:// takes TLS from a server that asks for it, and checks as much.
    let lax = url.replace("tls://", "nats://");
    expect_exit(&ask(&lax, &["--nats-ca", &own], None), 4);
    let output = ask(&lax, &["--nats-ca", &other], None);
    assert_eq!(refused(&output, "unknown authority"), "tls");
    // Another name for the same machine is not in the certificate.
    let numeric = url.replace("localhost", "127.0.0.1");
    let output = ask(&numeric, &["--nats-ca", &own], None);
    assert_eq!(refused(&output, "NotValidForName"), "tls");
    let output = ask(&url.replace(SECRET, "wr0ng"), &["--nats-ca", &own], None);
    assert_eq!(refused(&output, "refuses the credentials"), "unauthorized");

    let address = serving(&authority.serve("127.0.0.1", GOOD_YEAR), &login);
    let url = of(&address).replace("localhost", "127.0.0.1");
    expect_exit(&ask(&url, &["--nats-ca", &own], None), 4);
    let elsewhere = serving(&authority.serve("nats.example", GOOD_YEAR), &login);
    let output = ask(&of(&elsewhere), &["--nats-ca", &own], None);
    assert_eq!(refused(&output, "NotValidForName"), "tls");
    let expired = serving(&authority.serve("localhost", 2001), &login);
    let output = ask(&of(&expired), &["--nats-ca", &own], None);
    assert_eq!(refused(&output, "Expired"), "tls");

    // One tls:// in the list is for all of them.
    let plain = serving(&[], &login);
    let output = ask(&of(&plain), &["--nats-ca", &own], None);
    assert_eq!(refused(&output, "does not speak it"), "tls");
    let absent = Server::absent();
    let list = format!(
        "nats://me:{SECRET}@localhost:{},tls://localhost:{}",
        plain.port, absent.port
    );
    refused(&ask(&list, &["--nats-ca", &own], None), "localhost");
    let plainly = of(&plain).replace("tls://", "nats://");
    expect_exit(&ask(&plainly, &[], None), 4);
}

/// What a client sends to a server that says `info` and then nothing, until it has sent `enough`.
fn overhear(url: impl Fn(u16) -> String, info: &str, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = url(listener.local_addr().expect("an address").port());
    let client = Guard::spawn(
        streamer()
            .args(["discover", "--nats-url", &url])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    let mut socket = accept(&listener);
    socket
        .write_all(format!("INFO {info}\r\n").as_bytes())
        .expect("INFO");
    socket
        .set_read_timeout(Some(Duration::from_secs(100)))
        .expect("a limit");
    let (mut all, mut some) = (Vec::new(), [0; 4096]);
    while !enough(&all) {
        match socket.read(&mut some) {
            Ok(0) => break,
            Ok(n) => all.extend(&some[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&all)),
        }
    }
    client.kill();
    // What was on its way when it ended.
    let _ = socket.read_to_end(&mut all);
    all
}

#[test]
fn who_strips_the_wish_for_tls_reads_the_password_of_nats_urls_and_not_of_tls_urls() {
    // As nats-server 2.9 says it (client protocol documentation, INFO).
    let info = |more: &str| {
        format!(
            r#"{{"server_id":"x","version":"2.9.10","proto":1,"go":"go1.19","host":"0.0.0.0",
                "port":4222,"headers":true,"max_payload":1048576,"client_id":7{more}}}"#
        )
        .replace('\n', " ")
    };
    let (plain, wish) = (info(""), info(r#","tls_required":true"#));
    // A handshake record of TLS (RFC 8446 section 5.1): type 22, legacy version 3.x.
    let hello = |bytes: &[u8]| bytes.len() >= 200 && bytes[0] == 22 && bytes[1] == 3;
    for (scheme, info) in [("tls", &plain), ("tls", &wish), ("nats", &wish)] {
        let url = |port| format!("{scheme}://me:{SECRET}@localhost:{port}");
        let heard = overhear(url, info, hello);
        assert!(hello(&heard), "{scheme} {info}: {heard:?}");
        let text = String::from_utf8_lossy(&heard);
        assert!(!text.contains(SECRET), "{scheme} {info}: {text}");
    }
    let url = |port| format!("nats://me:{SECRET}@localhost:{port}");
    let heard = overhear(url, &plain, |bytes| bytes.ends_with(b"PING\r\n"));
    let text = String::from_utf8_lossy(&heard);
    assert!(text.contains(SECRET), "the documented weakness: {text}");
}

#[test]
fn a_server_that_does_not_let_us_in_is_one_warning_and_costs_no_frame() {
    let scene = Scene::new();
    let authority = Authority::new(scene.folder.path(), "own");
    let other = Authority::new(scene.folder.path(), "other").pem();
    let flags = authority.serve("localhost", GOOD_YEAR);
    let server = serving(&flags, &["--user", "me", "--pass", "another"]);
    let url = format!("tls://me:{SECRET}@localhost:{}", server.port);
    for (ca, words) in [
        (authority.pem(), "refuses the credentials"),
        (other, "unknown authority"),
    ] {
        let scene = Scene::new();
        let run = dummy(&scene, 30, &["--nats-url", &url, "--nats-ca", &ca]);
        let text = expect_exit(&run.finish(), 0);
        assert_eq!(text.matches(words).count(), 1, "{text}");
        let warnings = text.matches("the server is tried again every second");
        assert_eq!(warnings.count(), 1, "{text}");
        assert!(!text.contains(SECRET), "{text}");
        let report = json(&scene.path("report.json"));
        expect_frames(&report, 30);
        assert_eq!(report["control"]["counters"]["connects"], 0);
    }
}

/// A JWT as NATS signs them: header, claims and an Ed25519 signature over both.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: &str) -> String {
    let part = |bytes: &[u8]| data_encoding::BASE64URL_NOPAD.encode(bytes);
    let claims = format!(
        r#"{{"jti":"x","iat":1700000000,"iss":"{}","sub":"{}","nats":{nats}}}"#,
        issuer.public_key(),
        subject.public_key()
    );
    let header = part(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let signed = format!("{header}.{}", part(claims.as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).expect("a signature");
    format!("{signed}.{}", part(&signature))
}

#[test]
fn a_credentials_file_is_used_and_never_shown() {
    let scene = Scene::new();
    let [operator, account, user] = [
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_user(),
    ];
    let operator_jwt = jwt(&operator, &operator, r#"{"type":"operator","version":2}"#);
    let account_jwt = jwt(
        &operator,
        &account,
        r#"{"limits":{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,
            "wildcards":true,"conn":-1,"leaf":-1},"type":"account","version":2}"#,
    );
    let config = scene.path("server.conf");
    let text = format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_jwt} }}\n",
        account.public_key()
    );
    std::fs::write(&config, text).expect("a file");
    let server = serving(&[], &["-c", &config.display().to_string()]);
    let url = server.url();

    let credentials = |name: &str, issuer: &KeyPair| {
        let claims = r#"{"subs":-1,"data":-1,"payload":-1,"type":"user","version":2}"#;
        let path = scene.path(name);
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(issuer, &user, claims),
            user.seed().expect("a seed")
        );
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let good = credentials("good.creds", &account);
    let forged = credentials("forged.creds", &KeyPair::new_account());
    let none = scene.path("none.creds").display().to_string();
    std::fs::write(&none, format!("{SECRET}\n")).expect("a file");

    expect_exit(&ask(&url, &["--nats-creds", &good], None), 4);
    let seed = user.seed().expect("a seed");
    for (arguments, words) in [
        (&[][..], "refuses the credentials"),
        (&["--nats-creds", &forged], "refuses the credentials"),
        (&["--nats-creds", &none], "cannot parse user JWT"),
    ] {
        let output = ask(&url, arguments, None);
        assert_eq!(refused(&output, words), "unauthorized");
        assert!(!common::text(&output).contains(&seed));
    }
}
