//! JSON plus binary.

use std::fmt::{self, Display, Write};

use bytes::Bytes;
use serde::de::{DeserializeOwned, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::args::ArgsError;
use super::deep::DeepJson;

/// A JSON number that keeps integers exact.
///
/// Made by `From`, an integer has one form only: [`I64`](Self::I64) if it fits, else [`U64`](Self::U64).
///
/// ```
/// use sockring::protocol::sio::Number;
///
/// assert_eq!(Number::from(7u64), Number::I64(7));
/// assert_eq!(Number::from(u64::MAX).to_string(), "18446744073709551615");
/// assert_eq!(Number::F64(0.5).as_f64(), 0.5);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// An integer from -2^63 to 2^63-1.
    I64(i64),
    /// An integer from 2^63 to 2^64-1.
    U64(u64),
    /// Anything else.
    F64(f64),
}

impl Number {
    /// The number as an integer, if it is one that fits.
    #[must_use]
    pub fn as_i64(self) -> Option<i64> {
        match self {
            Self::I64(number) => Some(number),
            Self::U64(number) => i64::try_from(number).ok(),
            Self::F64(_) => None,
        }
    }

    /// The number as an integer, if it is one that fits and is not negative.
    #[must_use]
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Self::I64(number) => u64::try_from(number).ok(),
            Self::U64(number) => Some(number),
            Self::F64(_) => None,
        }
    }

    /// The number as a float, rounded to the nearest.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        match self {
            Self::I64(number) => number as f64,
            Self::U64(number) => number as f64,
            Self::F64(number) => number,
        }
    }
}

impl Display for Number {
    /// As in JSON; what JSON cannot say (NaN, infinities) is `null`, as in JavaScript.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::I64(number) => number.fmt(f),
            Self::U64(number) => number.fmt(f),
            Self::F64(number) if number.is_finite() => number.fmt(f),
            Self::F64(_) => f.write_str("null"),
        }
    }
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        i64::try_from(number).map_or(Self::U64(number), Self::I64)
    }
}

impl From<i64> for Number {
    fn from(number: i64) -> Self {
        Self::I64(number)
    }
}

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self::F64(number)
    }
}

/// A value of an argument: JSON, and binary at any depth.
///
/// `Display` writes it like JSON, with binary as `<binary of N bytes>`; to put it on the wire, hand it to
/// [`event`](super::event) or [`ack`](super::ack). With serde, binary is bytes: `bytes::Bytes`, and any type
/// that takes bytes, converts to and from it, and `Vec<u8>` can be read from it.
///
/// ```
/// use bytes::Bytes;
/// use sockring::protocol::sio::Value;
///
/// let file = Bytes::from_static(b"abc");
/// let value = Value::Object(vec![("file".into(), file.into()), ("n".into(), 1.into())]);
/// assert_eq!(value.get("file").and_then(Value::as_binary).map(|bytes| &bytes[..]), Some(&b"abc"[..]));
/// assert_eq!(value.get("n").and_then(Value::as_i64), Some(1));
/// assert_eq!(value.to_string(), r#"{"file":<binary of 3 bytes>,"n":1}"#);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value {
    /// `null`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    String(String),
    /// Bytes, which travel beside the JSON.
    Binary(Bytes),
    /// An array.
    Array(Vec<Self>),
    /// An object, in the order of its keys on the wire. No key is there twice if it was parsed or
    /// deserialised.
    Object(Vec<(String, Self)>),
    /// An array or an object that nests too deep to be held as one of those above: it can be sent on as it
    /// is, and not be looked into.
    Deep(DeepJson),
}

impl Value {
    /// The boolean, if it is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// The number, if it is an integer that fits.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        if let Self::Number(number) = self { number.as_i64() } else { None }
    }

    /// The number, if it is an integer that fits and is not negative.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        if let Self::Number(number) = self { number.as_u64() } else { None }
    }

    /// The number as a float, if it is a number.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        if let Self::Number(number) = self { Some(number.as_f64()) } else { None }
    }

    /// The string, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(value) = self { Some(value) } else { None }
    }

    /// The bytes, if it is binary.
    #[must_use]
    pub fn as_binary(&self) -> Option<&Bytes> {
        if let Self::Binary(value) = self { Some(value) } else { None }
    }

    /// The elements, if it is an array.
    #[must_use]
    pub fn as_array(&self) -> Option<&[Self]> {
        if let Self::Array(items) = self { Some(items) } else { None }
    }

    /// The pairs, if it is an object.
    #[must_use]
    pub fn as_object(&self) -> Option<&[(String, Self)]> {
        if let Self::Object(entries) = self { Some(entries) } else { None }
    }

    /// Whether it is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The value of a key, if it is an object that has it. Looks at the keys one by one.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.as_object()?.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// Converts to a type.
    ///
    /// ```
    /// use sockring::protocol::sio::Value;
    ///
    /// assert_eq!(Value::from(vec![1, 2]).to::<Vec<u8>>()?, [1, 2]);
    /// # Ok::<(), sockring::protocol::sio::ArgsError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What did not match.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, ArgsError> {
        T::deserialize(self)
    }
}

/// Removes repeated keys the way JavaScript does: the last value stands, where its key stood first. Sorting
/// keeps a hostile object of many keys from costing quadratic time, and needs no hash whose collisions could
/// be sought.
pub(super) fn drop_duplicates(entries: &mut Vec<(String, Value)>) {
    const FEW: usize = 8;
    let repeated =
        |at: usize, (key, _): &(String, Value)| entries.iter().take(at).any(|(known, _)| known == key);
    if entries.len() <= FEW && !entries.iter().enumerate().any(|(at, entry)| repeated(at, entry)) {
        return;
    }
    let key = |at: usize| entries.get(at).map(|(key, _)| key.as_str()).unwrap_or_default();
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_unstable_by(|a, b| key(*a).cmp(key(*b)).then(a.cmp(b)));
    let mut last_of_first = Vec::new();
    let mut superseded = Vec::new();
    for group in order.chunk_by(|a, b| key(*a) == key(*b)) {
        if let [first, others @ .., last] = group {
            last_of_first.push((*first, *last));
            superseded.extend(others.iter().copied().chain([*last]));
        }
    }
    for (first, last) in last_of_first {
        if let Some(value) = entries.get_mut(last).map(|(_, value)| std::mem::take(value))
            && let Some((_, slot)) = entries.get_mut(first)
        {
            *slot = value;
        }
    }
    superseded.sort_unstable();
    let mut at = 0;
    let mut superseded = superseded.into_iter().peekable();
    entries.retain(|_| {
        let keep = superseded.next_if_eq(&at).is_none();
        at += 1;
        keep
    });
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::String(text) => write_string(f, text),
            Self::Binary(bytes) => write!(f, "<binary of {} bytes>", bytes.len()),
            Self::Array(items) => {
                f.write_char('[')?;
                for (at, item) in items.iter().enumerate() {
                    f.write_str(if at > 0 { "," } else { "" })?;
                    item.fmt(f)?;
                }
                f.write_char(']')
            }
            Self::Object(entries) => {
                f.write_char('{')?;
                for (at, (key, value)) in entries.iter().enumerate() {
                    f.write_str(if at > 0 { "," } else { "" })?;
                    write_string(f, key)?;
                    f.write_char(':')?;
                    value.fmt(f)?;
                }
                f.write_char('}')
            }
            Self::Deep(json) => f.write_str(json.as_str()),
        }
    }
}

fn write_string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(Number::I64(number)) => serializer.serialize_i64(*number),
            Self::Number(Number::U64(number)) => serializer.serialize_u64(*number),
            Self::Number(Number::F64(number)) => serializer.serialize_f64(*number),
            Self::String(text) => serializer.serialize_str(text),
            Self::Binary(bytes) => serializer.serialize_bytes(bytes),
            Self::Array(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            Self::Object(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
            Self::Deep(json) => json.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("json or binary")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(Value::Binary(Bytes::copy_from_slice(value)))
    }

    fn visit_byte_buf<E>(self, value: Vec<u8>) -> Result<Value, E> {
        Ok(Value::Binary(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        drop_duplicates(&mut entries);
        Ok(Value::Object(entries))
    }

    /// No format of data has enums that it names itself, so this is [`Value::Deep`], from another `Value`.
    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Value, A::Error> {
        let (name, variant) = data.variant::<String>()?;
        let json = (name == DEEP).then(|| variant.newtype_variant()).transpose()?;
        let deep = json.and_then(DeepJson::new).map(Value::Deep);
        deep.ok_or_else(|| A::Error::custom("an enum is neither json nor binary"))
    }
}

/// What [`Value::Deep`] is called between two values.
pub(super) const DEEP: &str = "$sockring::Deep";

macro_rules! from_number {
    ($wide:ty: $($narrow:ty)*) => {$(
        impl From<$narrow> for Value {
            fn from(number: $narrow) -> Self {
                Self::Number(Number::from(<$wide>::from(number)))
            }
        }
    )*};
}

from_number!(i64: i8 i16 i32 i64);
from_number!(u64: u8 u16 u32 u64);
from_number!(f64: f32 f64);

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Self::Binary(bytes)
    }
}

impl From<()> for Value {
    fn from((): ()) -> Self {
        Self::Null
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl<T: Into<Self>> From<Vec<T>> for Value {
    fn from(items: Vec<T>) -> Self {
        Self::Array(items.into_iter().map(Into::into).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_keep_the_first_place_and_the_last_value() {
        for padding in [0, 20] {
            let mut entries: Vec<(String, Value)> =
                (0..padding).map(|n| (format!("p{n:02}"), n.into())).collect();
            for (key, value) in [("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 5), ("a", 6)] {
                entries.push((key.to_owned(), value.into()));
            }
            drop_duplicates(&mut entries);
            let found: Vec<_> = entries.split_off(padding as usize);
            let expected = [("a", 6), ("b", 5), ("c", 4)].map(|(key, value)| (key.to_owned(), value.into()));
            assert_eq!(found, expected);
            assert_eq!(entries.len(), padding as usize);
        }
    }

    #[test]
    fn converts_and_shows() {
        let value =
            Value::from(vec![Value::from("a\"\n\u{1}"), 1.5.into(), u64::MAX.into(), None::<bool>.into()]);
        assert_eq!(value.to_string(), r#"["a\"\n\u0001",1.5,18446744073709551615,null]"#);
        assert_eq!(value.as_array().map(<[Value]>::len), Some(4));
        assert_eq!(Value::from(f64::NAN).to_string(), "null");
        assert_eq!(Value::from(()), Value::Null);
        assert!(std::mem::size_of::<Value>() <= 40);
    }

    #[test]
    fn a_binary_value_is_bytes_to_serde() {
        let value = Value::Binary(Bytes::from_static(b"\x01\x02"));
        assert_eq!(value.to::<Bytes>().unwrap(), Bytes::from_static(b"\x01\x02"));
        assert_eq!(value.to::<Vec<u8>>().unwrap(), [1, 2]);
        assert_eq!(value.to::<[u8; 2]>().unwrap(), [1, 2]);
        assert_eq!(value.to::<Value>().unwrap(), value);
        assert!(value.to::<u8>().is_err());
    }
}
