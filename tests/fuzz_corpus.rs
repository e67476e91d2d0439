//! Replays the fuzzer's corpus through the fuzzer's functions, so that every finding stays fixed without a
//! nightly toolchain. `fuzz/` is not part of the package, hence the path.

use std::fs;
use std::path::Path;

#[allow(unreachable_pub, reason = "a crate of its own to the fuzzer")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("a corpus") {
        let path = entry.expect("a readable corpus").path();
        let bytes = fs::read(&path).expect("a readable seed");
        let outcome = std::panic::catch_unwind(|| {
            run(&bytes);
            // Every prefix is a test of its own: most mistakes are about what is not there yet.
            for end in 0..bytes.len().min(512) {
                run(&bytes[..end]);
            }
        });
        assert!(outcome.is_ok(), "{} fails", path.display());
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
}

macro_rules! replays {
    ($($target:ident)*) => {$(
        #[test]
        fn $target() {
            replay(stringify!($target), targets::$target);
        }
    )*};
}

replays! { http_head http_chunked http_glimpse ws_message eio_payload eio_v3_payload sio_decode sio_msgpack query proxy
    ws_inflate ws_deflate ws_extensions
}

/// Runs a target with `FUZZ_ROUNDS` inputs (2,000, always the same) that are made of the corpus: without a
/// nightly toolchain this takes the place of the fuzzer.
fn mutate(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(&folder).expect("a corpus").flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("a readable seed")).collect();
    let rounds = std::env::var("FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2_000);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit.max(1) as u64) as usize
    };
    for _ in 0..rounds {
        let mut input = seeds[below(seeds.len())].clone();
        for _ in 0..=below(4) {
            let (at, end) = (below(input.len() + 1), below(input.len() + 1));
            let part = at.min(end)..at.max(end).min(at.min(end) + 40);
            let other = &seeds[below(seeds.len())];
            let from = below(other.len() + 1);
            match below(6) {
                0 => drop(input.drain(part)),
                1 => {
                    let copy = input[part].to_vec();
                    drop(input.splice(at..at, copy));
                }
                2 => drop(input.splice(part, other[from..(from + 40).min(other.len())].iter().copied())),
                3 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte = below(256) as u8),
                4 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << below(8)),
                _ => {
                    drop(input.splice(at..at, [b"[]{}\",:0123456789.eE-+\\u\x1e\x90\xc0\xd4\xff"[below(29)]]))
                }
            }
        }
        input.truncate(600);
        let outcome = std::panic::catch_unwind(|| run(&input));
        assert!(outcome.is_ok(), "{target} fails with {:?}", String::from_utf8_lossy(&input));
    }
}

#[test]
fn mutants_of_sio_decode() {
    mutate("sio_decode", targets::sio_decode);
}

#[test]
fn mutants_of_sio_msgpack() {
    mutate("sio_msgpack", targets::sio_msgpack);
}
