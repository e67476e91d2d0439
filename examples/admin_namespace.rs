//! A namespace for administrators: who has no token stays outside, and is told why.
//!
//! `ADMIN_TOKEN=letmein cargo run --release --example admin_namespace`

mod common;

use clap::Parser;
use serde::Deserialize;
use sockring::io::{Ack, Data, Failure, Namespace, Options, Server, Socket, TryData};

#[derive(Parser)]
#[command(about)]
struct Flags {
    #[command(flatten)]
    listen: common::Listen,
    /// What administrators send as `auth: { token }`
    #[arg(long, env = "ADMIN_TOKEN")]
    token: String,
}

#[derive(Deserialize)]
struct Credentials {
    token: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let token = flags.token;
    common::serve(flags.listen.builder(3000)?, move |app| {
        let io = Server::attach_app(app, Options::default());
        let admin = io.of("/admin");
        let token = token.clone();
        admin.middleware(move |credentials: TryData<Credentials>| let_in(&token, credentials));
        administrate(&io, &admin);
        let staff = admin.clone();
        io.on_connection(move |socket: Socket| staff.emit("came", socket.id()));
        io.sockets_on("disconnect", move |socket: Socket| admin.emit("went", socket.id()));
    })
}

/// The client's `connect_error` has the message, and the details as its `data`.
fn let_in(token: &str, TryData(credentials): TryData<Credentials>) -> Result<(), Failure> {
    let credentials = credentials.map_err(|_| Failure::new("a token is needed").data(&("auth", "token")))?;
    // Takes as long for a wrong token as for the right one.
    let given = credentials.token.as_bytes();
    let differs = given.iter().zip(token.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    if given.len() == token.len() && differs == 0 { Ok(()) } else { Err("not authorized".into()) }
}

fn administrate(io: &Server, admin: &Namespace) {
    let main = io.clone();
    admin.sockets_on("sockets", move |ack: Ack| {
        let main = main.clone();
        async move {
            let ids = main.all_sockets().await?;
            ack.send(ids)?;
            Ok::<(), Failure>(())
        }
    });
    let main = io.clone();
    admin.sockets_on("announce", move |Data(text): Data<String>| main.emit("announcement", text));
    let main = io.clone();
    admin.sockets_on("kick", move |Data(id): Data<String>| main.to(id).disconnect_sockets(true));
}
