//! A parser of one's own, as small as one can be: the whole packet as one text of JSON. Its counterpart for
//! clients is in tests/clients/lib/parsers.mjs. It has no form for binary.

use serde::{Deserialize, Serialize};
use sockring::engine::Message;
use sockring::io::{Encoded, Failure, PacketDecoder, Parser, Value};
use sockring::protocol::sio::{Body, Limits, Packet};

/// `{"type":2,"nsp":"/","data":["chat","hello"]}`
#[derive(Debug)]
pub(crate) struct JsonLines;

#[derive(Deserialize, Serialize)]
struct Line {
    #[serde(rename = "type")]
    kind: u8,
    nsp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
}

impl Parser for JsonLines {
    fn encode(&self, packet: &Packet) -> Result<Vec<Encoded>, Failure> {
        let (kind, data) = match packet.body.clone() {
            Body::Connect(auth) => (0, auth),
            Body::Disconnect => (1, None),
            Body::Event { name, mut args } => {
                args.insert(0, Value::from(name.as_str()));
                (2, Some(Value::Array(args)))
            }
            Body::Ack(args) => (3, Some(Value::Array(args))),
            Body::ConnectError(error) => (4, Some(error)),
        };
        let line = Line { kind, nsp: packet.nsp.to_string(), data, id: packet.id };
        let text = serde_json::to_string(&line).map_err(|error| error.to_string())?;
        Ok(vec![Encoded::Text(text)])
    }

    fn decoder(&self, _: &Limits) -> Box<dyn PacketDecoder> {
        Box::new(Reader)
    }
}

struct Reader;

impl PacketDecoder for Reader {
    fn add(&mut self, message: Message<'_>) -> Result<Option<Packet>, Failure> {
        let Message::Text(text) = message else { return Err("bytes are no line".into()) };
        // serde_json nests 127 deep at most.
        let line: Line = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let body = match (line.kind, line.data) {
            (0, auth) => Body::Connect(auth),
            (1, None) => Body::Disconnect,
            (2, Some(Value::Array(mut args))) if !args.is_empty() => match args.remove(0) {
                Value::String(name) => Body::Event { name: name.into(), args },
                _ => return Err("an event has no name".into()),
            },
            (3, Some(Value::Array(args))) => Body::Ack(args),
            (kind, _) => return Err(format!("a packet of type {kind} is not like this").into()),
        };
        Ok(Some(Packet::new(&line.nsp, line.id, body)))
    }
}
