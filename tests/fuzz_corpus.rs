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
