//! A producer of numbered pictures at a pace.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::code;
use crate::names::Names;
use crate::noise::Noise;
use crate::pattern::PixelFormat;
use crate::producer::{Frame, FrameRate, MetadataVersion, Producer, ProducerError, Shape};

/// Publishes numbered pictures.
pub struct Feed {
    pub producer: Producer,
    /// Id of the next frame.
    pub id: u32,
    pub published: u64,
    /// Added to the system clock, ns.
    pub clock_offset: i64,
    /// The payload is written over so long.
    pub write_time: Duration,
    /// Lower half of each picture is the frame before: what a torn read would give.
    pub torn: bool,
    /// Of each frame: when its writing began, and when it was announced.
    pub times: HashMap<u32, (Instant, Instant)>,
    writes: Writes,
    /// Kept from one run to the next: a camera does not take a frame because a test goes on to its next step.
    pace: Option<Pace>,
    picture: Vec<u8>,
    noise: Vec<u8>,
}

/// What the producers of one segment know of their writing, of two at once or one after the other.
#[derive(Debug, Clone, Default)]
pub struct Writes(Arc<Mutex<Written>>);

#[derive(Debug, Default)]
struct Written {
    /// Frames behind which the system took the core away from the writing of the next one.
    held: HashSet<u32>,
    /// Id of the frame before.
    last: Option<u32>,
    /// Producers that are writing.
    writing: u32,
    /// Writes that began while another one was under way.
    met: u64,
    published: u64,
}

impl Writes {
    /// Frames behind which a writer stood still, which no reader can see (docs/threat-model.md).
    pub fn held(&self) -> HashSet<u32> {
        self.with(|all| all.held.clone())
    }

    /// Frames of all producers.
    pub fn published(&self) -> u64 {
        self.with(|all| all.published)
    }

    /// How often two wrote at once.
    pub fn met(&self) -> u64 {
        self.with(|all| all.met)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Written) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a reader needs for one of our pictures: a writer that stands still for longer lets a whole read pass without
/// a trace. A piece of the payload is due every 20 us at 200 fps; one that is written in one go takes half of this.
pub const HELD: Duration = Duration::from_micros(150);

impl Feed {
    /// Opens a producer and initialises its segment.
    ///
    /// # Errors
    ///
    /// The producer's.
    pub fn open(
        names: &Names,
        width: u16,
        height: u16,
        writes: &Writes,
    ) -> Result<Self, ProducerError> {
        let shape = shape(width, height);
        let mut producer = Producer::open(names, shape)?;
        producer.initialise()?;
        Ok(Feed {
            producer,
            id: 0,
            published: 0,
            clock_offset: 0,
            write_time: Duration::ZERO,
            torn: false,
            times: HashMap::new(),
            writes: writes.clone(),
            pace: None,
            picture: Vec::new(),
            noise: Vec::new(),
        })
    }

    /// Pictures of another size from the next one on.
    ///
    /// # Errors
    ///
    /// The producer's.
    pub fn resize(&mut self, width: u16, height: u16) -> Result<(), ProducerError> {
        self.producer.reconfigure(shape(width, height))
    }

    /// Grain of that amplitude on each picture: makes bits.
    pub fn add_grain(&mut self, amplitude: u8) {
        let mut noise = Noise::new(1);
        self.noise = (0..1 << 20)
            .map(|_| noise.below(amplitude.into()) as u8)
            .collect();
    }

    /// Draws the next picture.
    pub fn draw(&mut self) {
        let shape = self.producer.shape();
        let (width, height) = (usize::from(shape.width), usize::from(shape.height));
        let channels = shape.format.channels();
        let size = width * height * channels;
        self.picture.resize(size, 0);
        if self.torn && self.id % 10 == 9 {
            let (above, below) = self
                .picture
                .split_at_mut(size / 2 / (width * channels) * width * channels);
            code::draw(self.id, width, channels, above);
            code::draw(self.id.wrapping_sub(1), width, channels, below);
        } else {
            code::draw(self.id, width, channels, &mut self.picture);
        }
        if !self.noise.is_empty() {
            let shift = self.id.wrapping_mul(7919) as usize % self.noise.len();
            let grain = self.noise.iter().cycle().skip(shift);
            for (byte, grain) in self.picture.iter_mut().zip(grain) {
                *byte += grain;
            }
        }
    }

    /// Publishes what was drawn, and counts on.
    ///
    /// # Errors
    ///
    /// The producer's.
    pub fn publish_drawn(&mut self) -> Result<(), ProducerError> {
        let start = Instant::now();
        self.write_drawn()?;
        self.producer.write_metadata();
        self.producer.announce()?;
        if !self.write_time.is_zero() {
            self.times.insert(self.id, (start, Instant::now()));
        }
        self.count();
        Ok(())
    }

    /// The first two of the four steps.
    ///
    /// # Errors
    ///
    /// The producer's.
    pub fn write_drawn(&mut self) -> Result<(), ProducerError> {
        let frame = Frame {
            id: self.id,
            capture_ns: Producer::time_at(self.clock_offset),
            left: &self.picture,
            depth: &[],
            confidence: &[],
            encoded: None,
        };
        self.producer.describe_frame(&frame)?;
        self.writes.with(|all| {
            all.met += u64::from(all.writing > 0);
            all.writing += 1;
        });
        let longest = if self.write_time.is_zero() {
            let start = Instant::now();
            let written = self.producer.write_payload(&frame);
            written.map(|()| start.elapsed())
        } else {
            self.producer.write_payload_over(&frame, self.write_time)
        };
        self.writes.with(|all| {
            all.writing -= 1;
            if longest.as_ref().is_ok_and(|longest| *longest > HELD) {
                all.held.extend(all.last);
            }
        });
        longest.map(drop)
    }

    pub fn count(&mut self) {
        self.writes.with(|all| {
            all.last = Some(self.id);
            all.published += 1;
        });
        self.id = self.id.wrapping_add(1);
        self.published += 1;
    }

    /// # Errors
    ///
    /// The producer's.
    pub fn publish(&mut self) -> Result<(), ProducerError> {
        self.draw();
        self.publish_drawn()
    }

    /// Publishes at `fps` until `done` says so, at each frame, or `limit` has passed. False if the limit ended it.
    ///
    /// # Errors
    ///
    /// The producer's.
    pub fn run_until(
        &mut self,
        fps: u32,
        limit: Duration,
        mut done: impl FnMut(&Feed) -> bool,
    ) -> Result<bool, ProducerError> {
        let mut pace = match self.pace.take() {
            Some(pace) => pace.at_rate(fps),
            None => Pace::new(fps),
        };
        let end = Instant::now() + limit;
        let mut ended = false;
        while !ended && Instant::now() < end {
            self.draw();
            pace.wait();
            self.publish_drawn()?;
            ended = done(self);
        }
        self.pace = Some(pace);
        Ok(ended)
    }

    /// Publishes at `fps` for `time`.
    ///
    /// # Errors
    ///
    /// The producer's.
    pub fn run(&mut self, fps: u32, time: Duration) -> Result<(), ProducerError> {
        self.run_until(fps, time, |_| false).map(drop)
    }
}

/// Instants at a distance; those that were missed are left out, as a camera does.
#[derive(Debug)]
pub struct Pace {
    next: Instant,
    interval: Duration,
}

impl Pace {
    pub fn new(fps: u32) -> Self {
        Pace {
            next: Instant::now(),
            interval: Duration::from_secs(1) / fps.max(1),
        }
    }

    /// From the next instant on at another distance.
    fn at_rate(self, fps: u32) -> Self {
        Pace {
            interval: Duration::from_secs(1) / fps.max(1),
            ..self
        }
    }

    pub fn wait(&mut self) {
        let now = Instant::now();
        while self.next + self.interval <= now {
            self.next += self.interval;
        }
        std::thread::sleep(self.next.saturating_duration_since(now));
        self.next += self.interval;
    }
}

fn shape(width: u16, height: u16) -> Shape {
    Shape {
        format: PixelFormat::Bgr,
        width,
        height,
        row_padding: 0,
        metadata: MetadataVersion::V2,
        frame_rate: FrameRate {
            numerator: 30,
            denominator: 1,
        },
        depth: false,
        confidence: false,
    }
}
