//! An upload in pieces of binary: the client sends the next one when the last was acknowledged.
//!
//! `cargo run --release --example binary_upload`

mod common;

use std::cell::RefCell;

use bytes::Bytes;
use clap::Parser;
use serde::Serialize;
use sha1::{Digest, Sha1};
use sockring::io::{Ack, Data, EventError, Failure, Options, Server, Socket};

#[derive(Parser)]
#[command(about)]
struct Flags {
    #[command(flatten)]
    listen: common::Listen,
}

/// Who sends more is refused.
const UPLOAD_BYTES_MAX: u64 = 100 << 20;

/// The upload of one socket. Its pieces are hashed and forgotten: an application writes them somewhere.
#[derive(Default, Serialize)]
struct Upload {
    name: String,
    size: u64,
    received: u64,
    #[serde(skip)]
    hash: Sha1,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    common::serve(flags.listen.builder(3000)?, |app| {
        let io = Server::attach_app(app, Options::default());
        io.sockets_on("begin", begin);
        io.sockets_on("piece", piece);
        // What goes wrong in a handler, wrong arguments included, is told to its client.
        io.on_error(|socket: Socket, error: &EventError| {
            let _ = socket.emit("upload failed", (&error.event, error.failure.message()));
        });
    })
}

fn begin(socket: Socket, Data((name, size)): Data<(String, u64)>, ack: Ack) -> Result<(), Failure> {
    if size > UPLOAD_BYTES_MAX {
        return Err(format!("{name} has more than {UPLOAD_BYTES_MAX} bytes").into());
    }
    socket.set_data(RefCell::new(Upload { name, size, ..Upload::default() }));
    let _ = ack.send(0)?;
    Ok(())
}

/// `piece(offset, bytes)` is acknowledged with the offset of the next piece, the last one with a hash.
fn piece(socket: Socket, Data((offset, bytes)): Data<(u64, Bytes)>, ack: Ack) -> Result<(), Failure> {
    let upload = socket.data::<RefCell<Upload>>().ok_or("nothing was begun")?;
    let mut upload = upload.borrow_mut();
    if offset != upload.received || bytes.len() as u64 > upload.size - upload.received {
        return Err(format!("byte {} of {} comes next", upload.received, upload.size).into());
    }
    upload.hash.update(&bytes);
    upload.received += bytes.len() as u64;
    let hash = (upload.received == upload.size).then(|| {
        let digest = std::mem::take(&mut upload.hash).finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    });
    let _ = ack.send((upload.received, hash))?;
    Ok(())
}
