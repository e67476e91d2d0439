//! What a TLS listener needs: certificates, keys, and how they are replaced while the server runs.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ProducesTickets, ResolvesServerCert,
    VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};

use super::tickets::{Tickets, Time};

/// The library that does the cryptography, in the version that [`Tls::from_config`] takes.
pub use rustls;

/// The one protocol that is spoken over TLS here (RFC 7301).
const ALPN: &[u8] = b"http/1.1";

/// Certificates and keys of TLS listeners. A clone is a reference to the same.
///
/// TLS 1.3 and 1.2, the one application protocol `http/1.1`, and session tickets that every core accepts;
/// their keys change every six hours.
///
/// ```no_run
/// use sockring::app::App;
/// use sockring::tls::Tls;
///
/// let tls = Tls::from_pem_files("cert.pem", "key.pem")?;
/// App::builder().listen_tls("0.0.0.0:443", tls).run(|app| {
///     app.get("/", |_, response| response.end("hello"));
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    state: RwLock<State>,
    /// One at a time reads files.
    reloading: Mutex<()>,
}

#[derive(Clone)]
struct State {
    /// `None` for a configuration that was made elsewhere.
    sources: Option<Sources>,
    /// What the files looked like when they were last read.
    seen: Vec<Option<Stamp>>,
    config: Arc<ServerConfig>,
}

/// Where certificates come from, to be read again by [`Tls::reload`].
#[derive(Clone, Debug, Default)]
struct Sources {
    identities: Vec<Source>,
    client_authorities: Option<PathBuf>,
    client_optional: bool,
    tls13_only: bool,
}

#[derive(Clone)]
enum Source {
    Files { certificate: PathBuf, key: PathBuf },
    Pem { certificate: Vec<u8>, key: Vec<u8> },
    Der { chain: Vec<Vec<u8>>, key: Vec<u8> },
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.write_str(&self.certificate_name())
    }
}

/// Enough to see that a file was replaced.
type Stamp = (SystemTime, u64);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("sources", &self.state().sources).finish_non_exhaustive()
    }
}

impl Tls {
    /// One certificate, with its chain, and its key, from PEM files: the server's own certificate comes
    /// first.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, holds no such thing, or the key is another certificate's.
    pub fn from_pem_files(certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self, TlsError> {
        Self::builder().pem_files(certificate, key).build()
    }

    /// One certificate, with its chain, and its key, in PEM.
    ///
    /// # Errors
    ///
    /// As [`from_pem_files`](Self::from_pem_files).
    pub fn from_pem(certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Result<Self, TlsError> {
        Self::builder().pem(certificate, key).build()
    }

    /// One certificate, followed by its chain, and its key (PKCS #8, PKCS #1 or SEC1), in DER.
    ///
    /// # Errors
    ///
    /// As [`from_pem_files`](Self::from_pem_files).
    pub fn from_der(chain: Vec<Vec<u8>>, key: impl Into<Vec<u8>>) -> Result<Self, TlsError> {
        Self::builder().der(chain, key).build()
    }

    /// A configuration made by other means: with another provider of cryptography, or a resolver of one's
    /// own. It is used as it is; only an empty list of application protocols becomes `http/1.1`.
    ///
    /// # Errors
    ///
    /// When it allows early data, which can be replayed and which nothing here asks for.
    pub fn from_config(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        if config.max_early_data_size > 0 {
            return Err(TlsError::EarlyData);
        }
        let mut config = config;
        if config.alpn_protocols.is_empty() {
            Arc::make_mut(&mut config).alpn_protocols = vec![ALPN.to_vec()];
        }
        Ok(Self::new(None, config, Vec::new()))
    }

    /// Several certificates, client certificates, or reloading by itself.
    pub fn builder() -> TlsBuilder {
        TlsBuilder::default()
    }

    fn new(sources: Option<Sources>, config: Arc<ServerConfig>, seen: Vec<Option<Stamp>>) -> Self {
        let state = RwLock::new(State { sources, seen, config });
        Self(Arc::new(Inner { state, reloading: Mutex::default() }))
    }

    /// Reads all files again. Handshakes that begin afterwards use what they hold now; connections that are
    /// open stay as they are. Nothing changes if a file cannot be used.
    ///
    /// # Errors
    ///
    /// As [`from_pem_files`](Self::from_pem_files).
    pub fn reload(&self) -> Result<(), TlsError> {
        let _one = self.0.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let State { sources, config, .. } = self.state();
        let Some(sources) = sources else { return Ok(()) };
        let seen = sources.stamps();
        let config = sources.load(Some(&config));
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        // Noted even if the files are broken, so that a watcher looks again only when they have changed.
        state.seen = seen;
        state.config = config?;
        Ok(())
    }

    /// Takes over what `other` has, for certificates that come from elsewhere than files. Handshakes that
    /// begin afterwards use them; connections that are open stay as they are.
    pub fn replace(&self, other: &Self) {
        let state = other.state();
        *self.0.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn state(&self) -> State {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What new connections get.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).config.clone()
    }

    fn has_changed(&self) -> bool {
        let state = self.state();
        state.sources.is_some_and(|sources| sources.stamps() != state.seen)
    }
}

/// Chooses certificates and who may connect; made by [`Tls::builder`].
///
/// ```no_run
/// use std::time::Duration;
/// use sockring::tls::Tls;
///
/// let tls = Tls::builder()
///     .pem_files("example.org.pem", "example.org.key")
///     .pem_files("example.net.pem", "example.net.key")
///     .reload_every(Duration::from_secs(60))
///     .build()?;
/// # Ok::<(), sockring::tls::TlsError>(())
/// ```
#[derive(Debug, Default)]
pub struct TlsBuilder {
    sources: Sources,
    reload_every: Option<Duration>,
}

impl TlsBuilder {
    /// Adds a certificate, with its chain, and its key from PEM files. Of several certificates, a client gets
    /// the first that is valid for the name that it asks for (SNI, RFC 6066) and whose signatures it
    /// understands; the first of all if there is none.
    #[must_use]
    pub fn pem_files(mut self, certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        let (certificate, key) = (certificate.as_ref().to_owned(), key.as_ref().to_owned());
        self.sources.identities.push(Source::Files { certificate, key });
        self
    }

    /// Adds a certificate, with its chain, and its key in PEM.
    #[must_use]
    pub fn pem(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.sources.identities.push(Source::Pem { certificate: certificate.into(), key: key.into() });
        self
    }

    /// Adds a certificate, followed by its chain, and its key in DER.
    #[must_use]
    pub fn der(mut self, chain: Vec<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.sources.identities.push(Source::Der { chain, key: key.into() });
        self
    }

    /// Demands a certificate of every client, signed by one of those in a PEM file.
    #[must_use]
    pub fn require_client_certificates(mut self, authorities: impl AsRef<Path>) -> Self {
        self.sources.client_authorities = Some(authorities.as_ref().to_owned());
        self.sources.client_optional = false;
        self
    }

    /// Asks every client for a certificate signed by one of those in a PEM file, and takes those that have
    /// none. One that is not valid ends the handshake.
    #[must_use]
    pub fn request_client_certificates(mut self, authorities: impl AsRef<Path>) -> Self {
        self = self.require_client_certificates(authorities);
        self.sources.client_optional = true;
        self
    }

    /// Refuses clients that do not speak TLS 1.3.
    #[must_use]
    pub fn tls13_only(mut self) -> Self {
        self.sources.tls13_only = true;
        self
    }

    /// Looks at the files this often, on a thread of its own, and [reloads](Tls::reload) them when one has
    /// changed. Files that cannot be used are reported as an event of `tracing`; what was there stays.
    #[must_use]
    pub fn reload_every(mut self, interval: Duration) -> Self {
        self.reload_every = Some(interval);
        self
    }

    /// Reads the files.
    ///
    /// # Errors
    ///
    /// As [`Tls::from_pem_files`].
    pub fn build(self) -> Result<Tls, TlsError> {
        let seen = self.sources.stamps();
        let config = self.sources.load(None)?;
        let tls = Tls::new(Some(self.sources), config, seen);
        if let Some(interval) = self.reload_every {
            let watched = Arc::downgrade(&tls.0);
            thread::Builder::new()
                .name("sockring-tls".into())
                .spawn(move || watch(&watched, interval))
                .map_err(TlsError::Thread)?;
        }
        Ok(tls)
    }
}

/// How often the watcher's thread looks whether anybody still needs it.
const WATCH_PAUSE: Duration = Duration::from_millis(500);

/// Reloads whenever the files have changed, until nobody uses them any more.
fn watch(watched: &Weak<Inner>, interval: Duration) {
    let mut next = Instant::now() + interval;
    loop {
        thread::sleep(interval.min(WATCH_PAUSE));
        let Some(inner) = watched.upgrade() else { return };
        if Instant::now() < next {
            continue;
        }
        next = Instant::now() + interval;
        let tls = Tls(inner);
        if !tls.has_changed() {
            continue;
        }
        match tls.reload() {
            Ok(()) => tracing::info!("certificates were read again"),
            Err(error) => tracing::error!("the new certificates are not used: {error}"),
        }
    }
}

impl Sources {
    fn files(&self) -> Vec<&Path> {
        let mut files = Vec::new();
        for source in &self.identities {
            if let Source::Files { certificate, key } = source {
                files.extend([certificate.as_path(), key.as_path()]);
            }
        }
        files.extend(self.client_authorities.as_deref());
        files
    }

    fn stamps(&self) -> Vec<Option<Stamp>> {
        let stamp = |file: &&Path| {
            // Follows links: a renewed certificate is often a new file behind the same link.
            let metadata = fs::metadata(file).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        self.files().iter().map(stamp).collect()
    }

    /// `before`: the configuration that this one replaces, if any.
    fn load(&self, before: Option<&ServerConfig>) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        if self.identities.is_empty() {
            return Err(TlsError::NoIdentity);
        }
        let identities = self.identities.iter().map(|source| source.load(&provider));
        let identities = Identities(identities.collect::<Result<_, _>>()?);
        let time = Arc::new(Time(SystemTime::now));
        let builder = ServerConfig::builder_with_details(provider.clone(), time);
        let builder = match self.tls13_only {
            true => builder.with_protocol_versions(&[&rustls::version::TLS13]),
            false => builder.with_safe_default_protocol_versions(),
        };
        let builder = builder.map_err(TlsError::Config)?;
        let builder = match &self.client_authorities {
            None => builder.with_no_client_auth(),
            Some(file) => builder.with_client_cert_verifier({
                let authorities = Arc::new(authorities(file)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(authorities, provider);
                let verifier = if self.client_optional { verifier.allow_unauthenticated() } else { verifier };
                let file = file.clone();
                verifier.build().map_err(|source| TlsError::Authorities { file, source })?
            }),
        };
        let mut config = builder.with_cert_resolver(Arc::new(identities));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 1;
        // Tickets keep the sessions with the clients, so that any core, and none but memory of ours, will do.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = match before {
            // A resumed session is not verified again: one from before must not outlive a change of
            // authorities.
            Some(before) if self.client_authorities.is_none() => before.ticketer.clone(),
            _ => tickets().map_err(TlsError::Config)?,
        };
        Ok(Arc::new(config))
    }
}

fn tickets() -> Result<Arc<dyn ProducesTickets>, Error> {
    Ok(Arc::new(Tickets::new(SystemTime::now)?))
}

fn authorities(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(&read(file)?, || file.display().to_string())? {
        let named = |source| TlsError::Certificate { name: file.display().to_string(), source };
        store.add(certificate).map_err(named)?;
    }
    Ok(store)
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(file).map_err(|source| TlsError::Read { file: file.to_owned(), source })
}

fn certificates(pem: &[u8], name: impl Fn() -> String) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|source| TlsError::Pem { name: name(), source })?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { name: name() });
    }
    Ok(certificates)
}

fn private_key(pem: &[u8], name: impl Fn() -> String) -> Result<PrivateKeyDer<'static>, TlsError> {
    match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => {
            const ENCRYPTED: &[u8] = b"ENCRYPTED";
            let encrypted = pem.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED);
            Err(TlsError::NoKey { name: name(), encrypted })
        }
        Err(source) => Err(TlsError::Pem { name: name(), source }),
    }
}

impl Source {
    fn certificate_name(&self) -> String {
        match self {
            Self::Files { certificate, .. } => certificate.display().to_string(),
            Self::Pem { .. } | Self::Der { .. } => "the certificate given in memory".into(),
        }
    }

    fn key_name(&self) -> String {
        match self {
            Self::Files { key, .. } => key.display().to_string(),
            Self::Pem { .. } | Self::Der { .. } => "the key given in memory".into(),
        }
    }

    fn load(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
        let names = (|| self.certificate_name(), || self.key_name());
        let (chain, key) = match self {
            Self::Files { certificate, key } => {
                (certificates(&read(certificate)?, names.0)?, private_key(&read(key)?, names.1)?)
            }
            Self::Pem { certificate, key } => {
                (certificates(certificate, names.0)?, private_key(key, names.1)?)
            }
            Self::Der { chain, key } => {
                let key = PrivateKeyDer::try_from(key.clone());
                let key = key.map_err(|_| TlsError::NoKey { name: self.key_name(), encrypted: false })?;
                (chain.iter().map(|one| CertificateDer::from(one.clone())).collect(), key)
            }
        };
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|source| TlsError::Key { name: self.key_name(), source })?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate { name: self.certificate_name() });
        }
        // The end of the chain tells what went wrong: a key that belongs to another certificate of the file.
        let fits = |at: usize| CertifiedKey::new(chain[at..].to_vec(), key.clone()).keys_match();
        match fits(0) {
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(Error::InconsistentKeys(_)) => {
                let later = (1..chain.len()).any(|at| fits(at).is_ok());
                let (certificate, key) = (self.certificate_name(), self.key_name());
                return Err(TlsError::Mismatch { certificate, key, later });
            }
            Err(source) => return Err(TlsError::Certificate { name: self.certificate_name(), source }),
        }
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    }
}

/// The certificates of a listener, in the order in which they were given.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Identities {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let [only] = self.0.as_slice() {
            return Some(only.clone());
        }
        let usable =
            |identity: &&Arc<CertifiedKey>| identity.key.choose_scheme(hello.signature_schemes()).is_some();
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| {
            self.0.iter().filter(usable).find(|identity| {
                let parsed = identity.end_entity_cert().and_then(ParsedCertificate::try_from);
                parsed.is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
            })
        });
        named.or_else(|| self.0.iter().find(usable)).cloned()
    }
}

/// Why certificates or keys cannot be used. Each names the file and the cure.
///
/// ```
/// use sockring::tls::Tls;
/// let error = Tls::from_pem_files("/no/cert.pem", "/no/key.pem").unwrap_err();
/// assert_eq!(error.to_string(), "cannot read /no/cert.pem: No such file or directory (os error 2)");
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// Something is no PEM.
    #[error("{name} is not valid PEM: {source}")]
    Pem {
        /// What was read.
        name: String,
        /// What is wrong.
        source: pem::Error,
    },

    /// No certificate was found.
    #[error("{name} holds no certificate: a PEM section \"BEGIN CERTIFICATE\" is expected")]
    NoCertificate {
        /// What was read.
        name: String,
    },

    /// No private key was found.
    #[error(
        "{name} holds no private key that can be read{}",
        if *encrypted {
            ": it is encrypted; `openssl pkey -in key.pem -out plain.pem` removes the password"
        } else {
            ": a PEM section \"BEGIN PRIVATE KEY\" is expected"
        }
    )]
    NoKey {
        /// What was read.
        name: String,
        /// Whether there is one with a password.
        encrypted: bool,
    },

    /// A private key cannot be used.
    #[error("the private key in {name} cannot be used: {source}")]
    Key {
        /// What was read.
        name: String,
        /// Why not.
        source: Error,
    },

    /// A certificate cannot be used.
    #[error("the certificate in {name} cannot be used: {source}")]
    Certificate {
        /// What was read.
        name: String,
        /// Why not.
        source: Error,
    },

    /// The key belongs to another certificate.
    #[error(
        "{key} is not the key of the first certificate in {certificate}{}",
        if *later { ", but of a later one: put the server's own certificate first" } else { "" }
    )]
    Mismatch {
        /// Where the certificate was read.
        certificate: String,
        /// Where the key was read.
        key: String,
        /// Whether the key fits a later certificate of the chain.
        later: bool,
    },

    /// The certificates that sign those of clients cannot be used.
    #[error("the certificates in {} cannot verify clients: {source}", file.display())]
    Authorities {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: VerifierBuilderError,
    },

    /// There is no certificate.
    #[error("TLS needs at least one certificate and its key: see `Tls::from_pem_files`")]
    NoIdentity,

    /// The configuration asks for early data.
    #[error("early data (max_early_data_size) is not supported: it can be replayed")]
    EarlyData,

    /// The configuration is refused.
    #[error("this TLS configuration cannot be used: {0}")]
    Config(#[source] Error),

    /// The thread that watches the files could not be started.
    #[error("the thread that watches certificates could not be started: {0}")]
    Thread(#[source] io::Error),
}

/// A `main` that returns this error prints its debug form: that must name the cure as well.
impl fmt::Debug for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
