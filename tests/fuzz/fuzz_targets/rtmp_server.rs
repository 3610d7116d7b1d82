#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cvmmap_streamer::rtmp::fuzz::server(bytes));
