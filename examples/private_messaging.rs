//! Private messages: who logs in has a session of its own, and any number of tabs.
//!
//! `cargo run --release --example private_messaging`

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use serde::{Deserialize, Serialize};
use sockring::io::{Data, Failure, Options, Server, Socket};

#[derive(Parser)]
#[command(about)]
struct Flags {
    #[command(flatten)]
    listen: common::Listen,
}

/// What the client shows when it connects: the session that it had, or the name that it wants.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Login {
    session_id: Option<String>,
    username: Option<String>,
}

/// Everybody may know the user's id; the session's is a secret of its client.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct User {
    #[serde(skip)]
    session_id: String,
    #[serde(rename = "userID")]
    user_id: String,
    username: String,
}

/// The sessions of all cores. An application keeps them in a store that outlives the process.
type Sessions = Arc<Mutex<HashMap<String, User>>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let sessions = Sessions::default();
    common::serve(flags.listen.builder(3000)?, move |app| {
        let io = Server::attach_app(app, Options::default());
        let known = sessions.clone();
        io.middleware(move |socket: Socket, Data(login): Data<Login>| {
            log_in(&known, login).map(|user| drop(socket.set_data(user)))
        });
        io.on_connection(connected);
        io.sockets_on("private message", private_message);
        let everybody = io.clone();
        io.sockets_on("disconnect", move |socket: Socket| {
            // Now, while the socket still has its data: the future runs when it is gone.
            let user = user(socket);
            disconnected(everybody.clone(), user)
        });
    })
}

fn log_in(sessions: &Sessions, login: Login) -> Result<User, Failure> {
    let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(user) = login.session_id.and_then(|id| sessions.get(&id)) {
        return Ok(user.clone());
    }
    let username = login.username.filter(|name| !name.is_empty()).ok_or("invalid username")?;
    let (session_id, user_id) = (random_id()?, random_id()?);
    let user = User { session_id: session_id.clone(), user_id, username };
    sessions.insert(session_id, user.clone());
    Ok(user)
}

fn random_id() -> Result<String, Failure> {
    let random = || getrandom::u64().map_err(|error| Failure::new(error.to_string()));
    Ok(format!("{:016x}{:016x}", random()?, random()?))
}

fn user(socket: Socket) -> Result<User, Failure> {
    socket.data::<User>().map(|user| (*user).clone()).ok_or_else(|| "nobody has logged in".into())
}

async fn connected(socket: Socket) -> Result<(), Failure> {
    let user = user(socket)?;
    // All tabs of a user are in the room of the user's id.
    socket.join(&*user.user_id);
    let _ = socket.emit("session", (&user.session_id, &user.user_id))?;
    let users = socket.local().fetch_sockets().await?;
    let _ = socket.emit("users", users.into_iter().map(|socket| socket.data).collect::<Vec<_>>())?;
    let _ = socket.broadcast().emit("user connected", &user)?;
    Ok(())
}

fn private_message(socket: Socket, Data((content, to)): Data<(String, String)>) -> Result<(), Failure> {
    let from = user(socket)?.user_id;
    // Also to the other tabs of who has sent it.
    let _ = socket.to([&to, &from]).emit("private message", (content, &from, &to))?;
    Ok(())
}

async fn disconnected(io: Server, user: Result<User, Failure>) -> Result<(), Failure> {
    let user = user?;
    if io.to(&user.user_id).fetch_sockets().await?.is_empty() {
        let _ = io.emit("user disconnected", &user.user_id)?;
    }
    Ok(())
}
