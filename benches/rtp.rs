//! How many packets are drawn and sent in a second, and what does the sender cost next to a bare
//! loop that gathers and segments the same bytes?
//!
//! The last part prints ratios of thread CPU time, from alternating rounds in one run:
//! `cargo bench --bench rtp`. One thread sends some units and then empties the receiver, which is
//! not measured; delivery over the loopback runs inside the sender's call and is. As root the
//! receiver's buffer holds them all, otherwise most are dropped on delivery, by every sender alike.

use std::hint::black_box;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};

use cvmmap_streamer::bitstream::{AccessUnit, AccessUnitPool};
use cvmmap_streamer::encode::{Codec, EncodedPicture, EncodedQueue};
use cvmmap_streamer::pipeline::keyframe::KeyFrameRequests;
use cvmmap_streamer::pipeline::stop::StopToken;
use cvmmap_streamer::rtp::{Packetizer, PacketizerConfig};
use cvmmap_streamer::sink::rtp::{Pacing, RtpSink, RtpSinkConfig};
use cvmmap_streamer::sink::udp::{BatchSocket, Rung};
use cvmmap_streamer::sink::{Sink, SinkContext};
use cvmmap_streamer::time::MediaTime;
use cvmmap_streamer::trace::{FrameTrace, Stage};

mod bare;
use bare::{MTU, bare_send, set_option};

/// One slice: 33 to 34 packets, as 1080p30 at 10 Mbit/s has them.
const UNIT: usize = 40_000;

fn main() {
    // `cargo test` gives no argument; `cargo bench` says so.
    let once = !std::env::args().any(|arg| arg == "--bench");
    let mut criterion = Criterion::default().configure_from_args();
    draw(&mut criterion);
    send(&mut criterion);
    criterion.final_summary();
    for gro in [true, false] {
        ratios(gro, if once { 1 } else { 300 });
    }
}

fn draw(c: &mut Criterion) {
    let mut group = c.benchmark_group("draw packets");
    for codec in [Codec::H264, Codec::H265] {
        let unit = unit(codec, 200_000);
        let mut packetizer = packetizer(codec);
        let packets = packetizer.packets(unit.nals(), 0).len();
        group.throughput(Throughput::Elements(packets as u64));
        group.bench_function(codec.name(), |b| {
            b.iter(|| {
                let packets = packetizer.packets(black_box(&unit).nals(), 0);
                packets.map(|packet| black_box(packet).len()).sum::<usize>()
            });
        });
    }
    group.finish();
}

fn send(c: &mut Criterion) {
    let mut group = c.benchmark_group("send and drain a 40 kB unit");
    let unit = unit(Codec::H264, UNIT);
    for rung in [Rung::Segmented, Rung::Many, Rung::Single] {
        let mut receiver = Receiver::new(true);
        let mut socket = BatchSocket::new(receiver.connected()).unwrap();
        socket.limit_rung(rung);
        let mut packetizer = packetizer(Codec::H264);
        let packets = packetizer.packets(unit.nals(), 0).len();
        group.throughput(Throughput::Elements(packets as u64));
        group.bench_function(BenchmarkId::from_parameter(socket.rung().name()), |b| {
            b.iter_custom(|rounds| {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    let start = Instant::now();
                    socket.send(&mut packetizer.packets(unit.nals(), 0), start);
                    time += start.elapsed();
                    receiver.drain();
                }
                time
            });
        });
    }
    group.finish();
}

/// Prints CPU seconds per GB of payload of four senders of the same datagrams.
fn ratios(gro: bool, rounds: usize) {
    let unit = unit(Codec::H264, UNIT);
    let mut receiver = Receiver::new(gro);
    let slice = unit.nals().last().unwrap().bytes();

    // with the same options as the others' sockets
    let bare_batch = BatchSocket::new(receiver.connected()).unwrap();
    let bare_socket = bare_batch.socket().try_clone().unwrap();
    let mut sequence = 0_u16;
    let mut bare = || bare_send(&bare_socket, slice, &mut sequence);

    let mut batch_socket = BatchSocket::new(receiver.connected()).unwrap();
    let mut drawing = packetizer(Codec::H264);
    let deadline = Instant::now() + Duration::from_secs(3600);
    let mut batch = || {
        let slice = unit.nals().skip(unit.nals().len() - 1);
        let sent = batch_socket.send(&mut drawing.packets(slice, 0), deadline);
        assert_eq!(sent.datagrams, 34);
    };

    let context = SinkContext {
        key_frames: KeyFrameRequests::new(),
        stop: StopToken::new(),
        stats: Arc::default(),
    };
    let config = RtpSinkConfig {
        pacing: Pacing::Off,
        ..RtpSinkConfig::new(receiver.endpoint(), Codec::H264)
    };
    let mut whole = RtpSink::open(config, context).unwrap();
    let inter = inter_unit(UNIT);
    let mut sink = || {
        whole.send(&inter).unwrap();
        whole.poll().unwrap();
    };

    let mut costs: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        // one after another in each round, so that a busy neighbour slows all of them
        costs[0].push(round(&mut bare, &mut receiver));
        costs[1].push(round(&mut batch, &mut receiver));
        costs[2].push(round(&mut sink, &mut receiver));
    }
    let per_gb = |costs: &[f64]| median(costs.to_vec()) / (UNIT as f64);
    let ratio = |costs: &[Vec<f64>; 3], which: usize| {
        let all = costs[which]
            .iter()
            .zip(&costs[0])
            .map(|(own, bare)| own / bare);
        median(all.collect())
    };
    let receiver = if gro { "with UDP_GRO" } else { "without GRO" };
    println!("\n40 kB units of 34 packets, receiver {receiver}, CPU s/GB and median ratio:");
    println!("  bare gather-and-segment loop  {:.3}", per_gb(&costs[0]));
    for (name, which) in [
        ("packetizer and BatchSocket", 1),
        ("RtpSink: send and poll", 2),
    ] {
        println!(
            "  {name:<29} {:.3}  {:.3}",
            per_gb(&costs[which]),
            ratio(&costs, which)
        );
    }
}

/// Nanoseconds of thread CPU time for one unit.
fn round(send: &mut impl FnMut(), receiver: &mut Receiver) -> f64 {
    const UNITS: usize = 20;
    let start = thread_cpu();
    (0..UNITS).for_each(|_| send());
    let nanos = thread_cpu() - start;
    receiver.drain();
    nanos / UNITS as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn thread_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

struct Receiver {
    socket: UdpSocket,
    buffer: Vec<u8>,
}

impl Receiver {
    fn new(gro: bool) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        if set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20).is_err() {
            println!("the receive buffer stays small: not root");
        }
        if gro {
            set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).unwrap();
        }
        Self {
            socket,
            buffer: vec![0; 1 << 16],
        }
    }

    fn endpoint(&self) -> String {
        self.socket.local_addr().unwrap().to_string()
    }

    fn connected(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.socket.local_addr().unwrap()).unwrap();
        socket
    }

    fn drain(&mut self) {
        while self.socket.recv(&mut self.buffer).is_ok() {}
    }
}

fn packetizer(codec: Codec) -> Packetizer {
    Packetizer::new(PacketizerConfig {
        codec,
        payload_type: 96,
        mtu: MTU,
        ssrc: 0,
        sequence: 0,
    })
}

/// A key frame with its parameter sets and one slice.
fn unit(codec: Codec, slice: usize) -> Arc<AccessUnit> {
    let sets: &[&[u8]] = match codec {
        Codec::H264 => &[&[0x67, 1, 2, 3], &[0x68, 1], &[0x65]],
        Codec::H265 => &[&[0x40, 1, 2], &[0x42, 1, 2], &[0x44, 1, 2], &[0x26, 1]],
    };
    make(codec, sets, slice)
}

/// A picture of one slice and nothing else.
fn inter_unit(slice: usize) -> Arc<AccessUnit> {
    make(Codec::H264, &[&[0x41]], slice)
}

fn make(codec: Codec, heads: &[&[u8]], slice: usize) -> Arc<AccessUnit> {
    let mut data = Vec::new();
    for head in heads {
        data.extend([0, 0, 0, 1]);
        data.extend(*head);
    }
    data.resize(data.len() + slice - 1, 0x55);
    let mut trace = FrameTrace::default();
    trace.stamp(Stage::Notice, Instant::now());
    trace.stamp(Stage::Encoded, Instant::now());
    let picture = EncodedPicture {
        data,
        pts: MediaTime::ZERO,
        trace,
        ..EncodedPicture::default()
    };
    let (mut pool, mut queue) = (AccessUnitPool::new(codec), EncodedQueue::new());
    pool.make(picture, &mut queue, |_| ()).unwrap()
}
