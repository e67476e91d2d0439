//! JSON that nests deeper than values do.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// An array or an object that nests deeper than [`Limits::depth`](super::Limits::depth), as JSON text: the
/// inside of a [`Value`](super::Value) that no function which recurses looks into.
///
/// It is compact, and sent as it is, so a client that is sent it back gets the value that it has sent. It
/// cannot be converted to another type than `Value`; binary inside of it is not put back.
///
/// ```
/// use sockring::protocol::sio::{Parser, Value};
///
/// let value = Parser::new().parse("[[ [1] ],2]", 2)?;
/// let Value::Array(items) = &value else { panic!("an array") };
/// let Value::Array(inner) = &items[0] else { panic!("an array") };
/// let Value::Deep(deep) = &inner[0] else { panic!("deep") };
/// assert_eq!(deep.as_str(), "[1]");
/// assert!(items[0].to::<Vec<Vec<u8>>>().is_err());
/// # Ok::<(), sockring::protocol::sio::JsonError>(())
/// ```
#[derive(Clone)]
pub struct DeepJson(Box<RawValue>);

impl DeepJson {
    /// Takes a text if it is JSON. Checking it does not recurse.
    pub(super) fn new(json: String) -> Option<Self> {
        RawValue::from_string(json).ok().map(Self)
    }

    /// The JSON.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

impl PartialEq for DeepJson {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl fmt::Debug for DeepJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DeepJson").field(&self.as_str()).finish()
    }
}

impl Serialize for DeepJson {
    /// To `serde_json`, the text itself.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}
