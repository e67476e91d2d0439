//! Headers of an answer, while hooks and middlewares still change them.

use std::borrow::Cow;

use crate::app::{HeaderList, Response, Upgrade};

type Text = Cow<'static, str>;

/// The headers of an answer: names may repeat, as `Set-Cookie` does, and keep their order.
///
/// ```
/// use sockring::engine::Headers;
/// let mut headers = Headers::default();
/// headers.append("Set-Cookie", "a=1");
/// headers.append("Set-Cookie", "b=2");
/// headers.set("X-Region", "eu");
/// headers.set("x-region", "us");
/// assert_eq!(headers.get("set-cookie"), Some("a=1"));
/// assert_eq!(headers.iter().count(), 3);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Text, Text)>);

impl Headers {
    /// Adds a header beside those of the same name.
    pub fn append(&mut self, name: impl Into<Text>, value: impl Into<Text>) {
        self.0.push((name.into(), value.into()));
    }

    /// Adds a header in place of those of the same name, whose case does not matter.
    pub fn set(&mut self, name: impl Into<Text>, value: impl Into<Text>) {
        let name = name.into();
        self.remove(&name);
        self.0.push((name, value.into()));
    }

    /// Removes all headers of a name.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    }

    /// The first header of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All headers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Adds an element to a header that is a list, unless it is there.
    pub(crate) fn add_to_list(&mut self, name: &'static str, element: &str) {
        let Some(value) = self.0.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(name)) else {
            return self.append(name, element.to_owned());
        };
        if !value.1.split(',').any(|known| known.trim().eq_ignore_ascii_case(element)) {
            value.1.to_mut().push_str(", ");
            value.1.to_mut().push_str(element);
        }
    }

    pub(crate) fn answer(self, response: Response) -> Response {
        self.0.into_iter().fold(response, |response, (name, value)| response.header(name, value))
    }

    pub(super) fn into_list(self) -> HeaderList {
        self.0
    }

    pub(super) fn upgrade<U: 'static>(self, handshake: Upgrade<U>) -> Upgrade<U> {
        self.0.into_iter().fold(handshake, |handshake, (name, value)| handshake.header(name, value))
    }
}
