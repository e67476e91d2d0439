//! Between servers: the trait that a cluster adapter implements.

use std::fmt::Debug;

use crate::fanout::Frame;

/// To whom a broadcast goes, beside its namespace.
///
/// ```
/// use sockring::io::BroadcastOptions;
/// let options = BroadcastOptions { rooms: vec!["a".into()], ..BroadcastOptions::default() };
/// assert!(!options.volatile);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BroadcastOptions {
    /// Members of any of these rooms; empty for all sockets.
    pub rooms: Vec<String>,
    /// And of none of these.
    pub except: Vec<String>,
    /// Only to sockets that can take it at once.
    pub volatile: bool,
    /// Not beyond this process.
    pub local: bool,
}

/// Carries broadcasts to other servers. Called on the thread that emits, after the sockets of this process
/// were served; must not block. What comes in from other servers goes through
/// [`Handle::deliver`](super::Handle::deliver).
pub trait Adapter: Debug + Send + Sync {
    /// A broadcast of this process that is not `local`.
    fn broadcast(&self, nsp: &str, frame: &Frame, options: &BroadcastOptions);

    /// How many servers there are, this one included.
    fn server_count(&self) -> usize {
        1
    }
}

/// The adapter of a server that is alone.
///
/// ```
/// use sockring::io::{Adapter, LocalAdapter};
/// assert_eq!(LocalAdapter.server_count(), 1);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalAdapter;

impl Adapter for LocalAdapter {
    fn broadcast(&self, _: &str, _: &Frame, _: &BroadcastOptions) {}
}
