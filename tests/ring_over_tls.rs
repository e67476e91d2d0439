//! The tests of `ring.rs` again, with every connection over TLS: see `OVER_TLS` in `support`.

#[path = "ring.rs"]
mod ring;

use ring::support;
