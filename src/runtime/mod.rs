//! The runtime: monoio runs your code, the socket ring moves the bytes.
//!
//! Each worker is a thread, bound to a core, with two io_urings. monoio's runs futures, timers and outbound
//! connections. The *socket ring* beside it accepts, receives and sends for all client sockets: an idle
//! connection owns no task and no buffer, and what a socket is owed leaves in one send at the end of a
//! *turn*. This is the only layer that contains `unsafe`, and the only one that knows the kernel.
//!
//! A layer above implements [`Service`] and uses the verbs of [`Core`].

mod addresses;
mod adopt;
mod buffers;
mod connection;
mod core;
mod doorbell;
mod error;
mod fence;
mod flush;
mod guard;
mod hangup;
mod intake;
mod listener;
mod memory;
mod metrics;
mod moving;
mod options;
mod places;
mod preface;
mod probe;
mod ring;
#[cfg(feature = "tls")]
mod secure;
#[cfg(feature = "tls")]
mod tickets;
#[cfg(feature = "tls")]
pub mod tls;
mod turn;
mod worker;

pub use adopt::{AdoptError, Adopter, NotAdopted};
pub use connection::{ConnectionId, Ended, Parcel};
pub use core::{Core, Service, Shared};
pub use error::{StartError, WorkerEnded};
pub use guard::{Spawned, spawn};
pub(crate) use guard::{guarded, guarded_future};
pub use listener::{Endpoint, Listener};
pub use metrics::{Histogram, Measuring, Metrics, Sample, Value};
pub use options::{Descriptors, Options};
pub use worker::{MakeService, Running, current, start};
