//! Handlers take what they need: extractors, sync and async handlers.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;

use serde::de::DeserializeOwned;
use serde::ser::{Serialize, SerializeTupleStruct, Serializer};

use super::{Ack, DisconnectReason, Failure, Socket};
use crate::protocol::sio::args::ARGS;
use crate::protocol::sio::{ArgsError, Value, from_args};

/// What an event offers to the extractors of its handlers.
///
/// ```
/// use sockring::io::{EventContext, Failure, FromEvent};
/// struct Name(String);
/// impl FromEvent for Name {
///     fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
///         Ok(Self(format!("{} with {} arguments", context.event, context.args.len())))
///     }
/// }
/// ```
pub struct EventContext<'a> {
    /// The socket.
    pub socket: Socket,
    /// The event's name.
    pub event: &'a str,
    /// The arguments, without the acknowledgement.
    pub args: &'a [Value],
    /// The id of the acknowledgement, if the client wants one.
    pub(super) ack: Option<u64>,
    /// Whether that was sent.
    pub(super) sent: Sent,
    /// Why the socket has left, with details.
    pub(super) left: Option<(DisconnectReason, &'a str)>,
    /// What the event `error` is about.
    pub(super) failure: Option<&'a Failure>,
}

/// Made when the first handler asks for the acknowledgement.
pub(super) type Sent = OnceCell<Rc<Cell<bool>>>;

impl<'a> EventContext<'a> {
    pub(super) fn new(socket: Socket, event: &'a str, args: &'a [Value]) -> Self {
        Self { socket, event, args, ack: None, sent: Sent::new(), left: None, failure: None }
    }
}

impl fmt::Debug for EventContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventContext").field("event", &self.event).finish_non_exhaustive()
    }
}

/// Something that a handler can take. Implement it for types of your own to make them extractors.
///
/// ```
/// use sockring::io::{EventContext, Failure, FromEvent};
/// struct Arguments(usize);
/// impl FromEvent for Arguments {
///     fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
///         Ok(Self(context.args.len()))
///     }
/// }
/// ```
pub trait FromEvent: Sized {
    /// Takes it out of an event.
    ///
    /// # Errors
    ///
    /// What did not match: the handler is not run, and the namespace's `on_error` is told.
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure>;
}

impl FromEvent for Socket {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        Ok(context.socket)
    }
}

/// The typed arguments of an event; of a connection, its auth payload.
///
/// **A tuple takes all arguments, `()` takes anything, any other type the first argument**, as
/// [`Socket::emit`] sends them: `Data<(String, u32)>` reads what a client sends by `emit("e", "a", 1)`;
/// `Data<Vec<u32>>`, `Data<[u32; 2]>` and a `struct Pair(u32, u32)` read `emit("e", [1, 2])`. An `Option`
/// reads `null`, and an argument that is not there, as `None`. Binary is read by `bytes::Bytes`, at any
/// depth.
///
/// ```no_run
/// # fn set_up(socket: sockring::io::Socket) {
/// use sockring::io::Data;
/// socket.on("move", |Data((piece, to)): Data<(String, [u8; 2])>| println!("{piece} to {to:?}"));
/// # #[derive(serde::Deserialize)]
/// struct Point(f64, f64);
/// socket.on("point", |Data(Point(x, y)): Data<Point>| println!("{x}, {y}"));
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Data<T>(pub T);

impl<T: DeserializeOwned> FromEvent for Data<T> {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        Ok(Self(from_args(context.args)?))
    }
}

/// Like [`Data`], for a handler that deals with wrong arguments itself.
///
/// ```no_run
/// # fn set_up(socket: sockring::io::Socket) {
/// use sockring::io::TryData;
/// socket.on("age", |TryData(age): TryData<u8>| match age {
///     Ok(age) => println!("{age}"),
///     Err(error) => println!("no age: {error}"),
/// });
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TryData<T>(pub Result<T, ArgsError>);

impl<T: DeserializeOwned> FromEvent for TryData<T> {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        Ok(Self(from_args(context.args)))
    }
}

/// All arguments, as they are. Emitted, it is the list of arguments again: `socket.emit("back", args)`.
///
/// ```no_run
/// # fn set_up(socket: sockring::io::Socket) {
/// use sockring::io::{Args, Socket};
/// socket.on("echo", |socket: Socket, args: Args| socket.emit("back", args));
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Args(pub Vec<Value>);

impl Serialize for Args {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The name says that this is a list of arguments, as a tuple is.
        let mut list = serializer.serialize_tuple_struct(ARGS, self.0.len())?;
        self.0.iter().try_for_each(|arg| list.serialize_field(arg))?;
        list.end()
    }
}

impl FromEvent for Args {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        Ok(Self(context.args.to_vec()))
    }
}

/// The event's name.
///
/// ```no_run
/// # fn set_up(socket: sockring::io::Socket) {
/// use sockring::io::Event;
/// let handler = |Event(name): Event| println!("{name} came");
/// socket.on("a", handler);
/// socket.on("b", handler);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event(pub String);

impl FromEvent for Event {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        Ok(Self(context.event.to_owned()))
    }
}

impl FromEvent for Ack {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        let sent = context.sent.get_or_init(Rc::default).clone();
        Ok(Self::new(context.socket, context.ack, sent))
    }
}

impl FromEvent for DisconnectReason {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        let reason = context.left.map(|(reason, _)| reason);
        reason.ok_or_else(|| Failure::new("only a disconnection has a reason"))
    }
}

/// What is known of a disconnection beside its [`DisconnectReason`]: the reference's `description`. Often
/// nothing.
///
/// ```no_run
/// # use sockring::io::{Description, DisconnectReason, Socket};
/// # fn set_up(socket: Socket) {
/// socket.on("disconnect", |reason: DisconnectReason, Description(more): Description| {
///     println!("{reason}: {}", more.unwrap_or_default());
/// });
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description(pub Option<String>);

impl FromEvent for Description {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        let details = context.left.map(|(_, details)| details).filter(|details| !details.is_empty());
        Ok(Self(details.map(str::to_owned)))
    }
}

/// What the server's own event `error` is about. An event of that name that a client has sent has none: take
/// [`Data`] for that.
impl FromEvent for Failure {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        context.failure.cloned().ok_or_else(|| Self::new("only the server's own event `error` has a failure"))
    }
}

/// What a handler may return, or what its future may give.
///
/// ```no_run
/// # fn set_up(socket: sockring::io::Socket) {
/// use sockring::io::{Data, Failure};
/// socket.on("buy", |Data(count): Data<u32>| match count {
///     0 => Err(Failure::new("nothing to buy")),
///     _ => Ok(()),
/// });
/// # }
/// ```
pub trait Outcome {
    /// Success, or the failure that `on_error` (of a middleware: the client) is told.
    fn into_result(self) -> Result<(), Failure>;
}

impl Outcome for () {
    fn into_result(self) -> Result<(), Failure> {
        Ok(())
    }
}

impl<T: Outcome, E: Into<Failure>> Outcome for Result<T, E> {
    fn into_result(self) -> Result<(), Failure> {
        self.map_err(Into::into)?.into_result()
    }
}

impl Outcome for crate::fanout::Delivery {
    fn into_result(self) -> Result<(), Failure> {
        Ok(())
    }
}

/// What came of calling a handler.
///
/// ```
/// use sockring::io::Called;
/// assert_eq!(format!("{:?}", Called::Later(Box::pin(async { Ok(()) }))), "Later");
/// ```
pub enum Called {
    /// It is done.
    Done(Result<(), Failure>),
    /// It is async and goes on.
    Later(Pin<Box<dyn Future<Output = Result<(), Failure>>>>),
}

impl fmt::Debug for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(result) => f.debug_tuple("Done").field(result).finish(),
            Self::Later(_) => f.write_str("Later"),
        }
    }
}

/// A handler: a function or closure of up to six extractors, sync or async, that returns nothing or a
/// `Result`. `M` only tells the forms apart; it is inferred.
///
/// ```no_run
/// # fn set_up(socket: sockring::io::Socket) {
/// use sockring::io::{Data, Socket};
/// async fn greet(socket: Socket, Data(name): Data<String>) {
///     let _ = socket.emit("greeting", format!("hello {name}"));
/// }
/// socket.on("greet", greet);
/// # }
/// ```
pub trait Handler<M>: 'static {
    /// Runs it for an event.
    fn call(&self, context: &EventContext<'_>) -> Called;
}

#[doc(hidden)]
/// Marks a handler that is done when it returns.
#[derive(Debug)]
pub struct SyncFn<A>(PhantomData<A>);

#[doc(hidden)]
/// Marks a handler that returns a future.
#[derive(Debug)]
pub struct AsyncFn<A>(PhantomData<A>);

macro_rules! handlers {
    ($($extractor:ident)*) => {
        impl<F, R, $($extractor,)*> Handler<SyncFn<(R, $($extractor,)*)>> for F
        where
            F: Fn($($extractor,)*) -> R + 'static,
            R: Outcome,
            $($extractor: FromEvent,)*
        {
            #[allow(non_snake_case, unused_variables, reason = "made for every number of extractors")]
            fn call(&self, context: &EventContext<'_>) -> Called {
                $(let $extractor = match $extractor::from_event(context) {
                    Ok(value) => value,
                    Err(failure) => return Called::Done(Err(failure)),
                };)*
                Called::Done(self($($extractor,)*).into_result())
            }
        }

        impl<F, R, $($extractor,)*> Handler<AsyncFn<(R, $($extractor,)*)>> for F
        where
            F: Fn($($extractor,)*) -> R + 'static,
            R: Future + 'static,
            R::Output: Outcome,
            $($extractor: FromEvent,)*
        {
            #[allow(non_snake_case, unused_variables, reason = "made for every number of extractors")]
            fn call(&self, context: &EventContext<'_>) -> Called {
                $(let $extractor = match $extractor::from_event(context) {
                    Ok(value) => value,
                    Err(failure) => return Called::Done(Err(failure)),
                };)*
                let future = self($($extractor,)*);
                Called::Later(Box::pin(async move { future.await.into_result() }))
            }
        }
    };
}

handlers!();
handlers!(A1);
handlers!(A1 A2);
handlers!(A1 A2 A3);
handlers!(A1 A2 A3 A4);
handlers!(A1 A2 A3 A4 A5);
handlers!(A1 A2 A3 A4 A5 A6);

/// A handler whose form is forgotten.
pub(super) type BoxedHandler = std::rc::Rc<dyn Fn(&EventContext<'_>) -> Called>;

pub(super) fn boxed<M>(handler: impl Handler<M>) -> BoxedHandler {
    std::rc::Rc::new(move |context| handler.call(context))
}
