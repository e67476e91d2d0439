//! What the cores of one server know of each other: its adapter, and which of them have which namespaces.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::broadcast::Scope;
use super::wire::Wire;
use super::{Adapter, Handle};
use crate::fanout::Cores;
use crate::protocol::sio::NspName;
use crate::runtime::Shared;

/// The namespaces of a server, over all its cores. A namespace is made on each core by itself: by the closure
/// that sets the server up, or when a client of that core joins one that a parent allows.
#[derive(Default)]
pub(super) struct Registry {
    adapter: OnceLock<Option<Arc<dyn Adapter>>>,
    pub(super) wire: Wire,
    recovery: OnceLock<bool>,
    keeper: OnceLock<Option<Arc<dyn Adapter>>>,
    namespaces: Mutex<HashMap<NspName, Known, RandomState>>,
    /// Held while the adapter is told that a namespace has come or gone: it must hear of them in order.
    telling: Mutex<()>,
}

/// A namespace that at least one core has.
struct Known {
    cores: Cores,
    /// Of the core that made it first; it holds the number of the namespace.
    scope: Arc<Scope>,
    /// The number of the parent.
    parent: Option<u16>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("adapter", &self.adapter.get()).finish_non_exhaustive()
    }
}

impl Registry {
    /// The registry of the server with a path.
    pub(super) fn of(shared: &Shared, path: &str) -> Arc<Self> {
        shared.extension(&format!("socket.io {path}"))
    }

    /// Sets the adapter. Each core is set up with one; that of the first counts.
    pub(super) fn set_adapter(&self, adapter: Option<Arc<dyn Adapter>>) {
        let _ = self.adapter.set(adapter);
    }

    pub(super) fn adapter(&self) -> Option<&Arc<dyn Adapter>> {
        self.adapter.get()?.as_ref()
    }

    /// Sets whether packets get offsets, by which clients can come back. As the adapter, by the first core,
    /// and behind it.
    pub(super) fn set_recovery(&self, recovery: bool) {
        let _ = self.recovery.set(recovery);
        let adapter = self.adapter().filter(|adapter| recovery && adapter.keeps_sessions());
        let _ = self.keeper.set(adapter.cloned());
    }

    /// The adapter, if clients may come back by it from other servers.
    pub(super) fn keeper(&self) -> Option<&Arc<dyn Adapter>> {
        self.keeper.get()?.as_ref()
    }

    pub(super) fn has_recovery(&self) -> bool {
        self.recovery.get() == Some(&true)
    }

    /// A core has made a namespace.
    pub(super) fn enter(&self, scope: &Arc<Scope>, core: usize, parent: Option<u16>) {
        let telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let first = {
            let mut namespaces = self.lock();
            let known = namespaces.entry(scope.nsp.clone()).or_insert_with(|| Known {
                cores: Cores::default(),
                scope: scope.clone(),
                parent,
            });
            let first = known.cores.is_empty();
            known.cores.insert(core);
            first
        };
        if let (true, Some(adapter)) = (first, self.adapter()) {
            adapter.init(Handle::for_adapter(scope.clone()));
        }
        drop(telling);
    }

    /// A core has let a namespace go.
    pub(super) fn exit(&self, name: &NspName, core: usize) {
        let telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = {
            let mut namespaces = self.lock();
            let Some(known) = namespaces.get_mut(name) else { return };
            known.cores.remove(core);
            if known.cores.is_empty() { namespaces.remove(name) } else { None }
        };
        if let (Some(_), Some(adapter)) = (&gone, self.adapter()) {
            adapter.close(name);
        }
        drop(telling);
    }

    /// The first core that has a namespace.
    pub(super) fn first_core(&self, name: &NspName) -> Option<usize> {
        self.lock().get(name)?.cores.iter().next()
    }

    /// The children of a parent, on any core.
    pub(super) fn children(&self, parent: u16) -> Vec<Arc<Scope>> {
        let namespaces = self.lock();
        let children = namespaces.values().filter(|known| known.parent == Some(parent));
        children.map(|known| known.scope.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NspName, Known, RandomState>> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
