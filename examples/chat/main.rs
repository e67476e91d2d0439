//! The chat of `examples/chat/public`: names, rooms, typing, who is here, and a history, on several cores.
//! The events are described in `examples/chat/README.md`.
//!
//! `make demo`, or `cargo run --release --example chat -- --port 3000 --workers 2`

#[path = "../common/mod.rs"]
mod common;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use clap::Parser;
use serde::Serialize;
use serde_json::{Value as Json, json};
use sockring::io::{Ack, ArgsError, Data, Options, Server, Socket, TryData};

const NAME_CHARS: usize = 24;
const TEXT_CHARS: usize = 2_000;
/// Where everybody begins; the one room that is never forgotten.
const GENERAL: &str = "general";

// Names, rooms and messages come from strangers: whatever they can add to is bounded.
const USERS_MAX: usize = 1_000;
const ROOMS_MAX: usize = 100;
const HISTORY_MAX: usize = 50;

/// A chat: rooms, who is online, who is typing
#[derive(Parser)]
struct Flags {
    /// Folder of the page
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/chat/public"))]
    public: PathBuf,
    /// Folder with the official client's bundles
    #[arg(long, default_value = CLIENT_DIST)]
    client_dist: PathBuf,
    #[command(flatten)]
    listen: common::Listen,
}

const CLIENT_DIST: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/node_modules/socket.io-client/dist");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Flags { public, client_dist, listen } = Flags::parse();
    need(&public.join("index.html"), "page", "--public DIR names its folder");
    need(
        &client_dist.join("socket.io.js"),
        "Socket.IO client",
        "run `make demo`, or name its folder: --client-dist DIR",
    );

    println!("Open http://ADDRESS/ with the address below in two windows and talk (Ctrl-C ends it)");
    // Made once, before any worker: each of them gets a reference to the same hub.
    let hub = Arc::new(Mutex::new(Hub::default()));
    let builder = listen.builder(3000)?;
    // This closure runs once on each worker. What it makes belongs to one core and needs no lock.
    common::serve(builder, move |app| {
        let options = Options { client_dist: Some(client_dist.clone()), ..Options::default() };
        let io = Server::attach_app(app, options);
        app.static_files("/", &public);
        Rc::new(Chat { io, hub: hub.clone() }).register();
    })
}

/// Ends the process with advice if a file is missing, rather than serve a page that cannot work.
fn need(file: &Path, what: &str, advice: &str) {
    if !file.is_file() {
        eprintln!("The {what} is missing ({}): {advice}.", file.display());
        std::process::exit(1);
    }
}

/// The sentence that a client is shown when it may not do something.
type Refusal = String;

/// What one client said. Also an entry of the history.
#[derive(Clone, Serialize)]
struct Message {
    from: String,
    text: String,
    /// Milliseconds since 1970.
    at: u64,
}

/// Who somebody is: the data of a socket that has logged in. A socket stays on one core, so a `RefCell` will
/// do. (`Serialize` is for `fetch_sockets`, by which other cores could read it.)
#[derive(Serialize)]
struct Member {
    name: String,
    room: RefCell<String>,
}

/// The chat on one core. The handlers share it.
struct Chat {
    io: Server,
    hub: Arc<Mutex<Hub>>,
}

impl Chat {
    /// `sockets_on` registers a handler for all sockets at once. `io.on_connection` with `socket.on` would do
    /// as well, and costs memory for each socket.
    fn register(self: Rc<Self>) {
        self.answer("login", Self::log_in);
        self.answer("switch-room", Self::switch_room);
        self.answer("message", Self::message);
        self.io.sockets_on("typing", |socket: Socket, Data(typing): Data<bool>| {
            let Ok(member) = member(socket) else { return };
            let event = json!({ "username": member.name, "typing": typing });
            let _ = socket.to(channel(&member.room.borrow())).emit("typing", event);
        });
        let chat = self.clone();
        self.io.sockets_on("disconnect", move |socket: Socket| chat.gone(socket));
    }

    /// Registers an event with one text as its argument. The acknowledgement is what `act` returns, or why it
    /// refused.
    fn answer(self: &Rc<Self>, event: &str, act: fn(&Self, Socket, String) -> Result<Json, Refusal>) {
        let chat = self.clone();
        // With `Data` instead of `TryData` a wrong type would skip the handler, and the client wait in vain.
        let handler = move |socket: Socket, TryData(argument): TryData<String>, ack: Ack| {
            let done = argument.map_err(|error: ArgsError| error.to_string());
            let done = done.and_then(|argument| act(&chat, socket, argument));
            ack.send(done.unwrap_or_else(|error| json!({ "ok": false, "error": error })))
        };
        self.io.sockets_on(event, handler);
    }

    fn log_in(&self, socket: Socket, name: String) -> Result<Json, Refusal> {
        let name = trimmed("A name", &name, NAME_CHARS)?;
        if member(socket).is_ok() {
            return Err("You are logged in already.".into());
        }
        self.hub().take_name(&name)?;
        socket.set_data(Member { name: name.clone(), room: RefCell::new(GENERAL.into()) });
        self.enter(socket, &name, GENERAL)
    }

    fn switch_room(&self, socket: Socket, room: String) -> Result<Json, Refusal> {
        let member = member(socket)?;
        let room = trimmed("A room's name", &room, NAME_CHARS)?;
        if *member.room.borrow() == room {
            return Err("You are in this room.".into());
        }
        let entered = self.enter(socket, &member.name, &room)?;
        let left = member.room.replace(room);
        socket.leave(channel(&left));
        self.tell_left(socket, &member.name, &left);
        Ok(entered)
    }

    fn message(&self, socket: Socket, text: String) -> Result<Json, Refusal> {
        let member = member(socket)?;
        let text = trimmed("A message", &text, TEXT_CHARS)?;
        let room = member.room.borrow();
        let message = Message { from: member.name.clone(), text, at: now() };
        // The history first: see `enter`.
        self.hub().remember(&room, message.clone());
        // `io.to` reaches the sender too, `socket.to` everybody else. Both reach the sockets of all cores.
        let _ = self.io.to(channel(&room)).emit("message", message);
        Ok(json!({ "ok": true }))
    }

    /// The socket has left, for whatever reason. Its rooms are empty already; its data is still there.
    fn gone(&self, socket: Socket) {
        let Ok(member) = member(socket) else { return };
        self.hub().free_name(&member.name);
        self.tell_left(socket, &member.name, &member.room.borrow());
    }

    /// Takes a socket into a room and gives the acknowledgement with what is to be seen there.
    fn enter(&self, socket: Socket, name: &str, room: &str) -> Result<Json, Refusal> {
        // Join, then read. Other cores go on meanwhile, and a message enters the history before it is
        // broadcast: so each one is in what we read, or comes as an event, or both (the page drops one).
        socket.join(channel(room));
        let entered = self.hub().enter(room, name);
        let (people, history) = entered.inspect_err(|_| socket.leave(channel(room)))?;
        let People { users, version } = people;
        let event = json!({ "username": name, "users": users, "version": version });
        let _ = socket.to(channel(room)).emit("user-joined", event);
        Ok(json!({ "ok": true, "room": room, "users": users, "version": version, "history": history }))
    }

    fn tell_left(&self, socket: Socket, name: &str, room: &str) {
        let People { users, version } = self.hub().leave(room, name);
        let event = json!({ "username": name, "users": users, "version": version });
        let _ = socket.to(channel(room)).emit("user-left", event);
    }

    /// All cores wait for this lock: take it for a statement, and never across an `.await`.
    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who this socket is; `Err` before its login.
fn member(socket: Socket) -> Result<Rc<Member>, Refusal> {
    socket.data().ok_or_else(|| "Log in first.".into())
}

/// The Socket.IO room of a chat room. Every socket is alone in a room named after its id: with names that
/// people choose and no prefix, somebody could open a room with another's id and talk into that one's ear.
fn channel(room: &str) -> String {
    format!("chat:{room}")
}

/// The rule for everything that people write.
fn trimmed(what: &str, text: &str, chars_max: usize) -> Result<String, Refusal> {
    let text = text.trim();
    match text.chars().count() {
        chars if (1..=chars_max).contains(&chars) => Ok(text.into()),
        _ => Err(format!("{what} has 1 to {chars_max} characters.")),
    }
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// What all cores must agree on. Sockets are not in here: a broadcast finds them by itself.
#[derive(Default)]
struct Hub {
    names: HashSet<String>,
    rooms: HashMap<String, Room>,
    version: u64,
}

#[derive(Default)]
struct Room {
    users: BTreeSet<String>,
    history: VecDeque<Message>,
}

/// Who is in a room. What two cores broadcast at the same time may arrive in either order; by the version,
/// which grows with every coming and going, a page knows which list is the newer.
struct People {
    users: Vec<String>,
    version: u64,
}

impl Hub {
    fn take_name(&mut self, name: &str) -> Result<(), Refusal> {
        if self.names.contains(name) {
            return Err("This name is taken.".into());
        }
        if self.names.len() == USERS_MAX {
            return Err("The chat is full.".into());
        }
        self.names.insert(name.into());
        Ok(())
    }

    fn free_name(&mut self, name: &str) {
        self.names.remove(name);
    }

    fn enter(&mut self, room: &str, name: &str) -> Result<(People, Vec<Message>), Refusal> {
        if !self.rooms.contains_key(room) && room != GENERAL && self.rooms.len() >= ROOMS_MAX {
            self.forget_a_room()?;
        }
        let entered = self.rooms.entry(room.into()).or_default();
        entered.users.insert(name.into());
        let history = entered.history.iter().cloned().collect();
        Ok((self.people(room), history))
    }

    fn leave(&mut self, room: &str, name: &str) -> People {
        if let Some(left) = self.rooms.get_mut(room) {
            left.users.remove(name);
            if left.users.is_empty() && left.history.is_empty() {
                self.rooms.remove(room);
            }
        }
        self.people(room)
    }

    fn remember(&mut self, room: &str, message: Message) {
        let Some(Room { history, .. }) = self.rooms.get_mut(room) else { return };
        if history.len() == HISTORY_MAX {
            history.pop_front();
        }
        history.push_back(message);
    }

    /// Those in a room, after a change.
    fn people(&mut self, room: &str) -> People {
        self.version += 1;
        let users = self.rooms.get(room).map(|room| room.users.iter().cloned().collect());
        People { users: users.unwrap_or_default(), version: self.version }
    }

    /// Makes space for another room: the deserted one that has been silent for longest goes.
    fn forget_a_room(&mut self) -> Result<(), Refusal> {
        let deserted = self.rooms.iter().filter(|(name, room)| room.users.is_empty() && *name != GENERAL);
        let oldest = deserted.min_by_key(|(_, room)| room.history.back().map_or(0, |message| message.at));
        let name = oldest.map(|(name, _)| name.clone()).ok_or("There are too many rooms.")?;
        self.rooms.remove(&name);
        Ok(())
    }
}
