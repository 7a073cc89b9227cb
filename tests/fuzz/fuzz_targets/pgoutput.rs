#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caudal_sources::fuzz::pgoutput_frames(data));
