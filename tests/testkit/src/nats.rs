//! A NATS client of the referees' own: the text protocol over TCP, nothing else (NATS client
//! protocol documentation). Standard library only, so that tests of any package can include it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A message, as it came.
#[derive(Debug, Clone)]
pub struct Message {
    /// Which subscription of this client it is for.
    pub sid: u64,
    pub subject: String,
    pub reply: Option<String>,
    /// The header block with its status line; empty without one.
    pub headers: String,
    pub data: Vec<u8>,
}

impl Message {
    /// The server's own answer that nobody listens.
    pub fn is_no_responders(&self) -> bool {
        self.headers.starts_with("NATS/1.0 503")
    }
}

/// A connection; cloning shares it. It reconnects and subscribes again by itself.
#[derive(Debug, Clone)]
pub struct Nats(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    address: String,
    link: Mutex<Link>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Link {
    stream: Option<TcpStream>,
    /// Number, subject, queue group.
    subscriptions: Vec<(u64, String, Option<String>)>,
}

impl Nats {
    /// Connects to `nats://host:port`; every message goes to the receiver.
    ///
    /// # Errors
    ///
    /// If nobody is there or it does not speak NATS.
    pub fn connect(url: &str) -> io::Result<(Self, Receiver<Message>)> {
        let address = url.strip_prefix("nats://").unwrap_or(url).to_owned();
        let address = if address.contains(':') {
            address
        } else {
            format!("{address}:4222")
        };
        let (stream, reader) = handshake(&address)?;
        let nats = Self(Arc::new(Shared {
            address,
            link: Mutex::new(Link {
                stream: Some(stream),
                subscriptions: Vec::new(),
            }),
            next: AtomicU64::new(1),
        }));
        let (sender, receiver) = channel();
        let own = nats.clone();
        std::thread::Builder::new()
            .name("nats".to_owned())
            .spawn(move || own.read_for_ever(reader, &sender))?;
        Ok((nats, receiver))
    }

    /// # Errors
    ///
    /// None while the server is away: the subscription is made when it is back.
    pub fn subscribe(&self, subject: &str, group: Option<&str>) -> io::Result<u64> {
        // Relaxed: a number that nobody else has.
        let sid = self.0.next.fetch_add(1, Ordering::Relaxed);
        let mut link = self.link();
        link.subscriptions
            .push((sid, subject.to_owned(), group.map(str::to_owned)));
        let line = subscription(sid, subject, group);
        link.write(line.as_bytes());
        Ok(sid)
    }

    pub fn unsubscribe(&self, sid: u64) {
        let mut link = self.link();
        link.subscriptions.retain(|(known, ..)| *known != sid);
        link.write(format!("UNSUB {sid}\r\n").as_bytes());
    }

    /// Lost while the server is away.
    pub fn publish(&self, subject: &str, reply: Option<&str>, data: &[u8]) {
        let mut bytes = match reply {
            Some(reply) => format!("PUB {subject} {reply} {}\r\n", data.len()),
            None => format!("PUB {subject} {}\r\n", data.len()),
        }
        .into_bytes();
        bytes.extend(data);
        bytes.extend(b"\r\n");
        self.link().write(&bytes);
    }

    /// Many messages in one write.
    pub fn publish_all(&self, subject: &str, all: &[Vec<u8>]) {
        let mut bytes = Vec::new();
        for data in all {
            bytes.extend(format!("PUB {subject} {}\r\n", data.len()).into_bytes());
            bytes.extend(data);
            bytes.extend(b"\r\n");
        }
        self.link().write(&bytes);
    }

    /// Asks on a fresh inbox. Messages of other subscriptions that come meanwhile are lost: for
    /// clients that only ask.
    pub fn request(
        &self,
        messages: &Receiver<Message>,
        subject: &str,
        data: &[u8],
        limit: Duration,
    ) -> Option<Message> {
        let inbox = format!(
            "_INBOX.referee{}x{}",
            std::process::id(),
            self.0.next.fetch_add(1, Ordering::Relaxed)
        );
        let sid = self.subscribe(&inbox, None).ok()?;
        self.publish(subject, Some(&inbox), data);
        let deadline = Instant::now() + limit;
        let answer = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match messages.recv_timeout(left) {
                Ok(message) if message.sid == sid => break Some(message),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break None,
            }
        };
        self.unsubscribe(sid);
        answer
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.0.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_for_ever(&self, mut reader: BufReader<TcpStream>, sender: &Sender<Message>) {
        loop {
            while let Ok(Some(operation)) = operation(&mut reader) {
                match operation {
                    Operation::Message(message) => {
                        if sender.send(message).is_err() {
                            return;
                        }
                    }
                    Operation::Ping => self.link().write(b"PONG\r\n"),
                    Operation::Other => {}
                }
            }
            self.link().stream = None;
            reader = loop {
                std::thread::sleep(Duration::from_millis(200));
                let Ok((mut stream, reader)) = handshake(&self.0.address) else {
                    continue;
                };
                let mut link = self.link();
                let again: String = link
                    .subscriptions
                    .iter()
                    .map(|(sid, subject, group)| subscription(*sid, subject, group.as_deref()))
                    .collect();
                if stream.write_all(again.as_bytes()).is_ok() {
                    link.stream = Some(stream);
                    break reader;
                }
            };
        }
    }
}

impl Link {
    fn write(&mut self, bytes: &[u8]) {
        // A failure shows at the reader, which connects again.
        if let Some(stream) = &mut self.stream
            && stream.write_all(bytes).is_err()
        {
            self.stream = None;
        }
    }
}

fn subscription(sid: u64, subject: &str, group: Option<&str>) -> String {
    match group {
        Some(group) => format!("SUB {subject} {group} {sid}\r\n"),
        None => format!("SUB {subject} {sid}\r\n"),
    }
}

fn handshake(address: &str) -> io::Result<(TcpStream, BufReader<TcpStream>)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(GREETING))?;
    let mut reader = BufReader::with_capacity(1 << 16, stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if !line.starts_with("INFO ") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the server does not begin with INFO",
        ));
    }
    stream.write_all(
        b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"0\",\
          \"name\":\"referee\",\"headers\":true,\"no_responders\":true}\r\nPING\r\n",
    )?;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        match line.trim_end() {
            "PONG" => {
                stream.set_read_timeout(None)?;
                return Ok((stream, reader));
            }
            "" => return Err(io::ErrorKind::UnexpectedEof.into()),
            refused if refused.starts_with("-ERR") => {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, refused));
            }
            _ => {}
        }
    }
}

/// Whoever takes the connection and says nothing for so long is no server.
const GREETING: Duration = Duration::from_secs(10);

enum Operation {
    Message(Message),
    Ping,
    Other,
}

/// `None` at the end of the connection.
fn operation(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Operation>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, line.clone());
    let with_headers = match words.next() {
        Some("MSG") => false,
        Some("HMSG") => true,
        Some("PING") => return Ok(Some(Operation::Ping)),
        _ => return Ok(Some(Operation::Other)),
    };
    // MSG subject sid [reply] bytes; HMSG subject sid [reply] header-bytes bytes
    let words: Vec<&str> = words.collect();
    let numbers = 1 + usize::from(with_headers);
    let (reply, sizes) = match words.len().checked_sub(2 + numbers) {
        Some(0) => (None, &words[2..]),
        Some(1) => (Some(words[2].to_owned()), &words[3..]),
        _ => return Err(wrong()),
    };
    let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
    let total = number(sizes[numbers - 1])?;
    let head = if with_headers { number(sizes[0])? } else { 0 };
    let sid = words[1].parse().map_err(|_| wrong())?;
    let mut data = vec![0; total + 2];
    reader.read_exact(&mut data)?;
    data.truncate(total);
    let body = data.split_off(head.min(total));
    Ok(Some(Operation::Message(Message {
        sid,
        subject: words[0].to_owned(),
        reply,
        headers: String::from_utf8_lossy(&data).into_owned(),
        data: body,
    })))
}
