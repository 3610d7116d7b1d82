//! A network between sender and receiver, in user space: loses, doubles, reorders and delays datagrams.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::noise::Noise;
use crate::worker::Worker;

/// What the network does; can be changed while it runs.
#[derive(Debug, Default)]
pub struct Weather {
    /// Of a thousand datagrams.
    pub lost: AtomicU32,
    pub doubled: AtomicU32,
    /// Held back behind later ones.
    pub reordered: AtomicU32,
    pub delay_ms: AtomicU32,
    pub dropped: AtomicU64,
}

impl Weather {
    pub fn clear(&self) {
        for value in [&self.lost, &self.doubled, &self.reordered, &self.delay_ms] {
            value.store(0, Ordering::Relaxed);
        }
    }
}

/// Forwards from a port of its own to another until it is dropped.
#[derive(Debug)]
pub struct Relay {
    pub port: u16,
    pub weather: Arc<Weather>,
    _thread: Worker<()>,
}

impl Relay {
    /// # Errors
    ///
    /// If no socket is to be had.
    pub fn start(to: u16, seed: u64) -> io::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(2)))?;
        let port = socket.local_addr()?.port();
        let weather = Arc::<Weather>::default();
        let thread = Worker::start({
            let weather = Arc::clone(&weather);
            move |stop| forward(&socket, to, seed, &weather, stop)
        });
        Ok(Relay {
            port,
            weather,
            _thread: thread,
        })
    }
}

type Held = Reverse<(Instant, u64, Vec<u8>)>;

// Relaxed throughout: counters and settings that guard no other data.
fn forward(socket: &UdpSocket, to: u16, seed: u64, weather: &Weather, stop: &AtomicBool) {
    let mut noise = Noise::new(seed);
    let mut chance = |of_thousand: &AtomicU32| {
        noise.below(1000) < u64::from(of_thousand.load(Ordering::Relaxed))
    };
    let mut held = BinaryHeap::<Held>::new();
    let (mut buffer, mut count) = (vec![0; 65_536], 0);
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, _)) = socket.recv_from(&mut buffer) {
            if chance(&weather.lost) {
                weather.dropped.fetch_add(1, Ordering::Relaxed);
            } else {
                let copies = 1 + usize::from(chance(&weather.doubled));
                let mut delay = weather.delay_ms.load(Ordering::Relaxed);
                if chance(&weather.reordered) {
                    delay += 8;
                }
                let due = Instant::now() + Duration::from_millis(delay.into());
                for _ in 0..copies {
                    count += 1;
                    held.push(Reverse((due, count, buffer[..length].to_vec())));
                }
            }
        }
        while held
            .peek()
            .is_some_and(|Reverse((due, ..))| *due <= Instant::now())
        {
            if let Some(Reverse((_, _, datagram))) = held.pop() {
                // A receiver that is gone answers with ICMP: that is its business.
                let _ = socket.send_to(&datagram, ("127.0.0.1", to));
            }
        }
    }
}
