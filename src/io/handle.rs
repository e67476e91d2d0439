//! The server, for threads that are no workers.

use std::sync::Arc;

use super::broadcast::{BroadcastOperator, Scope, broadcasts};
use super::recovery::Offset;
use super::registry::Registry;
use super::server::by_path;
use super::{Args, BroadcastAcks, BroadcastOptions, SocketDetails};
use crate::engine::Closing;
use crate::fanout::{Delivery, Frame, Key};
use crate::protocol::sio::{EncodeError, NspName, Value};
use crate::runtime::Running;

/// No server has this path: see [`Handle::of_server`].
///
/// ```no_run
/// # fn f(server: &sockring::runtime::Running) {
/// use sockring::io::Handle;
/// let error = Handle::of_server(server, "/typo").unwrap_err();
/// assert_eq!(error.to_string(), "no Socket.IO server has the path /typo/");
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no Socket.IO server has the path {path}")]
#[non_exhaustive]
pub struct NotServed {
    /// The path that was asked for, with its slashes.
    pub path: Arc<str>,
}

/// A namespace of a running server, usable from any thread: a tokio application, a cron thread, a test.
/// What one thread does with it takes effect on each core in the order in which it was done.
///
/// ```no_run
/// use sockring::app::App;
/// use sockring::io::{Handle, Options, Server};
/// let server = App::builder().listen("127.0.0.1:3000").start(|app| {
///     Server::attach_app(app, Options::default());
/// })?;
/// let io = Handle::of_server(&server, "/socket.io").expect("the path that is served above");
/// std::thread::spawn(move || {
///     loop {
///         std::thread::sleep(std::time::Duration::from_secs(1));
///         let _ = io.emit("tick", ());
///     }
/// });
/// # Ok::<(), sockring::runtime::StartError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Handle {
    scope: Arc<Scope>,
    local: bool,
}

impl Handle {
    pub(super) fn new(scope: Arc<Scope>) -> Self {
        Self { scope, local: false }
    }

    /// One for an adapter: what is done through it stays in this process.
    pub(super) fn for_adapter(scope: Arc<Scope>) -> Self {
        Self { scope, local: true }
    }

    /// The main namespace of the server with a path.
    ///
    /// # Errors
    ///
    /// No server of the process was attached with this path.
    pub fn of_server(running: &Running, path: &str) -> Result<Self, NotServed> {
        let path: Arc<str> = format!("/{}/", path.trim_matches('/')).into();
        let shared = running.shared().clone();
        let Some(registry) = Registry::known(&shared, &path) else { return Err(NotServed { path }) };
        Ok(Self::new(Arc::new(Scope::new(shared, path, registry, NspName::default()))))
    }

    /// Another namespace of the same server. It need not be there: what is emitted then reaches nobody. What
    /// a name costs is given back with the last handle on it.
    #[must_use]
    pub fn of(&self, name: &str) -> Self {
        let Scope { shared, path, registry, .. } = &*self.scope;
        let name = NspName::from(name);
        let scope = Arc::new(Scope::new(shared.clone(), path.clone(), registry.clone(), name));
        Self { scope, local: self.local }
    }

    /// The name of the namespace, with its slash.
    pub fn name(&self) -> &str {
        &self.scope.nsp
    }

    /// Closes the server on all cores; see [`Server::close`](super::Server::close).
    pub fn close(&self) -> Closing {
        let path = self.scope.path.clone();
        Closing::everywhere(&self.scope.shared, move || {
            if let Some(server) = by_path(&path) {
                server.close();
            }
        })
    }

    pub(super) fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    /// The sockets of this process that another server means: how an [`Adapter`](super::Adapter) makes them
    /// join and leave rooms, and disconnects them.
    pub fn select(&self, options: &BroadcastOptions) -> BroadcastOperator {
        let operator = self.operator().to(&options.rooms).except(&options.except);
        let operator = operator.local().compress(options.compress).latest_of(options.latest);
        let operator = if options.volatile { operator.volatile() } else { operator };
        match options.timeout {
            Some(timeout) => operator.timeout(timeout),
            None => operator,
        }
    }

    /// Emits to the sockets of this process what another server has broadcast: how an
    /// [`Adapter`](super::Adapter) brings in what it receives. `args` is the event's name, then its
    /// arguments.
    ///
    /// # Errors
    ///
    /// A name that is reserved or no string.
    pub fn deliver(&self, args: Vec<Value>, options: &BroadcastOptions) -> Result<Delivery, EncodeError> {
        let (event, args) = split(args)?;
        self.select(options).emit(&event, Args(args))
    }

    /// Like [`deliver`](Self::deliver), for a broadcast that is answered: `acks` is told of how many sockets,
    /// and then what they answer.
    ///
    /// # Errors
    ///
    /// As [`deliver`](Self::deliver); then `acks` is told of no socket.
    pub fn deliver_with_ack(
        &self,
        args: Vec<Value>,
        options: &BroadcastOptions,
        acks: Arc<dyn BroadcastAcks>,
    ) -> Result<Delivery, EncodeError> {
        let encode = |id| {
            let (event, args) = split(args)?;
            self.scope.event(Some(id), &event, &Args(args))
        };
        let asked = self.select(options).ask(encode, acks.clone());
        if asked.is_err() {
            acks.clients(0);
        }
        asked
    }

    /// Like [`deliver`](Self::deliver), for a packet that the adapter keeps, and to the sockets of this
    /// process in the order of the calls: how an [`Adapter`](super::Adapter) that [keeps
    /// sessions](super::Adapter::keeps_sessions) brings in what any server has emitted, this one as well.
    /// Calls must not be made at the same time by several threads. Clients get the offset behind the
    /// arguments, and name it when they come back.
    ///
    /// # Errors
    ///
    /// As [`deliver`](Self::deliver).
    pub fn deliver_kept(
        &self,
        args: Vec<Value>,
        options: &BroadcastOptions,
        offset: &str,
    ) -> Result<Delivery, EncodeError> {
        let frame = self.scope.kept_event(args, offset, options.latest)?;
        let frame = if options.compress { frame } else { frame.uncompressed() };
        let mut operator = self.select(options);
        operator.in_order = true;
        Ok(operator.send(&frame, Some(Offset::of(offset))))
    }

    /// Gives the sockets of this process that another server asks for to `done`, on any thread.
    pub fn find_sockets(
        &self,
        options: &BroadcastOptions,
        done: impl FnOnce(Vec<SocketDetails>) + Send + 'static,
    ) {
        self.select(options).find(false, Box::new(done));
    }

    fn operator(&self) -> BroadcastOperator {
        let operator = BroadcastOperator::new(self.scope.clone());
        if self.local { operator.local() } else { operator }
    }
}

impl Scope {
    /// An event with the offset that an adapter has given it.
    pub(super) fn kept_event(
        &self,
        args: Vec<Value>,
        offset: &str,
        latest: Option<Key>,
    ) -> Result<Frame, EncodeError> {
        let (event, mut args) = split(args)?;
        args.push(Value::from(offset));
        Ok(self.bounded(self.event(None, &event, &Args(args))?, &event, latest))
    }
}

/// The name of an event, and its arguments. A name may be a number on the wire.
fn split(mut args: Vec<Value>) -> Result<(String, Vec<Value>), EncodeError> {
    if args.is_empty() {
        return Err(EncodeError::Value);
    }
    match args.remove(0) {
        Value::String(event) => Ok((event, args)),
        Value::Number(event) => Ok((event.to_string(), args)),
        _ => Err(EncodeError::Value),
    }
}

broadcasts!(Handle, "the namespace");
