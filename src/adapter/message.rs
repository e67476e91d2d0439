//! What the servers of a cluster say to each other: the messages of the reference's `ClusterAdapter`.
//!
//! With serde they have the reference's form, in JSON and in other formats that know maps and bytes.

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::fanout::Key;
use crate::io::{BroadcastOptions, SocketDetails};
use crate::protocol::sio::Value;

/// A message from one server to others, or to one of them.
///
/// ```
/// use sockring::adapter::{Body, Message};
/// let message = Message { uid: "7ddfe96220f1dfc3".into(), nsp: "/".into(), body: Body::Heartbeat };
/// let json = serde_json::to_string(&message)?;
/// assert_eq!(json, r#"{"type":2,"uid":"7ddfe96220f1dfc3","nsp":"/"}"#);
/// assert_eq!(serde_json::from_str::<Message>(&json)?, message);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The sender, in one namespace: 16 hexadecimal digits; `"emitter"` for a process that is no server.
    pub uid: String,
    /// The namespace.
    pub nsp: String,
    /// What it says.
    pub body: Body,
}

/// The uid of processes that emit to a cluster without being part of it.
pub const EMITTER: &str = "emitter";

/// What a message says. Answers carry the id of the request that they belong to.
///
/// ```
/// use sockring::adapter::Body;
/// assert_eq!(Body::Heartbeat.kind(), 2);
/// assert!(!Body::Heartbeat.is_response());
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Body {
    /// 1: a server has come; all others say that they are there.
    InitialHeartbeat,
    /// 2: a server is there.
    Heartbeat,
    /// 3: a broadcast; with a request's id, one whose receivers answer.
    Broadcast(Broadcast),
    /// 4: sockets join rooms.
    SocketsJoin(Rooms),
    /// 5: sockets leave rooms.
    SocketsLeave(Rooms),
    /// 6: sockets are disconnected.
    DisconnectSockets(Disconnect),
    /// 7: which sockets are there?
    FetchSockets(Fetch),
    /// 8: these.
    FetchSocketsResponse(Fetched),
    /// 9: an event for the servers themselves; with a request's id, one that they answer.
    ServerSideEmit(ServerSideEmit),
    /// 10: the answer to it.
    ServerSideEmitResponse(Answer),
    /// 11: so many sockets were sent a broadcast that they are to answer.
    BroadcastClientCount(ClientCount),
    /// 12: one of them has answered.
    BroadcastAck(Answer),
    /// 13: a server goes.
    AdapterClose,
}

/// The packet of a broadcast: the event's name and its arguments.
///
/// ```
/// # use sockring::adapter::Packet;
/// let json = r#"{"type":2,"data":["news",1],"nsp":"/"}"#;
/// assert_eq!(serde_json::to_string(&serde_json::from_str::<Packet>(json)?)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Packet {
    /// 2, an event.
    pub r#type: u8,
    /// The event's name, then its arguments.
    pub data: Vec<Value>,
    /// The namespace, which some senders repeat here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsp: Option<String>,
}

/// Which sockets, and how.
///
/// ```
/// # use sockring::adapter::Opts;
/// let json = r#"{"rooms":["lobby"],"except":[],"flags":{"volatile":true}}"#;
/// assert_eq!(serde_json::to_string(&serde_json::from_str::<Opts>(json)?)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Opts {
    /// Members of any of these rooms; of all, if there is none.
    #[serde(default)]
    pub rooms: Vec<String>,
    /// And of none of these.
    #[serde(default)]
    pub except: Vec<String>,
    /// Conditions.
    #[serde(default)]
    pub flags: Flags,
}

/// Conditions of a broadcast. One that is not set is left out.
///
/// ```
/// # use sockring::adapter::Flags;
/// let json = r#"{"compress":false,"timeout":500.0}"#;
/// assert_eq!(serde_json::to_string(&serde_json::from_str::<Flags>(json)?)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flags {
    /// Only to sockets that can take it at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volatile: Option<bool>,
    /// Whether it may be compressed on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress: Option<bool>,
    /// How long answers are awaited, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    /// Of a broadcast to one socket, whose answer is one value and no list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_single_response: Option<bool>,
    /// Of which key it is the latest message. Servers on Node.js neither say nor read it; what has another
    /// form than ours is ignored.
    #[serde(default, with = "key_text", skip_serializing_if = "Option::is_none")]
    pub latest: Option<Key>,
}

/// A key is text here, whatever else may stand in its place.
mod key_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(key: &Option<Key>, serializer: S) -> Result<S::Ok, S::Error> {
        key.map(|key| key.to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Key>, D::Error> {
        Ok(Value::deserialize(deserializer)?.as_str().and_then(|text| text.parse().ok()))
    }
}

/// A broadcast to sockets.
///
/// ```
/// use sockring::adapter::Broadcast;
/// let json = r#"{"packet":{"type":2,"data":["news"]},"opts":{"rooms":["lobby"]},"requestId":"7"}"#;
/// let broadcast: Broadcast = serde_json::from_str(json)?;
/// assert_eq!((&*broadcast.opts.rooms[0], broadcast.request_id.as_deref()), ("lobby", Some("7")));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Broadcast {
    /// The packet.
    pub packet: Packet,
    /// To whom.
    pub opts: Opts,
    /// Set if the receivers answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// Sockets join or leave rooms.
///
/// ```
/// # use sockring::adapter::Rooms;
/// let json = r#"{"opts":{"rooms":["a"],"except":[],"flags":{}},"rooms":["b"]}"#;
/// assert_eq!(serde_json::to_string(&serde_json::from_str::<Rooms>(json)?)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rooms {
    /// Who.
    pub opts: Opts,
    /// The rooms.
    pub rooms: Vec<String>,
}

/// Sockets are disconnected.
///
/// ```
/// # use sockring::adapter::Disconnect;
/// let json = r#"{"opts":{"rooms":["a"],"except":[],"flags":{}},"close":true}"#;
/// assert_eq!(serde_json::to_string(&serde_json::from_str::<Disconnect>(json)?)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disconnect {
    /// Who.
    pub opts: Opts,
    /// Whether their connections are closed too.
    #[serde(default)]
    pub close: bool,
}

/// Asks for sockets.
///
/// ```
/// # use sockring::adapter::Fetch;
/// let json = r#"{"opts":{"rooms":[],"except":[],"flags":{}},"requestId":"7"}"#;
/// assert_eq!(serde_json::to_string(&serde_json::from_str::<Fetch>(json)?)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fetch {
    /// Which.
    pub opts: Opts,
    /// The request.
    pub request_id: String,
}

/// The sockets of one server.
///
/// ```
/// # use sockring::adapter::Fetched;
/// let json = r#"{"requestId":"7","sockets":[]}"#;
/// assert_eq!(serde_json::to_string(&serde_json::from_str::<Fetched>(json)?)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fetched {
    /// The request.
    pub request_id: String,
    /// The sockets.
    pub sockets: Vec<SocketDetails>,
}

/// An event for the servers themselves.
///
/// ```
/// # use sockring::adapter::ServerSideEmit;
/// let json = r#"{"requestId":"7","packet":["load?",0.5]}"#;
/// assert_eq!(serde_json::to_string(&serde_json::from_str::<ServerSideEmit>(json)?)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerSideEmit {
    /// Set if it is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The event's name, then its arguments.
    pub packet: Vec<Value>,
}

/// One value that answers a request.
///
/// ```
/// # use sockring::adapter::Answer;
/// let json = r#"{"requestId":"7","packet":[1]}"#;
/// assert_eq!(serde_json::to_string(&serde_json::from_str::<Answer>(json)?)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The request.
    pub request_id: String,
    /// The value; a sender that has none leaves it out.
    #[serde(default)]
    pub packet: Value,
}

/// How many sockets of a server were sent a broadcast.
///
/// ```
/// # use sockring::adapter::ClientCount;
/// let json = r#"{"requestId":"7","clientCount":3}"#;
/// assert_eq!(serde_json::to_string(&serde_json::from_str::<ClientCount>(json)?)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientCount {
    /// The request.
    pub request_id: String,
    /// So many.
    pub client_count: u64,
}

impl Body {
    /// The number of the message's type.
    pub fn kind(&self) -> u8 {
        match self {
            Self::InitialHeartbeat => 1,
            Self::Heartbeat => 2,
            Self::Broadcast(_) => 3,
            Self::SocketsJoin(_) => 4,
            Self::SocketsLeave(_) => 5,
            Self::DisconnectSockets(_) => 6,
            Self::FetchSockets(_) => 7,
            Self::FetchSocketsResponse(_) => 8,
            Self::ServerSideEmit(_) => 9,
            Self::ServerSideEmitResponse(_) => 10,
            Self::BroadcastClientCount(_) => 11,
            Self::BroadcastAck(_) => 12,
            Self::AdapterClose => 13,
        }
    }

    /// Whether it answers a request: it goes to one server.
    pub fn is_response(&self) -> bool {
        matches!(self.kind(), 8 | 10 | 11 | 12)
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", &self.body.kind())?;
        match &self.body {
            Body::InitialHeartbeat | Body::Heartbeat | Body::AdapterClose => {}
            Body::Broadcast(data) => map.serialize_entry("data", data)?,
            Body::SocketsJoin(data) | Body::SocketsLeave(data) => map.serialize_entry("data", data)?,
            Body::DisconnectSockets(data) => map.serialize_entry("data", data)?,
            Body::FetchSockets(data) => map.serialize_entry("data", data)?,
            Body::FetchSocketsResponse(data) => map.serialize_entry("data", data)?,
            Body::ServerSideEmit(data) => map.serialize_entry("data", data)?,
            Body::ServerSideEmitResponse(data) | Body::BroadcastAck(data) => {
                map.serialize_entry("data", data)?;
            }
            Body::BroadcastClientCount(data) => map.serialize_entry("data", data)?,
        }
        map.serialize_entry("uid", &self.uid)?;
        map.serialize_entry("nsp", &self.nsp)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            r#type: u8,
            #[serde(default)]
            uid: String,
            #[serde(default)]
            nsp: String,
            #[serde(default)]
            data: Value,
        }
        let Raw { r#type, uid, nsp, data } = Raw::deserialize(deserializer)?;
        fn read<T: DeserializeOwned, E: serde::de::Error>(data: &Value) -> Result<T, E> {
            data.to().map_err(E::custom)
        }
        let body = match r#type {
            1 => Body::InitialHeartbeat,
            2 => Body::Heartbeat,
            3 => Body::Broadcast(read(&data)?),
            4 => Body::SocketsJoin(read(&data)?),
            5 => Body::SocketsLeave(read(&data)?),
            6 => Body::DisconnectSockets(read(&data)?),
            7 => Body::FetchSockets(read(&data)?),
            8 => Body::FetchSocketsResponse(read(&data)?),
            9 => Body::ServerSideEmit(read(&data)?),
            10 => Body::ServerSideEmitResponse(read(&data)?),
            11 => Body::BroadcastClientCount(read(&data)?),
            12 => Body::BroadcastAck(read(&data)?),
            13 => Body::AdapterClose,
            unknown => return Err(D::Error::custom(format!("unknown type of message: {unknown}"))),
        };
        Ok(Self { uid, nsp, body })
    }
}

impl From<&BroadcastOptions> for Opts {
    fn from(options: &BroadcastOptions) -> Self {
        let flags = Flags {
            volatile: options.volatile.then_some(true),
            compress: (!options.compress).then_some(false),
            timeout: options.timeout.map(|timeout| timeout.as_millis() as f64),
            expect_single_response: None,
            latest: options.latest,
        };
        Self { rooms: options.rooms.clone(), except: options.except.clone(), flags }
    }
}

impl From<Opts> for BroadcastOptions {
    fn from(opts: Opts) -> Self {
        let ms = |timeout: f64| std::time::Duration::from_millis(timeout.clamp(0.0, 1e12) as u64);
        Self {
            rooms: opts.rooms,
            except: opts.except,
            volatile: opts.flags.volatile == Some(true),
            compress: opts.flags.compress != Some(false),
            timeout: opts.flags.timeout.map(ms),
            local: true,
            latest: opts.flags.latest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The forms that were seen on the wire between servers of the reference.
    fn seen() -> Vec<String> {
        let opts = r#""opts":{"rooms":[],"except":[],"flags":{}}"#;
        let flags = r#""opts":{"rooms":["r"],"except":["s"],"flags":{"volatile":true,"timeout":200.0}}"#;
        let socket = r#"{"id":"s","handshake":{"url":"/"},"rooms":["s"],"data":{}}"#;
        let data = [
            (1, String::new()),
            (3, format!(r#"{{"packet":{{"type":2,"data":["a",1,"x"]}},{opts}}}"#)),
            (3, format!(r#"{{"packet":{{"type":2,"data":["a"],"nsp":"/"}},{flags},"requestId":"q"}}"#)),
            (4, format!(r#"{{{opts},"rooms":["x"]}}"#)),
            (6, format!(r#"{{{opts},"close":true}}"#)),
            (7, format!(r#"{{{opts},"requestId":"q"}}"#)),
            (8, format!(r#"{{"requestId":"q","sockets":[{socket}]}}"#)),
            (9, r#"{"packet":["hello",1]}"#.to_owned()),
            (10, r#"{"requestId":"q","packet":[1,"2"]}"#.to_owned()),
            (11, r#"{"requestId":"q","clientCount":3}"#.to_owned()),
            (12, r#"{"requestId":"q","packet":null}"#.to_owned()),
            (13, String::new()),
        ];
        let form = |(kind, data): (u8, String)| {
            let data = if data.is_empty() { data } else { format!(r#""data":{data},"#) };
            format!(r#"{{"type":{kind},{data}"uid":"a1","nsp":"/"}}"#)
        };
        data.into_iter().map(form).collect()
    }

    #[test]
    fn the_reference_s_forms_are_read_and_written() {
        for form in seen() {
            let message: Message = serde_json::from_str(&form).unwrap();
            assert_eq!(serde_json::to_string(&message).unwrap(), form);
        }
    }

    #[test]
    fn a_key_is_read_and_what_is_none_is_ignored() {
        let options = BroadcastOptions { latest: Some(Key::of(&"ACME")), ..BroadcastOptions::default() };
        let json = serde_json::to_string(&Opts::from(&options)).unwrap();
        let read: BroadcastOptions = serde_json::from_str::<Opts>(&json).unwrap().into();
        assert_eq!(read.latest, options.latest);
        for other in ["true", "7", "\"ACME\"", "null", "{}"] {
            let flags: Flags = serde_json::from_str(&format!(r#"{{"latest":{other}}}"#)).unwrap();
            assert_eq!(flags, Flags::default(), "{other}");
        }
    }

    #[test]
    fn what_emitters_leave_out_is_taken() {
        let form = r#"{"uid":"emitter","type":4,"data":{"opts":{"rooms":["a"],"except":[]},"rooms":["b"]}}"#;
        let message: Message = serde_json::from_str(form).unwrap();
        assert_eq!((&*message.uid, &*message.nsp), (EMITTER, ""));
        let form = r#"{"type":12,"data":{"requestId":"q"},"uid":"a1","nsp":"/"}"#;
        let message: Message = serde_json::from_str(form).unwrap();
        let answer = Answer { request_id: "q".into(), packet: Value::Null };
        assert_eq!(message.body, Body::BroadcastAck(answer));
        let opts = r#"{"flags":{"binary":false,"broadcast":true,"timeout":5}}"#;
        let fewer = format!(
            r#"{{"type":3,"data":{{"packet":{{"type":2,"data":["a"]}},"opts":{opts}}},"uid":"a","nsp":"/"}}"#
        );
        assert!(serde_json::from_str::<Message>(&fewer).is_ok());
    }

    #[test]
    fn nonsense_is_an_error() {
        for form in [
            r#"{"type":14,"uid":"a","nsp":"/"}"#,
            r#"{"type":3,"uid":"a","nsp":"/"}"#,
            r#"{"type":11,"data":{"requestId":"q","clientCount":-1},"uid":"a","nsp":"/"}"#,
            r#"{"type":7,"data":{"opts":{"rooms":"a"},"requestId":"q"},"uid":"a","nsp":"/"}"#,
            r#"[]"#,
        ] {
            assert!(serde_json::from_str::<Message>(form).is_err(), "{form}");
        }
    }
}
