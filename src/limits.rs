//! Every fixed limit of the server, in one place, each with its reason.
//!
//! Limits that an operator sets are options of the layer that enforces them (`runtime::Options`,
//! `app::Options`, `engine::Options`, `io::Options`); what stands here is not meant to be tuned.

use std::time::Duration;

/// Workers (threads, cores) of one process: the room directory keeps one bit for each in a `u128`.
pub const WORKERS_MAX: usize = 128;

/// Sends queued for one `io_uring_enter`. Measured: 64 to 256 is best, 4,096 costs 3 %.
pub const SENDS_PER_ENTER: usize = 256;

/// Entries of the submission queue: a burst of sends, and room for receives, polls and closes beside it.
pub const SUBMISSION_ENTRIES: u32 = 512;

/// Entries of the completion queue. A burst in which every send fails, and the receives that a turn
/// leaves unread, must fit beside each other, or the kernel falls back to its slower overflow list.
pub const COMPLETION_ENTRIES: u32 = 8192;

/// Bytes of frames that one turn collects before it sends in between. Well below what may wait for one
/// client, and far beyond what joining more frames into one send still gains.
pub const FLUSH_BYTES: usize = 512 * 1024;

/// Bytes of joined frames that are kept while a broadcast is sent in slices: before there are more, all of it
/// is sent and they are dropped.
pub const BATCH_JOINED_BYTES: usize = 16 << 20;

/// Different sequences of frames that sockets are owed while a broadcast is sent in slices; some hundred
/// bytes each.
pub const BATCH_NODES: usize = 65_536;

/// How long all cores are given to say what they have counted: a scrape gives up after some seconds.
pub const MEASURING: Duration = Duration::from_secs(1);

/// Completions that one turn handles before it flushes what is owed: bounds the time that one turn's
/// incoming messages can hold back the answers to the first of them. Their answers leave within one slice of
/// sending, about: with twice as many, answers piled up faster than they left.
pub const COMPLETIONS_PER_TURN: usize = 512;

/// Time of one turn for reading what has come: parsing, inflating, decrypting, handlers. What is over it goes
/// on in the next turn, so that others wait no longer than this, one slice of sending, and one message.
pub const TURN_INTAKE: Duration = Duration::from_millis(4);

/// The part of [`TURN_INTAKE`] that goes to input which earlier turns had no time for; one connection is read
/// in any case. The rest is for what has come since.
pub const TURN_INTAKE_LEFT: Duration = Duration::from_millis(2);

/// Work, in bytes, after which a turn looks at the clock: some 20 µs of parsing.
pub const WORK_BETWEEN_LOOKS: usize = 32 * 1024;

/// What a message or a completion counts as work beside its bytes: its handler takes some microseconds at
/// least.
pub const MESSAGE_WORK: usize = 2 * 1024;

/// What a byte that is compressed counts as work, beside one that is parsed.
pub const COMPRESSION_WORK: usize = 16;

/// Bytes of one WebSocket that may have come and not be read before no more is received from it. What the
/// kernel has delivered by then comes on top.
pub const INPUT_KEPT_BYTES: usize = 64 * 1024;

/// Bytes of answers to polls that one turn compresses: some milliseconds of work. What is beyond, a larger
/// answer too, leaves as it is.
pub const COMPRESSED_BYTES: usize = 256 * 1024;

/// Bytes that one burst of sends hands to the kernel, or encrypts; one socket gets what it is owed in any
/// case. Between bursts it is looked whether the slice of sending is over.
pub const BURST_BYTES: usize = 2 << 20;

/// How many times its limit may wait for a client that goes on taking what it is owed: what others send to it
/// in one go need not leave as fast as it comes. Of a file that is relayed, for example, to a client that
/// polls.
pub const OVERDRAFT: usize = 4;

/// Ticks in which a client that is over its limit must take something: five seconds. One that takes nothing
/// is closed then, by the next message.
pub const OVERDRAFT_TICKS: u32 = 250;

/// Receive buffers of one core. All sockets share them; a buffer is free again when its bytes were fed
/// to the state machine that reads them. One enter delivers at most a few dozen, so this is plenty.
pub const RECEIVE_BUFFERS: u16 = 256;

/// Bytes of one receive buffer: a page.
pub const RECEIVE_BUFFER_BYTES: usize = 4096;

/// Accepts armed on a listener. 32 to 64 lose nothing under a storm (measured); never more than free slots.
pub const ACCEPTS_ARMED: usize = 64;

/// Descriptors kept free of sockets: log files, `/proc`, connections that are moving between cores.
pub const DESCRIPTORS_SPARE: usize = 64;

/// How long a client may take nothing of what waits for it, at least; sessions whose heartbeat is slower have
/// as long as that. Heartbeats end honest clients before: a ping comes after the rest, and a client that
/// answers it without having read it would otherwise hold its backlog for ever.
pub const STALLED: Duration = Duration::from_secs(60);

/// How often clients are looked for that take nothing, in ticks: each second.
pub const STALL_TICKS: u32 = 50;

/// The part of its limit that may wait for a client while the process is short of memory.
pub const SHORT_SHARE: usize = 8;

/// Descriptors that a worker needs beside its connections and listeners: its two rings, the eventfd of each,
/// and their duplicates.
pub const WORKER_DESCRIPTORS: usize = 8;

/// Places of a core beyond its capacity, for clients that are told that it is full, and for whoever asks how
/// the server does. Each is taken for the time of one request.
pub const PLACES_RESERVED: usize = 16;

/// How long a connection in reserve keeps its place while others wait for one. A request comes with the
/// connection ([`defer_accept`](crate::runtime::Options::defer_accept)), and silent clients, some thousands a
/// second, must not keep out whoever asks how the server does.
pub const RESERVE_PATIENCE: Duration = Duration::from_millis(5);

/// What `Retry-After` says to a client that finds the server full, in seconds.
pub const RETRY_AFTER: &str = "5";

/// How often deadlines are looked at. Heartbeats and timeouts are late by at most this much.
pub const TICK: Duration = Duration::from_millis(20);

/// How often the process's memory is measured, where `runtime::Options::max_memory` bounds it. Reading
/// `/proc` takes some microseconds; at a gigabyte a second, what a core can receive, 100 MB come in between.
pub const MEMORY_INTERVAL: Duration = Duration::from_millis(100);

/// How often freed memory is given back to the kernel while the process is over its bound: glibc locks each
/// of its arenas in turn for it.
pub const MEMORY_TRIM_INTERVAL: Duration = Duration::from_secs(5);

/// How long a proxy may take to send its header of the PROXY protocol: as long as a request's head by
/// default. A proxy sends it before anything else, so all that this bounds is who connects and says nothing.
pub const PREFACE: Duration = Duration::from_secs(10);

/// Listeners of one server: far more than one machine has addresses for, and few enough to be numbered
/// in 16 bits.
pub const LISTENERS_MAX: usize = 1024;

/// How long a connection that moves to another core may take to read what it is still owed.
pub const DEPARTURE: Duration = Duration::from_secs(10);

/// How long an error answer is given to reach a client that is still sending, before the socket is closed
/// (RFC 9112 section 9.6): closing over unread data makes the kernel send a reset that eats the answer.
pub const LINGER: Duration = Duration::from_millis(1500);

/// Bytes that a lingering connection may still send before it is closed without more patience.
pub const LINGER_BYTES: u32 = 256 * 1024;

/// Bytes that a slow socket's backlog hands to the kernel in one send.
pub const BACKLOG_SEND_BYTES: usize = 128 * 1024;

/// Plaintext that is encrypted for one connection with TLS at a time. Records that do not leave are the
/// connection's own memory, not shared; about what a socket's send buffer takes (`send_buffer`).
pub const SECURE_SEND_BYTES: usize = 64 * 1024;

/// Bytes of TLS records, for any number of connections, that are made before they are sent: they should
/// still be in the processor's cache when the kernel copies them.
pub const SECURE_BURST_BYTES: usize = 512 * 1024;

/// What a step of a TLS handshake counts against [`COMPLETIONS_PER_TURN`]: a signature takes as long as
/// some dozens of messages, with RSA some hundreds.
pub const HANDSHAKE_COMPLETIONS: usize = 64;

/// What a frame that waits for a client counts beside its bytes: the memory of its record. Without it a
/// million empty pongs would weigh nothing.
pub const FRAME_COST_BYTES: usize = 128;

/// Bytes that the handlers of one turn may owe one client, with [`FRAME_COST_BYTES`] for each message: some
/// 400,000 small ones. Up to here the limit of the client does not close it, since it had no chance to read
/// any of them. Beyond, a message is dropped and the call that emits it says so; of what has no messages (the
/// body of an HTTP answer) a part cannot be left out, and the connection ends.
pub const TURN_BYTES: usize = 64 << 20;

/// Joined buffers that are kept for the next turn, and the largest that is worth keeping.
pub const JOINED_BUFFERS_KEPT: usize = 64;
/// See [`JOINED_BUFFERS_KEPT`].
pub const JOINED_BUFFER_BYTES_KEPT: usize = 64 * 1024;

/// Bytes of one packet on its way out, text and attachments together: what is larger is not sent, and whoever
/// emits it gets an error. Far beyond what one client may be owed, and no more than what is worth holding in
/// its several forms at a time: on WebSocket, as base64, compressed, encrypted.
pub const PACKET_BYTES: usize = 128 << 20;

/// Bytes of the buffer in which a thread writes packets that are kept for the next one: a rare large packet
/// would otherwise stay in memory with every core.
pub const PACKET_BUFFER_BYTES_KEPT: usize = 64 * 1024;

/// Tasks that wait in one core's mailbox. A sender that finds it full gets the message back: broadcasts
/// count as dropped, connections stay where they are. It bounds what a core that is stuck in a handler
/// costs the others: at some hundred bytes a task, a few tens of megabytes.
pub const MAILBOX_TASKS: usize = 65_536;

/// Bytes of frames that the tasks in one core's mailbox hold together. A core that goes on reading its
/// mailbox never has that many: they would be sixty times the default limit of one client. A frame that
/// waits for several cores counts in each of their mailboxes.
pub const MAILBOX_BYTES: usize = 256 << 20;

/// Bytes of a topic's name. Centrifugo allows 255 for a channel's; longer ones are never meant, and a client
/// that names what it wants could fill the memory with them.
pub const TOPIC_BYTES: usize = 256;

/// Bytes of a body, or of a WebSocket's message, that count as large while the process is short of memory
/// (`runtime::Options::max_memory`): what clients send all the time is smaller.
pub const LARGE_BODY_BYTES: usize = 64 * 1024;

/// Entries for which the tables of a core have room from the start, if that many connections are possible:
/// address space, not memory, since untouched pages cost nothing. A table that grows beyond is copied.
pub const TABLE_RESERVE: usize = 65_536;

/// What an event that waits for an async handler counts beside its arguments: the handler's future, its task,
/// and the record of the event.
pub const EVENT_COST_BYTES: usize = 1024;

/// Bytes of events of one connection that may wait for async handlers and middlewares; four of the largest
/// messages, if that is more. Some ten thousand events, more than a client says while somebody waits for a
/// database. One that goes on is closed: it could fill the memory as fast as it can send.
pub const UNFINISHED_BYTES: usize = 16 << 20;

/// Bytes of futures of one core that wait although the connections that brought their events have ended,
/// counted as [`UNFINISHED_BYTES`] are: some 65,000 futures. A handler may finish what it has begun; but
/// clients that come, leave futures and go must not fill the memory, so beyond this the oldest of them are
/// dropped.
pub const ENDED_UNFINISHED_BYTES: usize = 64 << 20;

/// Lines of the log that one core writes in a second about one kind of event that clients can bring about.
/// Those beyond are counted, and the next line says how many they were.
pub const LOG_LINES: u32 = 10;

/// Bytes of answers that one broadcast with acknowledgements collects. Clients choose what they answer, and
/// each may answer with the largest message.
pub const ANSWERS_BYTES: usize = 64 << 20;

/// How long a client that wants to come back from another server waits for its session: as long as servers
/// wait for each other. Then it is a new one, which costs it what it has missed.
pub const RESTORE: Duration = Duration::from_secs(5);

/// Clients of one core and namespace that wait for their sessions at a time, far more than a cluster restores
/// within [`RESTORE`]. A client beyond that is a new one, since anybody can ask for sessions that do not
/// exist.
pub const RESTORES_MAX: usize = 10_000;

/// How long a handler, or another step for one client, may keep its core before a warning names it: all
/// clients of that core wait meanwhile, and a tenth of it is felt already.
pub const SLOW_STEP: Duration = Duration::from_millis(200);

/// Sessions of one engine, of all cores together, unless its options say otherwise: as many as one machine
/// can hold sockets. A polling session needs no connection, so no other limit ends them.
pub const SESSIONS: usize = 1 << 20;

/// Of so many sessions one may have done nothing since its polling handshake. Anybody can shake hands as fast
/// as requests are read; a client that polls has read an answer. With the default of [`SESSIONS`] these are
/// 65,536, far more than clients of one server shake hands at the same time, and hold about 130 MB.
pub const FRESH_SHARE: usize = 16;

/// How long a session may do nothing after its handshake before a new one may have its place, if they have
/// used up their share. Clients poll at once: this is a dozen round trips by satellite.
pub const FRESH: Duration = Duration::from_secs(10);

/// Bytes of its opening request for which a session counts as one; one that keeps more counts for several.
/// Most requests of browsers keep less than twice this for themselves.
pub const SESSION_HEAD_BYTES: usize = 1024;

/// Bytes of its opening request that a session keeps, unless the engine's options say otherwise: as much as a
/// head may have by default, since clients bring tokens in queries and fields of any length.
pub const KEPT_HEAD_BYTES: usize = 16 * 1024;

/// How long a session that its client has closed answers one more poll. The poll may have been sent first,
/// over another connection, and be on its way from the core that has read it.
pub const FAREWELL: Duration = Duration::from_secs(2);
