//! CPU of the RTMP writer next to a bare `writev` loop that sends the same bytes over a socket
//! with the same options to the same receiver, alternating. `cargo bench --bench rtmp`; run as a test it makes one short round.
//!
//! Printed: CPU seconds per GB of the sending thread and their ratio, by size of picture and of
//! chunk. The bare loop is given chunks that were cut beforehand: header, slice, header, slice.

use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use cvmmap_streamer::bitstream::{AccessUnit, AccessUnitPool};
use cvmmap_streamer::encode::{Codec, EncodedPicture, EncodedQueue};
use cvmmap_streamer::flv::Packaging;
use cvmmap_streamer::pipeline::keyframe::KeyFrameRequests;
use cvmmap_streamer::pipeline::stop::StopToken;
use cvmmap_streamer::sink::rtmp::{RtmpSink, RtmpSinkConfig};
use cvmmap_streamer::sink::{Sent, Sink, SinkContext};
use cvmmap_streamer::time::MediaTime;
use rustix::time::{ClockId, clock_gettime};

fn main() {
    let whole = std::env::args().any(|arg| arg == "--bench");
    let (megabytes, rounds) = if whole { (400, 9) } else { (2, 1) };
    println!("CPU s/GB: bare writev, writer, ratio (median of {rounds} alternating rounds)");
    for picture in [20_000, 64_000, 256_000] {
        for chunk_size in [4096, 65_536, 1 << 20] {
            compare(picture, chunk_size, megabytes * 1_000_000, rounds);
        }
    }
}

fn compare(picture: usize, chunk_size: u32, bytes: usize, rounds: usize) {
    let units = units(picture);
    let count = bytes / picture;
    let mut writer = Writer::new(chunk_size);
    let mut bare = Bare::new(chunk_size as usize);
    let mut ratios = Vec::new();
    let mut figures = Vec::new();
    for _ in 0..rounds {
        let ours = cpu(|| writer.send(&units, count));
        let theirs = cpu(|| bare.send(&units, count));
        ratios.push(ours / theirs);
        figures.push((theirs, ours));
    }
    ratios.sort_by(f64::total_cmp);
    let at = ratios.len() / 2;
    let column = |of: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = figures.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[at] / (count * picture) as f64 * 1e9
    };
    println!(
        "picture {picture:>7}  chunk {chunk_size:>7}  {:.4}  {:.4}  {:.3}",
        column(|f| f.0),
        column(|f| f.1),
        ratios[at],
    );
}

/// A key frame of one slice, then pictures of one slice; all of `len` bytes.
fn units(len: usize) -> Vec<Arc<AccessUnit>> {
    let (mut pool, mut queue) = (AccessUnitPool::new(Codec::H264), EncodedQueue::new());
    let sets = [
        &[
            0, 0, 0, 1, 0x67, 0x42, 0xC0, 0x1E, 0xD9, 0x00, 0xA0, 0x2F, 0xF9, 0x70, 0x11, 0, 0,
        ][..],
        &[3, 0, 1, 0, 0, 3, 0, 0x32, 0x0F, 0x16, 0x2E, 0x48],
        &[0, 0, 0, 1, 0x68, 0xCB, 0x83, 0xCB, 0x20],
    ]
    .concat();
    (0..8_i64)
        .map(|at| {
            let mut data = if at == 0 { sets.clone() } else { Vec::new() };
            data.extend([0, 0, 0, 1, if at == 0 { 0x65 } else { 0x41 }]);
            data.resize(data.len() + len, 0xA5);
            let picture = EncodedPicture {
                data,
                pts: MediaTime(at * 33_333_333),
                dts: MediaTime(at * 33_333_333),
                ..EncodedPicture::default()
            };
            pool.make(picture, &mut queue, |_| ()).unwrap()
        })
        .collect()
}

struct Writer(RtmpSink);

impl Writer {
    fn new(chunk_size: u32) -> Self {
        let port = serve(true);
        let url = format!("rtmp://127.0.0.1:{port}/live/bench")
            .parse()
            .unwrap();
        let config = RtmpSinkConfig {
            chunk_size,
            unsent_limit: UNSENT,
            ..RtmpSinkConfig::new(url, Packaging::LegacyAvc)
        };
        let context = SinkContext {
            key_frames: KeyFrameRequests::new(),
            stop: StopToken::new(),
            stats: Arc::default(),
        };
        let mut sink = RtmpSink::open(config, context).unwrap();
        while !sink.is_live() {
            sink.poll().unwrap();
        }
        Self(sink)
    }

    fn send(&mut self, units: &[Arc<AccessUnit>], count: usize) {
        for unit in units.iter().cycle().take(count) {
            assert_eq!(self.0.send(unit).unwrap(), Sent::All);
        }
    }
}

struct Bare {
    socket: TcpStream,
    chunk_size: usize,
}

impl Bare {
    fn new(chunk_size: usize) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", serve(false))).unwrap();
        socket.set_nodelay(true).unwrap();
        let socket_ref = socket2::SockRef::from(&socket);
        socket_ref.set_tcp_notsent_lowat(UNSENT).unwrap();
        Self { socket, chunk_size }
    }

    fn send(&mut self, units: &[Arc<AccessUnit>], count: usize) {
        let (first, next) = ([6; 21], [0xC6; 1]);
        let prepared: Vec<Vec<IoSlice<'_>>> = units
            .iter()
            .map(|unit| {
                let slice = unit.nals().last().unwrap().bytes();
                let mut pieces = vec![IoSlice::new(&first)];
                let (head, rest) = slice.split_at(slice.len().min(self.chunk_size - 9));
                pieces.push(IoSlice::new(head));
                for chunk in rest.chunks(self.chunk_size) {
                    pieces.push(IoSlice::new(&next));
                    pieces.push(IoSlice::new(chunk));
                }
                pieces
            })
            .collect();
        let all = prepared.len();
        let mut scratch = Vec::with_capacity(1024);
        for at in 0..count {
            scratch.clear();
            scratch.extend(prepared[at % all].iter().copied());
            let mut pieces = &mut scratch[..];
            while !pieces.is_empty() {
                let batch = pieces.len().min(1024);
                let written = self.socket.write_vectored(&pieces[..batch]).unwrap();
                IoSlice::advance_slices(&mut pieces, written);
            }
        }
    }
}

/// A receiver that throws everything away, after it has played a server if it is to.
fn serve(rtmp: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        if rtmp {
            let mut c = vec![0; 1537];
            socket.read_exact(&mut c).unwrap();
            socket.write_all(&[3; 1 + 2 * 1536]).unwrap();
            socket.write_all(&replies()).unwrap();
        }
        let mut buffer = vec![0; 1 << 20];
        while socket.read(&mut buffer).is_ok_and(|len| len > 0) {}
    });
    port
}

/// `_result` to connect and createStream, and the start, in one go: the sink asks in order.
fn replies() -> Vec<u8> {
    let command = |body: Vec<u8>| {
        [
            &[3, 0, 0, 0, 0, 0, body.len() as u8, 20, 0, 0, 0, 0][..],
            &body,
        ]
        .concat()
    };
    let result = |id: f64, tail: &[u8]| {
        command(
            [
                &[2, 0, 7][..],
                b"_result",
                &[0],
                &id.to_be_bytes(),
                &[5],
                tail,
            ]
            .concat(),
        )
    };
    let start = b"NetStream.Publish.Start";
    let status = [
        &[2, 0, 8][..],
        b"onStatus",
        &[0; 9],
        &[5, 3, 0, 4],
        b"code",
        &[2, 0, 23],
        start,
        &[0, 0, 9],
    ];
    [
        result(1.0, &[5]),
        result(4.0, &[&[0][..], &1.0_f64.to_be_bytes()].concat()),
        command(status.concat()),
    ]
    .concat()
}

/// CPU seconds of this thread.
fn cpu(work: impl FnOnce()) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_secs_f64()
    };
    let before = now();
    work();
    now() - before
}

/// Bytes that the kernel may hold unsent: what the sink asks for by default.
const UNSENT: u32 = 32 * 1024;
