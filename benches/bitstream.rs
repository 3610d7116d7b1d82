//! What does it cost to scan and index an access unit?

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

use cvmmap_streamer::bitstream::{AccessUnitPool, annexb};
use cvmmap_streamer::encode::{Codec, EncodedPicture, EncodedQueue};

const SIZES: [usize; 4] = [10_000, 40_000, 200_000, 1_000_000];

/// Two slices of bytes as an encoder's look: noise, escaped.
fn picture(len: usize) -> Vec<u8> {
    let mut data = vec![0, 0, 0, 1, 0x67, 1, 2, 3, 0, 0, 0, 1, 0x68, 1];
    let mut state = 0x1234_5678_u32;
    for _ in 0..2 {
        data.extend([0, 0, 0, 1, 0x65]);
        let mut zeros = 0;
        for _ in 0..len / 2 {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let byte = state as u8;
            if zeros >= 2 && byte <= 3 {
                data.push(3);
                zeros = 0;
            }
            data.push(byte);
            zeros = if byte == 0 { zeros + 1 } else { 0 };
        }
        data.push(0x80);
    }
    data
}

fn scan(c: &mut Criterion) {
    let mut group = c.benchmark_group("scan");
    for size in SIZES {
        let data = picture(size);
        group.throughput(Throughput::Bytes(data.len() as u64));
        group.bench_with_input(BenchmarkId::from_parameter(size), &data, |b, data| {
            b.iter(|| annexb::nal_ranges(black_box(data)).count());
        });
    }
    group.finish();
    // the yardstick: the same bytes read by the vector instructions of one memchr
    let mut group = c.benchmark_group("memchr of an absent byte");
    for size in SIZES {
        let data = vec![7; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::from_parameter(size), &data, |b, data| {
            b.iter(|| memchr::memchr(1, black_box(data)));
        });
    }
    group.finish();
}

fn index(c: &mut Criterion) {
    let mut group = c.benchmark_group("index");
    for size in SIZES {
        let (mut pool, mut queue) = (AccessUnitPool::new(Codec::H264), EncodedQueue::new());
        let data = picture(size);
        group.throughput(Throughput::Bytes(data.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            // Buffers go round as they do in the pipeline; filling them is not measured.
            b.iter_batched(
                || EncodedPicture {
                    data: data.clone(),
                    ..EncodedPicture::default()
                },
                |picture| pool.make(picture, &mut queue, |_| ()).unwrap(),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, scan, index);
criterion_main!(benches);
