//! What the examples have in common: where they listen, and that they say so.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use sockring::app::{App, Builder, InvalidNetwork, TrustProxy};
use sockring::runtime::{self, Running, StartError};
use sockring::tls::Tls;

/// The library leaves the choice of an allocator to the program. This one suits many small objects that are
/// made and dropped by the same thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Flags of every example.
#[derive(Args)]
pub(crate) struct Listen {
    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen on [default: the example's own]
    #[arg(long, env = "PORT")]
    port: Option<u16>,
    /// Worker threads; 0 for one on each core
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Where sockets live
    #[arg(long, value_enum, default_value_t = Descriptors::Auto)]
    descriptors: Descriptors,
    /// Speak TLS, with the certificate (and its chain) in this PEM file
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, a PEM file
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Believe what proxies with this address, or in this network, say of their clients
    #[arg(long, value_name = "NETWORK")]
    trust_proxy: Vec<String>,
}

/// A certificate that was renewed is used this much later at most.
const RELOAD_EVERY: Duration = Duration::from_secs(10);

/// The runtime's choices, as words.
#[derive(Clone, Copy, ValueEnum)]
enum Descriptors {
    Auto,
    Normal,
    Direct,
}

impl Listen {
    /// Whom to believe by these flags, for examples with HTTP options of their own.
    pub(crate) fn trusted(&self) -> Result<TrustProxy, InvalidNetwork> {
        TrustProxy::networks(&self.trust_proxy)
    }

    /// A server by these flags.
    pub(crate) fn builder(&self, default_port: u16) -> Result<Builder, Box<dyn std::error::Error>> {
        self.builder_at(self.port.unwrap_or(default_port))
    }

    /// Another server beside it, on a port that is free.
    #[allow(dead_code, reason = "most examples are one server")]
    pub(crate) fn beside(&self) -> Result<Builder, Box<dyn std::error::Error>> {
        self.builder_at(0)
    }

    fn builder_at(&self, port: u16) -> Result<Builder, Box<dyn std::error::Error>> {
        let descriptors = match self.descriptors {
            Descriptors::Auto => runtime::Descriptors::Auto,
            Descriptors::Normal => runtime::Descriptors::Normal,
            Descriptors::Direct => runtime::Descriptors::Direct,
        };
        let address = (self.host, port);
        let http = sockring::app::Options { trust_proxy: self.trusted()?, ..Default::default() };
        let builder = App::builder().workers(self.workers).descriptors(descriptors).http(http);
        Ok(match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let tls = Tls::builder().pem_files(certificate, key).reload_every(RELOAD_EVERY);
                builder.listen_tls(address, tls.build()?)
            }
            _ => builder.listen(address),
        })
    }
}

/// Starts a server and prints where it listens, the line that test harnesses wait for.
#[allow(dead_code, reason = "some examples only serve")]
pub(crate) fn start(
    builder: Builder,
    setup: impl Fn(&App) + Send + Sync + 'static,
) -> Result<Running, StartError> {
    let running = builder.start(setup)?;
    for endpoint in running.endpoints() {
        println!("listening on {endpoint}");
    }
    Ok(running)
}

/// Starts a server and serves until SIGTERM.
#[allow(dead_code, reason = "some examples have work beside")]
pub(crate) fn serve(
    builder: Builder,
    setup: impl Fn(&App) + Send + Sync + 'static,
) -> Result<(), Box<dyn std::error::Error>> {
    start(builder, setup)?.run_until_signal()?;
    Ok(())
}
