//! The client's bundles: found, read once for the process, and compressed once.

use std::env;
use std::fs;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Poll, Waker};

use bytes::Bytes;

use crate::protocol::http::{Coding, Effort, compress};
use crate::runtime::Core;

/// What is served, and nothing else.
const FILES: [&str; 8] = include!("client_bundles.names");

/// What the bundles are offered in, best first.
pub(super) const OFFERED: [Coding; 3] = [Coding::Brotli, Coding::Gzip, Coding::Deflate];

#[cfg(feature = "client-bundles")]
mod embedded {
    include!(concat!(env!("OUT_DIR"), "/client_bundles.rs"));
}

/// The bundles of one folder, shared by all cores.
#[derive(Debug)]
pub(super) struct Bundles {
    source: Source,
    /// The version in quotes, as the reference has it: the same for every bundle and coding.
    pub(super) etag: String,
    pub(super) files: Vec<Bundle>,
}

#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) name: &'static str,
    bytes: Bytes,
    coded: [Coded; OFFERED.len()],
}

/// A bundle in one coding, made when it is first asked for.
#[derive(Debug, Default)]
struct Coded {
    done: OnceLock<(Coding, Bytes)>,
    /// Who waits; `None` before anybody has asked.
    waiting: Mutex<Option<Vec<Waker>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    #[cfg(feature = "client-bundles")]
    Embedded,
    Folder(PathBuf),
}

/// The bundles that this process has in memory. They go with the last server that serves them.
static KNOWN: Mutex<Vec<Weak<Bundles>>> = Mutex::new(Vec::new());

impl Bundles {
    /// The bundles of a folder; without one, those that are embedded, or else those of the nearest
    /// `node_modules`. The error says what to do.
    pub(super) fn load(folder: Option<&Path>) -> Result<Arc<Self>, String> {
        let source = match folder {
            Some(folder) => Source::Folder(folder.to_owned()),
            None => Source::embedded().or_else(Source::installed).ok_or(
                "there is no node_modules/socket.io or node_modules/socket.io-client here or in a folder \
                 above; name the folder with io::Options::client_dist, or embed the files at build with the \
                 feature client-bundles",
            )?,
        };
        let mut known = lock(&KNOWN);
        known.retain(|bundles| bundles.strong_count() > 0);
        let mut all = known.iter().filter_map(Weak::upgrade);
        if let Some(bundles) = all.find(|bundles| bundles.source == source) {
            return Ok(bundles);
        }
        drop(all);
        let bundles = Arc::new(match &source {
            #[cfg(feature = "client-bundles")]
            Source::Embedded => Self::embedded(),
            Source::Folder(folder) => Self::read(folder)?,
        });
        known.push(Arc::downgrade(&bundles));
        Ok(bundles)
    }

    #[cfg(feature = "client-bundles")]
    fn embedded() -> Self {
        let bundle =
            |(name, bytes): &(&'static str, &'static [u8])| Bundle::new(name, Bytes::from_static(bytes));
        let files = embedded::FILES.iter().map(bundle).collect();
        Self { source: Source::Embedded, etag: quoted(embedded::VERSION), files }
    }

    fn read(folder: &Path) -> Result<Self, String> {
        let read = |name: &&'static str| {
            let bytes = fs::read(folder.join(name));
            bytes.map(|bytes| Bundle::new(name, bytes.into())).inspect_err(|error| {
                tracing::warn!("the client's {name} is not served: {}: {error}", folder.display());
            })
        };
        let files: Vec<Bundle> = FILES.iter().filter_map(|name| read(name).ok()).collect();
        let Some(first) = files.first() else {
            return Err(format!("the folder {} has none of the bundles", folder.display()));
        };
        let version = package_version(folder).or_else(|| banner_version(&first.bytes));
        // Nothing but a version of its own tells a client that it has an old file.
        let version = version.ok_or_else(|| format!("the version in {} is unknown", folder.display()))?;
        Ok(Self { source: Source::Folder(folder.to_owned()), etag: quoted(&version), files })
    }
}

impl Source {
    fn embedded() -> Option<Self> {
        #[cfg(feature = "client-bundles")]
        return Some(Self::Embedded);
        #[cfg(not(feature = "client-bundles"))]
        None
    }

    /// The nearest folder in which npm has installed the bundles.
    fn installed() -> Option<Self> {
        env::current_dir().ok()?.ancestors().find_map(|folder| {
            let packages = ["node_modules/socket.io/client-dist", "node_modules/socket.io-client/dist"];
            let folders = packages.map(|package| folder.join(package));
            folders.into_iter().find(|folder| folder.join(FILES[0]).is_file()).map(Self::Folder)
        })
    }
}

/// The version in the `package.json` of the package that the folder belongs to.
fn package_version(folder: &Path) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Package {
        version: String,
    }
    let package = fs::read(folder.join("../package.json")).ok()?;
    serde_json::from_slice::<Package>(&package).ok().map(|package| package.version)
}

/// The version in the comment that a bundle begins with: `Socket.IO v4.8.1`.
fn banner_version(bundle: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(&bundle[..bundle.len().min(200)]).into_owned();
    let version = head.split_once("Socket.IO v")?.1;
    Some(version.split_whitespace().next()?.to_owned())
}

/// An entity tag, without what may not stand in one.
fn quoted(version: &str) -> String {
    let allowed = |c: &char| c.is_ascii_alphanumeric() || ".-+_".contains(*c);
    format!("\"{}\"", version.chars().filter(allowed).collect::<String>())
}

impl Bundle {
    fn new(name: &'static str, bytes: Bytes) -> Self {
        Self { name, bytes, coded: Default::default() }
    }

    pub(super) fn is_map(&self) -> bool {
        self.name.ends_with(".map")
    }
}

impl Bundles {
    /// A bundle in a coding, if it is there already.
    pub(super) fn ready(&self, file: usize, coding: Coding) -> Option<(Coding, Bytes)> {
        let file = &self.files[file];
        match OFFERED.iter().position(|offered| *offered == coding) {
            Some(at) => file.coded[at].done.get().cloned(),
            None => Some((Coding::Identity, file.bytes.clone())),
        }
    }

    /// A bundle in a coding, or as it is if it cannot be compressed. The first who asks has it compressed,
    /// on a thread that is no worker's.
    pub(super) async fn coded(self: Arc<Self>, core: &Core, file: usize, coding: Coding) -> (Coding, Bytes) {
        let at = OFFERED.iter().position(|offered| *offered == coding).unwrap_or(0);
        poll_fn(|cx| {
            let coded = &self.files[file].coded[at];
            let mut waiting = lock(&coded.waiting);
            if let Some(done) = coded.done.get() {
                return Poll::Ready(done.clone());
            }
            let first = waiting.is_none();
            waiting.get_or_insert_default().push(cx.waker().clone());
            drop(waiting);
            if first {
                let all = self.clone();
                core.background(move || all.compress(file, at));
            }
            Poll::Pending
        })
        .await
    }

    fn compress(&self, file: usize, at: usize) {
        let Bundle { bytes, coded, .. } = &self.files[file];
        let done = match compress(OFFERED[at], bytes, Effort::Kept) {
            Ok(small) => (OFFERED[at], small.into()),
            Err(_) => (Coding::Identity, bytes.clone()),
        };
        let waiting = {
            let mut waiting = lock(&coded[at].waiting);
            let _ = coded[at].done.set(done);
            waiting.take()
        };
        waiting.into_iter().flatten().for_each(Waker::wake);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let banner = b"/*!\n * Socket.IO v4.8.4\n * (c) 2014-2026";
        assert_eq!(banner_version(banner).as_deref(), Some("4.8.4"));
        assert_eq!(banner_version(b"var io = 1;"), None);
        assert_eq!(quoted("5.0.0-rc.1\" \r\n"), "\"5.0.0-rc.1\"");
    }

    #[cfg(feature = "client-bundles")]
    #[test]
    fn embedded_bundles_need_no_folder() {
        let bundles = Bundles::load(None).unwrap();
        assert_eq!(bundles.files.iter().map(|bundle| bundle.name).collect::<Vec<_>>(), FILES);
        let version = banner_version(&bundles.files[0].bytes).unwrap();
        assert_eq!(bundles.etag, quoted(&version));
    }

    #[test]
    fn folders_without_bundles_say_so() {
        let folder = env::temp_dir().join(format!("sockring-bundles-{}", std::process::id()));
        fs::create_dir_all(folder.join("dist")).unwrap();
        let dist = folder.join("dist");
        assert!(Bundles::load(Some(&dist)).unwrap_err().contains("none of the bundles"));
        fs::write(dist.join("socket.io.js"), "var io = 1;").unwrap();
        assert!(Bundles::load(Some(&dist)).unwrap_err().contains("version"));
        fs::write(folder.join("package.json"), "{\"version\": \"1.2.3\"}").unwrap();
        let bundles = Bundles::load(Some(&dist)).unwrap();
        assert_eq!((bundles.etag.as_str(), bundles.files.len()), ("\"1.2.3\"", 1));
        assert!(Arc::ptr_eq(&bundles, &Bundles::load(Some(&dist)).unwrap()), "it was read twice");
        fs::remove_dir_all(folder).unwrap();
    }
}
