//! Clusters: several servers that act as one.
//!
//! The trait is [`io::Adapter`](crate::io::Adapter), since the layer below calls it; the adapters for Redis,
//! Postgres and others will be here.

pub use crate::io::{Adapter, BroadcastOptions, LocalAdapter};
