//! What the pipeline adds to the encoder: from the notice of a frame to its last packet, without
//! the time inside the encoder, at 1080p, beside a bare pipeline in the same run.
//!
//! Three lanes, each with a producer's segment and socket of its own, get a frame in turn, so that
//! they hardly ever run at once and whatever slows the machine down meets all of them:
//!
//! | lane | what it is |
//! | --- | --- |
//! | ours, pacing off | source, both queues, encode stage, fan-out, RTP sink as the streamer runs them |
//! | ours, pacing auto | the same as it is by default: units of more than 64 packets are spread |
//! | bare | ZeroMQ, memcpy out of the mapping, two slots of mutex and condition variable, a gather loop that segments |
//!
//! The bare lane has the same encoder between its slots (and the conversion it needs, which it is
//! not charged for): caches and cores are as cold for it as for ours. Under `cargo bench`, 600 frames
//! a lane; `END_TO_END_FRAMES` asks for another number, `END_TO_END_JSON` for every latency in a
//! file, for `scripts/plot_bench.py`.

use std::net::UdpSocket;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode};
use cvmmap_streamer::pipeline::stop::{StopReason, StopToken};
use cvmmap_streamer::sink::rtp::Pacing;
use cvmmap_streamer::trace::LatencyHistogram;

mod bare;
mod lanes;

use bare::set_option;
use lanes::{Camera, bare_lane, our_lane};

const WIDTH: u32 = 1920;
const HEIGHT: u32 = 1080;
const BIT_RATE: u32 = 8_000_000;
const INTERVAL: Duration = Duration::from_nanos(33_333_333);
/// Frames of each lane before the first that counts.
const START: usize = 10;

fn main() {
    // `cargo test` gives no argument; `cargo bench` says so.
    let once = !std::env::args().any(|arg| arg == "--bench");
    let wanted = std::env::var("END_TO_END_FRAMES").ok();
    let frames = match wanted.and_then(|text| text.parse().ok()) {
        _ if once => 3,
        Some(frames) => frames,
        None => 600,
    };
    let stop = StopToken::new();
    let (receiver, endpoint) = receiver(stop.clone());
    let lanes = vec![
        Lane::start("ours, pacing off", &stop, |camera, sent, stop| {
            our_lane(camera, &endpoint, Pacing::Off, sent, stop)
        }),
        Lane::start("ours, pacing auto", &stop, |camera, sent, stop| {
            our_lane(camera, &endpoint, Pacing::Auto, sent, stop)
        }),
        Lane::start("bare", &stop, |camera, sent, stop| {
            bare_lane(camera, &endpoint, sent, stop)
        }),
    ];
    let mut studio = Studio {
        lanes,
        due: Instant::now(),
    };
    studio.warm_up();
    table(&mut studio, frames);
    let mut criterion = Criterion::default()
        .sample_size(10)
        .measurement_time(Duration::from_secs(6))
        .warm_up_time(Duration::from_secs(1))
        .configure_from_args();
    groups(&mut criterion, &mut studio);
    criterion.final_summary();
    stop.stop(StopReason::SourceEnded);
    for lane in studio.lanes {
        lane.threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }
    receiver.join().unwrap();
}

/// One lane's producer, and the latencies that come out at its end.
struct Lane {
    name: &'static str,
    camera: Camera,
    sent: mpsc::Receiver<Duration>,
    threads: Vec<JoinHandle<()>>,
}

impl Lane {
    fn start(
        name: &'static str,
        stop: &StopToken,
        work: impl FnOnce(&Camera, mpsc::Sender<Duration>, StopToken) -> Vec<JoinHandle<()>>,
    ) -> Self {
        let camera = Camera::new();
        let (sender, sent) = mpsc::channel();
        let threads = work(&camera, sender, stop.clone());
        Self {
            name,
            camera,
            sent,
            threads,
        }
    }

    /// What has come out so far.
    fn take(&self, latencies: &mut Vec<Duration>) {
        latencies.extend(self.sent.try_iter());
    }
}

/// All cameras, each of which publishes at an even rhythm and one after the other: the source
/// leaves out a frame whose notice is late for its rhythm, since the next one may be on its way.
struct Studio {
    lanes: Vec<Lane>,
    due: Instant,
}

impl Studio {
    /// A frame of each lane.
    fn round(&mut self) {
        for lane in &mut self.lanes {
            std::thread::sleep(self.due.saturating_duration_since(Instant::now()));
            lane.camera.publish();
            self.due = (self.due + INTERVAL).max(Instant::now());
        }
    }

    /// Until the subscriptions are live, the encoders open and the buffers warm.
    fn warm_up(&mut self) {
        let give_up = Instant::now() + Duration::from_secs(60);
        let mut came = vec![Vec::new(); self.lanes.len()];
        while came.iter().any(|came| came.len() < START) {
            self.round();
            for (lane, came) in self.lanes.iter().zip(&mut came) {
                lane.take(came);
                assert!(
                    Instant::now() < give_up,
                    "{}: only {} frames come out",
                    lane.name,
                    came.len()
                );
            }
        }
    }
}

fn table(studio: &mut Studio, frames: usize) {
    let mut latencies = vec![Vec::with_capacity(frames); studio.lanes.len()];
    for _ in 0..frames {
        studio.round();
        for (lane, latencies) in studio.lanes.iter().zip(&mut latencies) {
            lane.take(latencies);
        }
    }
    let lanes = &studio.lanes;
    println!("\nnotice to last packet without the encoder, 1080p, us ({frames} frames a lane)");
    println!("  lane                  came    p50    p90    p99  p99.9    max");
    let bare = percentiles(latencies.last().unwrap());
    for (lane, latencies) in lanes.iter().zip(&latencies) {
        let [p50, p90, p99, p999, max] = percentiles(latencies);
        println!(
            "  {:<20}{:>6}{p50:>7}{p90:>7}{p99:>7}{p999:>7}{max:>7}   of bare: p50 {:.2}, p99 {:.2}",
            lane.name,
            latencies.len(),
            p50 as f64 / bare[0] as f64,
            p99 as f64 / bare[2] as f64,
        );
    }
    println!();
    if let Ok(path) = std::env::var("END_TO_END_JSON") {
        std::fs::write(path, json(lanes, &latencies)).expect("the file can be written");
    }
}

/// p50, p90, p99, p99.9 and the largest, in microseconds.
fn percentiles(latencies: &[Duration]) -> [u64; 5] {
    let mut histogram = LatencyHistogram::default();
    let mut sorted: Vec<u64> = latencies.iter().map(|l| l.as_micros() as u64).collect();
    sorted.iter().for_each(|micros| histogram.record(*micros));
    sorted.sort_unstable();
    let p = histogram.percentiles();
    let p999 = sorted.get((sorted.len() * 999).div_ceil(1000).saturating_sub(1));
    [
        p.p50_us,
        p.p90_us,
        p.p99_us,
        p999.copied().unwrap_or(0),
        p.max_us,
    ]
}

fn json(lanes: &[Lane], latencies: &[Vec<Duration>]) -> String {
    let each = lanes.iter().zip(latencies).map(|(lane, latencies)| {
        let micros: Vec<_> = latencies
            .iter()
            .map(|latency| format!("{:.1}", latency.as_secs_f64() * 1e6))
            .collect();
        format!("\"{}\": [{}]", lane.name, micros.join(","))
    });
    let each: Vec<_> = each.collect();
    format!("{{\"end_to_end_us\": {{{}}}}}\n", each.join(",\n"))
}

/// The same for criterion's own statistics; the other lanes go on meanwhile.
fn groups(criterion: &mut Criterion, studio: &mut Studio) {
    let mut group = criterion.benchmark_group("end_to_end");
    group.sampling_mode(SamplingMode::Flat);
    for which in 0..studio.lanes.len() {
        group.bench_function(studio.lanes[which].name, |b| {
            b.iter_custom(|rounds| {
                let mut came = Vec::new();
                studio.lanes[which].take(&mut came);
                came.clear();
                // Bounded, should frames be left out.
                for _ in 0..rounds * 4 + 20 {
                    studio.round();
                    studio.lanes[which].take(&mut came);
                    if came.len() as u64 >= rounds {
                        break;
                    }
                }
                let sum: Duration = came.iter().sum();
                sum.mul_f64(rounds as f64 / came.len().max(1) as f64)
            });
        });
    }
    group.finish();
}

/// Takes everything that all lanes send, and forgets it.
fn receiver(stop: StopToken) -> (JoinHandle<()>, String) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let endpoint = socket.local_addr().unwrap().to_string();
    set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let thread = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while !stop.is_stopped() {
            let _ = socket.recv(&mut buffer);
        }
    });
    (thread, endpoint)
}
