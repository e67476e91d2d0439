//! The server, for threads that are no workers.

use std::sync::Arc;

use super::BroadcastOptions;
use super::broadcast::{BroadcastOperator, Scope, broadcasts};
use super::registry::Registry;
use crate::fanout::{Delivery, Frame};
use crate::protocol::sio::NspName;
use crate::runtime::Running;

/// A namespace of a running server, usable from any thread: a tokio application, a cron thread, a test.
/// What one thread does with it takes effect on each core in the order in which it was done.
///
/// ```no_run
/// use sockring::app::App;
/// use sockring::io::{Handle, Options, Server};
/// let server = App::builder().listen("127.0.0.1:3000").start(|app| {
///     Server::attach_app(app, Options::default());
/// })?;
/// let io = Handle::of_server(&server, "/socket.io");
/// std::thread::spawn(move || {
///     loop {
///         std::thread::sleep(std::time::Duration::from_secs(1));
///         let _ = io.emit("tick", ());
///     }
/// });
/// # Ok::<(), sockring::runtime::StartError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Handle(Arc<Scope>);

impl Handle {
    pub(super) fn new(scope: Arc<Scope>) -> Self {
        Self(scope)
    }

    /// The main namespace of the server with a path.
    pub fn of_server(running: &Running, path: &str) -> Self {
        let path: Arc<str> = format!("/{}/", path.trim_matches('/')).into();
        let shared = running.shared().clone();
        let registry = Registry::of(&shared, &path);
        Self(Arc::new(Scope::new(shared, path, registry, NspName::default())))
    }

    /// Another namespace of the same server. It need not be there: what is emitted then reaches nobody. What
    /// a name costs is given back with the last handle on it.
    #[must_use]
    pub fn of(&self, name: &str) -> Self {
        let Scope { shared, path, registry, .. } = &*self.0;
        let name = NspName::from(name);
        Self(Arc::new(Scope::new(shared.clone(), path.clone(), registry.clone(), name)))
    }

    /// Gives the sockets of this process what another server has broadcast: how an
    /// [`Adapter`](super::Adapter) brings in what it receives. `frame` is a whole packet.
    pub fn deliver(&self, frame: &Frame, options: &BroadcastOptions) -> Delivery {
        let operator = self.operator().to(&options.rooms).except(&options.except);
        let operator = if options.volatile { operator.volatile() } else { operator };
        operator.send(frame, None)
    }

    fn operator(&self) -> BroadcastOperator {
        BroadcastOperator::new(self.0.clone())
    }
}

broadcasts!(Handle, "the namespace");
