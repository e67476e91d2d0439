//! What the cores of one server know of each other: its adapter, and which of them have which namespaces.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::broadcast::Scope;
use super::wire::Wire;
use super::{Adapter, Handle};
use crate::fanout::{Backpressure, Cores};
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
    backpressure: Bounds,
    namespaces: Mutex<HashMap<NspName, Known, RandomState>>,
    /// Held while the adapter is told that a namespace has come or gone: it must hear of them in order.
    telling: Mutex<()>,
}

/// What may wait for clients: by the options, and where a namespace says something else. Whoever emits on
/// whichever thread looks here.
#[derive(Default)]
struct Bounds {
    /// Whether there is anything but the default, which nobody should have to pay for.
    any: AtomicBool,
    usual: OnceLock<Backpressure>,
    own: RwLock<HashMap<NspName, Backpressure, RandomState>>,
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

    /// The same, if there is a server with that path.
    pub(super) fn known(shared: &Shared, path: &str) -> Option<Arc<Self>> {
        shared.known_extension(&format!("socket.io {path}"))
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

    /// Sets what may wait for clients where no namespace says something else. As the adapter, by the first
    /// core.
    pub(super) fn set_usual_backpressure(&self, backpressure: Backpressure) {
        let _ = self.backpressure.usual.set(backpressure);
        if backpressure != Backpressure::default() {
            self.backpressure.any.store(true, Ordering::Release);
        }
    }

    /// Sets what may wait for clients of a namespace.
    pub(super) fn set_backpressure(&self, name: &NspName, backpressure: Backpressure) {
        let own = &self.backpressure.own;
        own.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), backpressure);
        self.backpressure.any.store(true, Ordering::Release);
    }

    /// A child begins with what its parent says, unless it has something of its own already.
    pub(super) fn lend_backpressure(&self, parent: &NspName, child: &NspName) {
        let mut own = self.backpressure.own.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(bounds) = own.get(parent).copied() {
            own.entry(child.clone()).or_insert(bounds);
        }
    }

    /// What may wait for clients of a namespace; `None` for the default.
    pub(super) fn backpressure(&self, name: &NspName) -> Option<Backpressure> {
        if !self.backpressure.any.load(Ordering::Acquire) {
            return None;
        }
        let own = self.backpressure.own.read().unwrap_or_else(PoisonError::into_inner);
        let bounds = own.get(name).or(self.backpressure.usual.get()).copied();
        bounds.filter(|bounds| *bounds != Backpressure::default())
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
        if gone.is_some() {
            self.backpressure.own.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        }
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
