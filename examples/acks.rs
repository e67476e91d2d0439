//! Acknowledgements: answers to clients, answers of clients, and answers of all who are in a room.
//!
//! `cargo run --release --example acks`

mod common;

use std::time::Duration;

use clap::Parser;
use sockring::io::{Ack, AckError, Data, Failure, Options, Server, Socket, Value};

#[derive(Parser)]
#[command(about)]
struct Flags {
    #[command(flatten)]
    listen: common::Listen,
}

/// How long a client may think.
const PATIENCE: Duration = Duration::from_millis(500);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    common::serve(flags.listen.builder(3000)?, |app| {
        let io = Server::attach_app(app, Options::default());
        // The client awaits an answer: `const sum = await socket.emitWithAck("add", 1, 2)`.
        io.sockets_on("add", |Data((a, b)): Data<(i64, i64)>, ack: Ack| ack.send(a + b));
        // The server awaits one, of this client.
        io.sockets_on("guess", guess);
        // And of all clients in a room.
        io.sockets_on("join", |socket: Socket, Data(room): Data<String>, ack: Ack| {
            socket.join(room);
            ack.send(())
        });
        let everybody = io.clone();
        io.sockets_on("vote", move |Data((room, question)): Data<(String, String)>, ack: Ack| {
            vote(everybody.clone(), room, question, ack)
        });
    })
}

async fn guess(socket: Socket) -> Result<(), Failure> {
    for number in 1..=3 {
        let answer: Result<String, AckError> = socket.timeout(PATIENCE).emit_with_ack("is it", number).await;
        let said = match answer {
            Ok(word) if word == "yes" => format!("it is {number}"),
            Ok(_) => continue,
            Err(AckError::Timeout) => "you took too long".to_owned(),
            Err(error) => return Err(Failure::new(error.to_string())),
        };
        let _ = socket.emit("guessed", said)?;
        return Ok(());
    }
    let _ = socket.emit("guessed", "I give up")?;
    Ok(())
}

async fn vote(io: Server, room: String, question: String, ack: Ack) -> Result<(), Failure> {
    let votes = io.to(room).timeout(PATIENCE).emit_with_ack::<Value, _>("vote", question).await;
    let (votes, complete) = match votes {
        Ok(votes) => (votes, true),
        // Some have not answered in time: the votes of the others count.
        Err(error) => (error.answers, false),
    };
    let _ = ack.send((votes, complete))?;
    Ok(())
}
