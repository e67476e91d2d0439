//! What a client asks.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::TrustProxy;
use super::trust::Origin;
use crate::protocol::http::Head;
use crate::protocol::query;

/// A request with its whole body. A clone is a reference.
///
/// ```no_run
/// use sockring::app::{App, Request, Response};
/// fn greet(request: Request, response: Response) {
///     let name = request.query_param("name").unwrap_or("you".into());
///     response.header("content-type", "text/plain").end(format!("hello {name}"));
/// }
/// # App::builder().run(|app| { app.get("/greet", greet); });
/// ```
#[derive(Clone, Debug)]
pub struct Request(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    head: Head,
    /// In 20 bytes instead of 32.
    peer: Option<(IpAddr, u16)>,
    /// What the request of a session, which is kept as long as it lives, does not have.
    more: Option<Box<More>>,
}

// There is one for each session, with two counts in front.
const _: () = assert!(size_of::<Inner>() <= 64);

#[derive(Debug)]
struct More {
    body: Bytes,
    params: Params,
    tls: Option<PeerCertificates>,
}

/// The certificates with which a client of TLS has identified itself; often none.
pub(super) type PeerCertificates = Vec<Vec<u8>>;

pub(super) type Params = SmallVec<[(Box<str>, Box<str>); 0]>;

static NO_BODY: Bytes = Bytes::new();

impl Request {
    pub(super) fn new(
        head: Head,
        body: Bytes,
        peer: Option<SocketAddr>,
        params: Params,
        tls: Option<PeerCertificates>,
    ) -> Self {
        let peer = peer.map(|peer| (peer.ip(), peer.port()));
        let more = !body.is_empty() || !params.is_empty() || tls.is_some();
        Self(Rc::new(Inner { head, peer, more: more.then(|| Box::new(More { body, params, tls })) }))
    }

    /// A request that nobody has sent.
    #[cfg(test)]
    pub(crate) fn of_head(head: &str) -> Self {
        let parsed = Head::parse(head.as_bytes(), &crate::protocol::http::HeadLimits::default());
        let (head, _) = parsed.unwrap().unwrap();
        Self::new(head, Bytes::new(), None, Params::new(), None)
    }

    /// The request to keep for long: itself, or one whose head is [cut](Head::cut) to so many bytes.
    pub(crate) fn within(self, bytes: usize) -> Self {
        if self.0.head.own_bytes() <= bytes {
            return self;
        }
        let more = self.0.more.as_ref().map(|more| {
            let More { body, params, tls } = &**more;
            Box::new(More { body: body.clone(), params: params.clone(), tls: tls.clone() })
        });
        Self(Rc::new(Inner { head: self.0.head.cut(bytes), peer: self.0.peer, more }))
    }

    /// Bytes that its head takes for itself.
    pub(crate) fn own_bytes(&self) -> usize {
        self.0.head.own_bytes()
    }

    /// The method, in capitals as sent.
    pub fn method(&self) -> &str {
        self.0.head.method()
    }

    /// The path, still percent-encoded, without the query.
    pub fn path(&self) -> &str {
        self.0.head.path()
    }

    /// The raw query, without the question mark; empty if there is none.
    pub fn query(&self) -> &str {
        self.0.head.query()
    }

    /// The path and the query as sent.
    pub fn url(&self) -> &str {
        self.0.head.target()
    }

    /// A decoded parameter of the query; the first of several.
    pub fn query_param(&self, name: &str) -> Option<Cow<'_, str>> {
        query::find(self.query(), name)
    }

    /// What a segment `:name` of the route's pattern has matched, still percent-encoded.
    pub fn param(&self, name: &str) -> Option<&str> {
        let params = &self.0.more.as_ref()?.params;
        params.iter().find(|(key, _)| **key == *name).map(|(_, value)| &**value)
    }

    /// The first header of a name, whose case does not matter.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.0.head.header(name)
    }

    /// All headers, names as sent.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.head.headers()
    }

    /// The body; empty if there is none.
    pub fn body(&self) -> &Bytes {
        self.0.more.as_ref().map_or(&NO_BODY, |more| &more.body)
    }

    /// The peer's address; `None` for a Unix socket. Behind a proxy, the proxy's: see
    /// [`client_ip`](Self::client_ip).
    pub fn peer(&self) -> Option<SocketAddr> {
        self.0.peer.map(SocketAddr::from)
    }

    /// The client's address, as far as it is known: the peer's, or what proxies say that are trusted (see
    /// [`TrustProxy`](super::TrustProxy)). `None` for a Unix socket.
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.origin().client
    }

    /// Whether the client has spoken TLS: with this server, or with a proxy that is trusted.
    pub fn is_secure(&self) -> bool {
        self.origin()
            .is_secure()
            .unwrap_or_else(|| self.0.more.as_ref().is_some_and(|more| more.tls.is_some()))
    }

    /// `https` or `http`: see [`is_secure`](Self::is_secure).
    pub fn scheme(&self) -> &'static str {
        if self.is_secure() { "https" } else { "http" }
    }

    /// The host, with its port, that the client has asked for: that of a target in absolute form, or of the
    /// `Host` header, or what a proxy that is trusted says. `None` with HTTP/1.0 only.
    pub fn host(&self) -> Option<&str> {
        self.origin().host().or_else(|| self.0.head.host())
    }

    /// What is known of the client.
    fn origin(&self) -> Origin<'_> {
        match super::current() {
            Some(app) => app.0.options.trust_proxy.origin(self.peer(), &self.0.head),
            None => TrustProxy::default().origin(self.peer(), &self.0.head),
        }
    }

    /// The certificates with which the client has identified itself (see `tls::TlsBuilder`), in DER, its own
    /// first; none if it was not asked, or has none.
    pub fn peer_certificates(&self) -> &[Vec<u8>] {
        let tls = self.0.more.as_ref().and_then(|more| more.tls.as_ref());
        tls.map_or(&[], |certificates| certificates)
    }
}
