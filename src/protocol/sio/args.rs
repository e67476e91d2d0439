//! Argument lists to types, and which types are argument lists.
//!
//! **A tuple is the list of arguments, `()` an empty one; anything else is one argument.** That holds for
//! what is emitted and acknowledged ([`event`](super::event), [`ack`](super::ack)) and for what is read
//! ([`from_args`]):
//!
//! | type | arguments |
//! |---|---|
//! | `()` | none |
//! | `(1, "a")`, `&(1, "a")` | `1`, `"a"` |
//! | `("a",)`, `"a"` | `"a"` |
//! | `[1.0, 2.0]`, `vec![1.0, 2.0]`, `&[1.0, 2.0][..]` | `[1.0,2.0]` |
//! | `struct Point(f64, f64)` | `[1.0,2.0]` |
//! | `struct Id(u32)`, `struct Pair((u8, u8))` | `7`; `[1,2]` |
//! | `None`, [`Value::Null`], `serde_json::Value::Null`, `struct Unit` | `null` |
//!
//! Traits cannot say so: serde has a tuple and an array make the same call, as well as `()` and a null, and
//! a trait of our own for tuples could not be one for all other types beside. So the type is asked for its
//! name, which begins with `(` if it is a tuple. A compiler that named tuples in another way would leave the
//! rule that serde alone can tell: what serialises as a tuple is a list.

use std::any::type_name;
use std::fmt::{self, Display};

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, SeqAccess, Visitor};

use super::value::Value;

/// Arguments that are not of the type asked for. Whoever sent them is at fault, or the type is.
///
/// ```
/// use sockring::protocol::sio;
///
/// let error = sio::from_args::<(String, u8)>(&["a".into(), "b".into()]).unwrap_err();
/// assert_eq!(error.to_string(), r#"argument 1: invalid type: string "b", expected u8"#);
/// assert_eq!(error.index(), Some(1));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgsError {
    index: Option<usize>,
    /// What did not match; `None` if the argument is missing.
    message: Option<String>,
}

impl ArgsError {
    /// Which argument did not match, counted from 0 after the name of the event, if it was one.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        self.index
    }

    /// Whether the argument is not there at all.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.message.is_none()
    }

    fn missing(index: usize) -> Self {
        Self { index: Some(index), message: None }
    }

    fn at(self, index: usize) -> Self {
        Self { index: Some(index), ..self }
    }
}

impl Display for ArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.index {
            write!(f, "argument {index}")?;
        }
        match (&self.message, self.index) {
            (Some(message), Some(_)) => write!(f, ": {message}"),
            (Some(message), None) => f.write_str(message),
            (None, _) => f.write_str(" is missing"),
        }
    }
}

impl std::error::Error for ArgsError {}

impl serde::de::Error for ArgsError {
    fn custom<T: Display>(message: T) -> Self {
        Self { index: None, message: Some(message.to_string()) }
    }
}

/// Reads an argument list as a type.
///
/// * A tuple takes the arguments one by one; further ones are ignored, as a JavaScript callback ignores them.
/// * `()` takes anything.
/// * Any other type takes the first argument: an array and a tuple struct too.
/// * A missing argument is `None` to an `Option`, and `null` to a [`Value`].
///
/// # Errors
///
/// An [`ArgsError`] that says which argument did not match and why, or is missing.
///
/// ```
/// use sockring::protocol::sio::{self, Value};
///
/// let args = [Value::from("a"), Value::from(1)];
/// assert_eq!(sio::from_args::<(String, u8, Option<bool>)>(&args)?, ("a".into(), 1, None));
/// assert_eq!(sio::from_args::<String>(&args)?, "a");
/// assert_eq!(sio::from_args::<()>(&args)?, ());
/// assert_eq!(sio::from_args::<[f64; 2]>(&[vec![1.0, 2.0].into()])?, [1.0, 2.0]);
/// assert_eq!(sio::from_args::<(u8, u8)>(&[1.into()]).unwrap_err().to_string(), "argument 1 is missing");
/// # Ok::<(), sio::ArgsError>(())
/// ```
pub fn from_args<T: DeserializeOwned>(args: &[Value]) -> Result<T, ArgsError> {
    let args = Args(args);
    if is_tuple::<T>() { T::deserialize(args) } else { T::deserialize(args.arg(0)) }
}

/// The name by which a type of ours that is no tuple says that it is a list of arguments: it serialises as a
/// tuple struct of this name.
pub(crate) const ARGS: &str = "$sockring::Args";

/// Whether a type is a tuple, or a reference to one. Where names do not tell, they all may be.
pub(super) fn is_tuple<T: ?Sized>() -> bool {
    named_as_tuple(type_name::<T>()) || !named_as_tuple(type_name::<(u8, u8)>())
}

fn named_as_tuple(mut name: &str) -> bool {
    while let Some(referred) = name.strip_prefix('&') {
        name = referred.strip_prefix("mut ").unwrap_or(referred);
    }
    // Behind a reference, the traits of an object stand in parentheses if they are several.
    name.starts_with('(') && !name.starts_with("(dyn ")
}

/// A whole list, for a tuple.
#[derive(Clone, Copy)]
struct Args<'de>(&'de [Value]);

/// One argument of a list, there or not.
#[derive(Clone, Copy)]
struct Arg<'de> {
    index: usize,
    value: Option<&'de Value>,
}

impl<'de> Args<'de> {
    fn arg(self, index: usize) -> Arg<'de> {
        Arg { index, value: self.0.get(index) }
    }
}

/// Hands methods on to the first argument (`args`) or to the value of the argument (`arg`): those that both
/// hand on, and those that are named.
macro_rules! hand_on {
    ($kind:ident: $($more:tt)*) => {
        hand_on! { @$kind
            deserialize_bool();
            deserialize_i8();
            deserialize_i16();
            deserialize_i32();
            deserialize_i64();
            deserialize_i128();
            deserialize_u8();
            deserialize_u16();
            deserialize_u32();
            deserialize_u64();
            deserialize_u128();
            deserialize_f32();
            deserialize_f64();
            deserialize_char();
            deserialize_str();
            deserialize_string();
            deserialize_bytes();
            deserialize_byte_buf();
            deserialize_seq();
            deserialize_map();
            deserialize_struct(name: &'static str, fields: &'static [&'static str]);
            deserialize_enum(name: &'static str, variants: &'static [&'static str]);
            deserialize_identifier();
            $($more)*
        }
    };
    (@args $($method:ident($($arg:ident: $kind:ty),*);)*) => {$(
        fn $method<V: Visitor<'de>>(self $(, $arg: $kind)*, visitor: V) -> Result<V::Value, ArgsError> {
            self.arg(0).$method($($arg,)* visitor)
        }
    )*};
    (@arg $($method:ident($($arg:ident: $kind:ty),*);)*) => {$(
        fn $method<V: Visitor<'de>>(self $(, $arg: $kind)*, visitor: V) -> Result<V::Value, ArgsError> {
            let value = self.value.ok_or_else(|| ArgsError::missing(self.index))?;
            value.$method($($arg,)* visitor).map_err(|error| error.at(self.index))
        }
    )*};
}

impl<'de> Deserializer<'de> for Args<'de> {
    type Error = ArgsError;

    hand_on! { args:
        deserialize_any();
        deserialize_option();
        deserialize_unit_struct(name: &'static str);
        deserialize_newtype_struct(name: &'static str);
        deserialize_tuple_struct(name: &'static str, len: usize);
        deserialize_ignored_any();
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ArgsError> {
        visitor.visit_unit()
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, ArgsError> {
        visitor.visit_seq(List { args: self, at: 0, len })
    }
}

/// The arguments that a tuple of `len` takes.
struct List<'de> {
    args: Args<'de>,
    at: usize,
    len: usize,
}

impl<'de> SeqAccess<'de> for List<'de> {
    type Error = ArgsError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ArgsError> {
        if self.at >= self.len {
            return Ok(None);
        }
        let arg = self.args.arg(self.at);
        self.at += 1;
        // A type that looks at its value itself, and then refuses it, does not know which argument it is.
        seed.deserialize(arg).map(Some).map_err(|error| error.at(arg.index))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.len - self.at)
    }
}

impl<'de> Deserializer<'de> for Arg<'de> {
    type Error = ArgsError;

    hand_on! { arg:
        deserialize_tuple(len: usize);
        deserialize_tuple_struct(name: &'static str, len: usize);
    }

    /// Types that take whatever comes take a missing argument as `null`; others say that it is missing.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ArgsError> {
        match self.value {
            Some(value) => value.deserialize_any(visitor).map_err(|error| error.at(self.index)),
            None => visitor.visit_unit().map_err(|_: ArgsError| ArgsError::missing(self.index)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ArgsError> {
        match self.value {
            Some(value) => value.deserialize_option(visitor).map_err(|error| error.at(self.index)),
            None => visitor.visit_none(),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ArgsError> {
        self.deserialize_any(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ArgsError> {
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ArgsError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ArgsError> {
        visitor.visit_unit()
    }
}

#[cfg(test)]
mod tests;
