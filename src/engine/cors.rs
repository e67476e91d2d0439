//! Cross-origin resource sharing, as the npm package `cors` answers it for engine.io.

use std::borrow::Cow;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use super::headers::Headers;
use crate::app::{Refused, Request};

/// Which origins may read the answers.
///
/// ```
/// use sockring::engine::Origins;
/// assert_eq!(format!("{:?}", Origins::Predicate(std::rc::Rc::new(|_| true))), "Predicate");
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum Origins {
    /// Any; sent as `*`, or reflected when credentials are allowed, since `*` is void with them.
    Any,
    /// Any; sent back as it came.
    Reflect,
    /// These, compared as sent.
    List(Vec<String>),
    /// Those that this accepts.
    Predicate(Rc<dyn Fn(&str) -> bool>),
}

impl Origins {
    /// Whether an origin is one of them.
    pub(super) fn accept(&self, origin: &str) -> bool {
        match self {
            Self::Any | Self::Reflect => true,
            // A slash at the end of a configured one is a slip, since no browser sends it.
            Self::List(list) => list.iter().any(|known| known.strip_suffix('/').unwrap_or(known) == origin),
            Self::Predicate(accepts) => accepts(origin),
        }
    }
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("Any"),
            Self::Reflect => f.write_str("Reflect"),
            Self::List(list) => f.debug_tuple("List").field(list).finish(),
            Self::Predicate(_) => f.write_str("Predicate"),
        }
    }
}

/// CORS headers for all requests, with the options of the npm package. Off unless it is set: then no header
/// is sent. Nothing is refused either way: a browser keeps an answer from scripts that may not read it, and
/// does not look at these headers when it opens a WebSocket. Use
/// [`Options::allowed_origins`](super::Options::allowed_origins) to refuse the scripts of other sites.
///
/// ```
/// use sockring::engine::Cors;
/// let cors = Cors::list(["https://example.com"]).credentials(true).methods("GET,POST");
/// let ours = Cors::predicate(|origin| origin.ends_with(".example.com"));
/// ```
#[derive(Clone, Debug)]
pub struct Cors {
    origins: Origins,
    credentials: bool,
    methods: Cow<'static, str>,
    allowed_headers: Option<Cow<'static, str>>,
    exposed_headers: Option<Cow<'static, str>>,
    max_age: Option<Duration>,
    options_success_status: u16,
    preflight_continue: bool,
}

impl Cors {
    /// Any origin may read.
    pub fn any() -> Self {
        Self::new(Origins::Any)
    }

    /// Any origin may read, and is named in the answer.
    pub fn reflect() -> Self {
        Self::new(Origins::Reflect)
    }

    /// These origins may read, such as `https://example.com`.
    pub fn list<S: Into<String>>(origins: impl IntoIterator<Item = S>) -> Self {
        Self::new(Origins::List(origins.into_iter().map(Into::into).collect()))
    }

    /// The origins that `accepts` says yes to may read.
    pub fn predicate(accepts: impl Fn(&str) -> bool + 'static) -> Self {
        Self::new(Origins::Predicate(Rc::new(accepts)))
    }

    fn new(origins: Origins) -> Self {
        Self {
            origins,
            credentials: false,
            methods: "GET,HEAD,PUT,PATCH,POST,DELETE".into(),
            allowed_headers: None,
            exposed_headers: None,
            max_age: None,
            options_success_status: 204,
            preflight_continue: false,
        }
    }

    /// Whether cookies may come along; no by default.
    #[must_use]
    pub fn credentials(mut self, credentials: bool) -> Self {
        self.credentials = credentials;
        self
    }

    /// The methods that a preflight allows; `GET,HEAD,PUT,PATCH,POST,DELETE` by default.
    #[must_use]
    pub fn methods(mut self, methods: impl Into<Cow<'static, str>>) -> Self {
        self.methods = methods.into();
        self
    }

    /// The request headers that a preflight allows, separated by commas; by default those that it asks for.
    #[must_use]
    pub fn allowed_headers(mut self, headers: impl Into<Cow<'static, str>>) -> Self {
        self.allowed_headers = Some(headers.into());
        self
    }

    /// The answer's headers that a script may read, separated by commas.
    #[must_use]
    pub fn exposed_headers(mut self, headers: impl Into<Cow<'static, str>>) -> Self {
        self.exposed_headers = Some(headers.into());
        self
    }

    /// How long a browser may remember a preflight, to the second.
    #[must_use]
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// The status of the answer to a preflight; 204 by default. Some old browsers want 200.
    #[must_use]
    pub fn options_success_status(mut self, status: u16) -> Self {
        self.options_success_status = status;
        self
    }

    /// Whether preflights go on to the middlewares, with their headers set, instead of being answered here.
    #[must_use]
    pub fn preflight_continue(mut self, go_on: bool) -> Self {
        self.preflight_continue = go_on;
        self
    }

    /// Adds the headers of the answer to a request. `Some`: it is a preflight, to be answered with this
    /// status.
    pub(crate) fn answer(&self, request: &Request, out: &mut Headers) -> Option<u16> {
        let asked = request.header("access-control-request-headers");
        self.decide(request.method(), request.header("origin"), asked, out)
    }

    /// Adds the headers of an answer that refuses a request before its handler has run. Of its fields, those
    /// count that have come by then.
    pub(super) fn refuse(&self, refused: &Refused<'_>, out: &mut Headers) {
        let asked = refused.header("access-control-request-headers");
        self.decide(refused.method(), refused.header("origin"), asked, out);
    }

    fn decide(
        &self,
        method: &str,
        origin: Option<&str>,
        asked: Option<&str>,
        out: &mut Headers,
    ) -> Option<u16> {
        let preflight = method == "OPTIONS";
        self.origin(origin, out);
        if self.credentials {
            out.append("Access-Control-Allow-Credentials", "true");
        }
        if preflight {
            self.preflight(asked, out);
        }
        if let Some(exposed) = self.exposed_headers.clone().filter(|exposed| !exposed.is_empty()) {
            out.append("Access-Control-Expose-Headers", exposed);
        }
        (preflight && !self.preflight_continue).then_some(self.options_success_status)
    }

    fn origin(&self, origin: Option<&str>, out: &mut Headers) {
        let known = match &self.origins {
            Origins::Any if !self.credentials => {
                return out.append("Access-Control-Allow-Origin", "*");
            }
            Origins::Any | Origins::Reflect => true,
            Origins::List(list) => origin.is_some_and(|origin| list.iter().any(|known| known == origin)),
            Origins::Predicate(accepts) => origin.is_some_and(|origin| accepts(origin)),
        };
        if let Some(origin) = origin.filter(|_| known) {
            out.append("Access-Control-Allow-Origin", origin.to_owned());
        }
        out.add_to_list("Vary", "Origin");
    }

    fn preflight(&self, asked: Option<&str>, out: &mut Headers) {
        out.append("Access-Control-Allow-Methods", self.methods.clone());
        match (&self.allowed_headers, asked) {
            (Some(allowed), _) if !allowed.is_empty() => {
                out.append("Access-Control-Allow-Headers", allowed.clone());
            }
            (Some(_), _) => {}
            (None, asked) => {
                out.add_to_list("Vary", "Access-Control-Request-Headers");
                if let Some(asked) = asked.filter(|asked| !asked.is_empty()) {
                    out.append("Access-Control-Allow-Headers", asked.to_owned());
                }
            }
        }
        if let Some(max_age) = self.max_age {
            out.append("Access-Control-Max-Age", max_age.as_secs().to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The status of an answer to a preflight, and all headers as text.
    fn answer(cors: &Cors, method: &str, origin: Option<&str>, asked: Option<&str>) -> (Option<u16>, String) {
        let mut out = Headers::default();
        let status = cors.decide(method, origin, asked, &mut out);
        let lines: Vec<String> = out.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        (status, lines.join("\n"))
    }

    #[test]
    fn a_star_never_meets_credentials() {
        let cors = Cors::any();
        assert_eq!(answer(&cors, "GET", None, None).1, "Access-Control-Allow-Origin: *");
        let (_, text) = answer(&cors.credentials(true), "GET", Some("http://a"), None);
        assert!(text.contains("Allow-Origin: http://a\n") && text.contains("Allow-Credentials: true"));
    }

    #[test]
    fn a_foreign_origin_gets_no_permission() {
        for cors in [Cors::list(["http://a"]), Cors::predicate(|origin| origin == "http://a")] {
            assert_eq!(answer(&cors, "GET", Some("http://b"), None), (None, "Vary: Origin".to_owned()));
            assert_eq!(answer(&cors, "GET", None, None).1, "Vary: Origin");
            assert!(
                answer(&cors, "GET", Some("http://a"), None).1.starts_with("Access-Control-Allow-Origin")
            );
        }
    }

    #[test]
    fn a_preflight_reflects_what_was_asked() {
        let cors = Cors::list(["http://a"]).credentials(true).methods("GET,POST");
        let (status, text) = answer(&cors, "OPTIONS", Some("http://a"), Some("my-header"));
        assert_eq!(status, Some(204));
        assert_eq!(
            text,
            "Access-Control-Allow-Origin: http://a\nVary: Origin, Access-Control-Request-Headers\n\
             Access-Control-Allow-Credentials: true\nAccess-Control-Allow-Methods: GET,POST\n\
             Access-Control-Allow-Headers: my-header"
        );
    }

    #[test]
    fn every_option_has_its_header() {
        let cors = Cors::reflect()
            .methods("GET,PUT")
            .allowed_headers("my-header")
            .exposed_headers("my-exposed-header")
            .max_age(Duration::from_secs(123))
            .options_success_status(200);
        let (status, text) = answer(&cors, "OPTIONS", Some("http://a"), Some("other"));
        assert_eq!(status, Some(200));
        for line in [
            "Access-Control-Allow-Methods: GET,PUT",
            "Access-Control-Allow-Headers: my-header",
            "Access-Control-Expose-Headers: my-exposed-header",
            "Access-Control-Max-Age: 123",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in {text}");
        }
        assert_eq!(answer(&cors.preflight_continue(true), "OPTIONS", None, None).0, None);
    }
}
