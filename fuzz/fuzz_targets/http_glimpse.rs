#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sockring_fuzz::http_glimpse(data));
