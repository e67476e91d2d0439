//! Cross-origin resource sharing, as the npm package `cors` answers it for engine.io.

use std::borrow::Cow;

/// Which origins may read the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Any; sent as `*`, or reflected when credentials are allowed, since `*` is void with them.
    Any,
    /// These, compared as sent.
    List(Vec<String>),
}

/// CORS headers for polling requests. Off unless it is set: then no header is sent and nothing is refused.
/// CORS does not guard WebSockets; use [`Options::allow_request`](super::Options::allow_request) for that.
///
/// ```
/// use sockring::engine::Cors;
/// let cors = Cors::list(["https://example.com"]).credentials(true);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    origins: Origins,
    credentials: bool,
    methods: Cow<'static, str>,
}

type Headers = Vec<(Cow<'static, str>, Cow<'static, str>)>;

impl Cors {
    /// Any origin may read.
    pub fn any() -> Self {
        Self::new(Origins::Any)
    }

    /// These origins may read, such as `https://example.com`.
    pub fn list<S: Into<String>>(origins: impl IntoIterator<Item = S>) -> Self {
        Self::new(Origins::List(origins.into_iter().map(Into::into).collect()))
    }

    fn new(origins: Origins) -> Self {
        Self { origins, credentials: false, methods: "GET,HEAD,PUT,PATCH,POST,DELETE".into() }
    }

    /// Whether cookies may come along.
    #[must_use]
    pub fn credentials(mut self, credentials: bool) -> Self {
        self.credentials = credentials;
        self
    }

    /// The methods that a preflight allows.
    #[must_use]
    pub fn methods(mut self, methods: impl Into<Cow<'static, str>>) -> Self {
        self.methods = methods.into();
        self
    }

    /// The headers for an answer to a request from `origin`.
    pub(crate) fn headers(&self, origin: Option<&str>, out: &mut Headers) {
        let mut push = |name: &'static str, value: Cow<'static, str>| out.push((name.into(), value));
        match (&self.origins, origin) {
            (Origins::Any, _) if !self.credentials => push("Access-Control-Allow-Origin", "*".into()),
            (Origins::Any, Some(origin)) => {
                push("Access-Control-Allow-Origin", origin.to_owned().into());
                push("Vary", "Origin".into());
            }
            (Origins::List(list), Some(origin)) if list.iter().any(|known| known == origin) => {
                push("Access-Control-Allow-Origin", origin.to_owned().into());
                push("Vary", "Origin".into());
            }
            _ => push("Vary", "Origin".into()),
        }
        if self.credentials {
            push("Access-Control-Allow-Credentials", "true".into());
        }
    }

    /// The headers of the answer to a preflight.
    pub(super) fn preflight(&self, origin: Option<&str>, asked_headers: Option<&str>) -> Headers {
        let mut out = Vec::new();
        self.headers(origin, &mut out);
        out.push(("Access-Control-Allow-Methods".into(), self.methods.clone()));
        out.push(("Vary".into(), "Access-Control-Request-Headers".into()));
        if let Some(asked) = asked_headers {
            out.push(("Access-Control-Allow-Headers".into(), asked.to_owned().into()));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(headers: &Headers, name: &str) -> Option<String> {
        headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone().into_owned())
    }

    #[test]
    fn a_star_never_meets_credentials() {
        let mut out = Vec::new();
        Cors::any().credentials(true).headers(Some("http://a"), &mut out);
        assert_eq!(value(&out, "Access-Control-Allow-Origin").as_deref(), Some("http://a"));
        assert_eq!(value(&out, "Access-Control-Allow-Credentials").as_deref(), Some("true"));
    }

    #[test]
    fn a_foreign_origin_gets_no_permission() {
        let mut out = Vec::new();
        Cors::list(["http://a"]).headers(Some("http://b"), &mut out);
        assert_eq!(value(&out, "Access-Control-Allow-Origin"), None);
        assert_eq!(value(&out, "Vary").as_deref(), Some("Origin"));
    }

    #[test]
    fn a_preflight_reflects_what_was_asked() {
        let headers = Cors::list(["http://a"]).preflight(Some("http://a"), Some("x-one"));
        assert_eq!(value(&headers, "Access-Control-Allow-Headers").as_deref(), Some("x-one"));
        assert!(
            value(&headers, "Access-Control-Allow-Methods").is_some_and(|methods| methods.contains("POST"))
        );
    }
}
