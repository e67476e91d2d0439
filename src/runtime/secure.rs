//! TLS on a connection: what comes is decrypted before the layer above sees it, what is owed is encrypted at
//! the send.
//!
//! A [`Session`] owns rustls' state and, only while a record is incomplete, its bytes. Everything else,
//! plaintext that came and records that go, lies in buffers of the core. Records that were made and did not
//! leave wait in front of the outlet's backlog ([`Backlog::seal`]): they are counted, limited and waited
//! for like frames.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::ops::Range;

use rustls::Error;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};

use super::connection::{ConnectionId, Ended, Parcel, Phase};
use super::core::Core;
use super::guard::guarded;
use super::ring::{Completion, Kind, Send, Tag, Target};
use super::tls::Tls;
use crate::fanout::{Backlog, OutletId, Outlets};
use crate::limits;

/// The TLS state of one connection.
pub(super) struct Session {
    tls: UnbufferedServerConnection,
    /// What has come and rustls has not discarded: a record, or a message in records, of which only a part
    /// has come. rustls keeps places in it and wants it at every call. Empty and without memory otherwise.
    held: Vec<u8>,
    /// The connection that the session belongs to.
    owner: ConnectionId,
    /// Whether the peer was told that nothing more comes.
    finished: bool,
    /// Whether the session has failed: rustls is not asked any more.
    failed: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("finished", &self.finished).finish_non_exhaustive()
    }
}

/// How a session stands after bytes came.
#[derive(Debug, PartialEq)]
enum Standing {
    Open,
    /// The peer has said that nothing more comes.
    PeerFinished,
    Failed(Error),
}

/// Buffers of one core that all its sessions share.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    plain: Vec<u8>,
    records: Records,
}

/// TLS records that are about to be sent. The memory stays initialised from use to use.
#[derive(Debug, Default)]
struct Records {
    memory: Vec<u8>,
    len: usize,
}

impl Records {
    /// Room for `bytes` more.
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        let end = self.len + bytes;
        if self.memory.len() < end {
            self.memory.resize(end, 0);
        }
        &mut self.memory[self.len..]
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[..self.len]
    }

    fn clear(&mut self) {
        self.len = 0;
        self.memory.truncate(RECORDS_KEPT);
        self.memory.shrink_to(RECORDS_KEPT);
    }
}

/// Bytes of the core's record buffer that are kept: what the records of one burst take.
const RECORDS_KEPT: usize = limits::SECURE_BURST_BYTES + 2 * limits::SECURE_SEND_BYTES;

/// A guess that is enough for the records of most flights.
const FLIGHT_BYTES: usize = 2048;

/// What a record adds to its plaintext at most: header, nonce, content type, tag (RFC 8446 section 5.2,
/// RFC 5288 section 3).
const RECORD_OVERHEAD: usize = 64;

/// Plaintext of one record (RFC 8446 section 5.1).
const RECORD_BYTES: usize = 16 * 1024;

/// What a close_notify takes (RFC 8446 section 6.1), with an alert before it.
const ALERT_BYTES: usize = 256;

impl Session {
    fn new(owner: ConnectionId, tls: &Tls) -> Result<Self, Error> {
        let tls = UnbufferedServerConnection::new(tls.current())?;
        Ok(Self { tls, held: Vec::new(), owner, finished: false, failed: false })
    }

    fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Reads bytes from the socket. Plaintext goes to `plain`, what must be answered to `records`.
    fn receive(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>, records: &mut Records) -> Standing {
        if self.failed {
            return Standing::Open;
        }
        let mut held = mem::take(&mut self.held);
        let standing = if held.is_empty() {
            let (used, standing) = self.process(bytes, plain, records);
            held = bytes[used..].to_vec();
            standing
        } else {
            held.extend_from_slice(bytes);
            let (used, standing) = self.process(&mut held, plain, records);
            held.drain(..used);
            standing
        };
        if let Standing::Failed(_) = standing {
            self.take_alert(&mut held, records);
            (self.failed, self.finished) = (true, true);
            return standing;
        }
        // rustls has refused what is longer than a record or a handshake message may be.
        if !held.is_empty() {
            self.held = held;
        }
        standing
    }

    /// Takes what a session that has failed still says: what it had begun to say, and an alert. rustls wants
    /// the bytes that it has failed at, and must not be asked beyond the alert: it would fail at them once
    /// more.
    fn take_alert(&mut self, held: &mut [u8], records: &mut Records) {
        let mut used = 0;
        loop {
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(&mut held[used..]);
            let Ok(ConnectionState::EncodeTlsData(data)) = state else { return };
            let start = records.len;
            encode(data, records);
            if is_alert(&records.bytes()[start..]) {
                return;
            }
            used = (used + discard).min(held.len());
        }
    }

    /// How many of the bytes are read, and how the session stands. The bytes begin with those that are held.
    fn process(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>, records: &mut Records) -> (usize, Standing) {
        let mut used = 0;
        let mut standing = Standing::Open;
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(&mut bytes[used..]);
            let mut idle = false;
            match state {
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, records),
                Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(),
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        plain.extend_from_slice(record.payload);
                        discard += record.discard;
                    }
                }
                Ok(ConnectionState::PeerClosed) => standing = Standing::PeerFinished,
                Ok(_) => idle = true,
                Err(error) => {
                    standing = Standing::Failed(error);
                    idle = true;
                }
            }
            used = (used + discard).min(bytes.len());
            if idle {
                return (used, standing);
            }
        }
    }

    /// Has something written. Before the handshake is done there is nobody who could read it, and after a
    /// failure nothing is written any more: `write` does not run.
    fn write(
        &mut self,
        records: &mut Records,
        write: impl FnOnce(WriteTraffic<'_, ServerConnectionData>, &mut Records) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while !self.failed {
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(&mut self.held);
            let outcome = match state {
                // What rustls itself has to say comes first.
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, records);
                    None
                }
                Ok(ConnectionState::TransmitTlsData(sent)) => {
                    sent.done();
                    None
                }
                Ok(ConnectionState::WriteTraffic(traffic)) => return write(traffic, records),
                Ok(_) => Some(Ok(())),
                Err(error) => {
                    self.failed = true;
                    Some(Err(error))
                }
            };
            self.held.drain(..discard.min(self.held.len()));
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
        Ok(())
    }

    /// Encrypts what is to be sent. Before the handshake is done it is thrown away.
    fn seal(&mut self, plain: &[u8], records: &mut Records) -> Result<(), Error> {
        self.write(records, |mut traffic, records| {
            let mut room = plain.len() + (plain.len() / RECORD_BYTES + 1) * RECORD_OVERHEAD;
            loop {
                match traffic.encrypt(plain, records.room(room)) {
                    Ok(len) => {
                        records.len += len;
                        return Ok(());
                    }
                    Err(EncryptError::InsufficientSize(size)) => room = size.required_size,
                    Err(EncryptError::EncryptExhausted) => return Err(Error::EncryptError),
                }
            }
        })
    }

    /// Says that nothing more comes, once. In the middle of a handshake there is nothing to say.
    fn finish(&mut self, records: &mut Records) {
        if mem::replace(&mut self.finished, true) {
            return;
        }
        // A session that fails here has nothing to say either.
        let _ = self.write(records, |mut traffic, records| {
            if let Ok(len) = traffic.queue_close_notify(records.room(ALERT_BYTES)) {
                records.len += len;
            }
            Ok(())
        });
    }
}

/// Whether a record is an alert, as far as its length tells if it is encrypted: nothing else is as short
/// (RFC 8446 sections 5.2 and 6).
fn is_alert(record: &[u8]) -> bool {
    const ENCRYPTED_ALERT: usize = 5 + 2 + 1 + 16;
    match record.first() {
        Some(21) => true,
        Some(23) => record.len() == ENCRYPTED_ALERT,
        _ => false,
    }
}

/// Appends what rustls has to say.
fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, records: &mut Records) {
    let mut room = FLIGHT_BYTES;
    loop {
        match data.encode(records.room(room)) {
            Ok(len) => break records.len += len,
            Err(EncodeError::InsufficientSize(size)) => room = size.required_size,
            Err(EncodeError::AlreadyEncoded) => break,
        }
    }
}

/// Records of one connection in the core's buffer.
struct Sealed {
    target: Target,
    tag: Tag,
    outlet: OutletId,
    records: Range<usize>,
    /// Bytes of what the outlet is owed that these records carry.
    plain: usize,
    whole: bool,
}

/// The sessions of a core. None is reached but by the handle of its connection. Without any, the table is
/// empty and costs nothing.
#[derive(Debug, Default)]
pub(super) struct Sessions(Vec<Option<Box<Session>>>);

impl Sessions {
    #[inline]
    pub(super) fn has(&self, id: ConnectionId) -> bool {
        self.get(id).is_some()
    }

    pub(super) fn peer_certificates(&self, id: ConnectionId) -> Option<Vec<Vec<u8>>> {
        let certificates = self.get(id)?.tls.peer_certificates().unwrap_or_default();
        Some(certificates.iter().map(|one| one.to_vec()).collect())
    }

    #[inline]
    fn get(&self, id: ConnectionId) -> Option<&Session> {
        let session = self.0.get(id.slot() as usize)?.as_deref();
        session.filter(|session| session.owner == id)
    }

    fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Session> {
        let session = self.0.get_mut(id.slot() as usize)?.as_deref_mut();
        session.filter(|session| session.owner == id)
    }

    pub(super) fn take(&mut self, id: ConnectionId) -> Option<Box<Session>> {
        self.get(id)?;
        self.0.get_mut(id.slot() as usize)?.take()
    }

    fn put(&mut self, id: ConnectionId, mut session: Box<Session>) {
        session.owner = id;
        let slot = id.slot() as usize;
        if self.0.len() <= slot {
            self.0.resize_with(slot + 1, || None);
        }
        self.0[slot] = Some(session);
    }
}

impl Core {
    /// Begins a session on a connection that was accepted.
    pub(super) fn open_session(&self, id: ConnectionId, tls: &Tls) {
        match Session::new(id, tls) {
            Ok(session) => self.sessions.borrow_mut().put(id, Box::new(session)),
            Err(error) => {
                tracing::error!("core {}: a TLS session could not begin: {error}", self.index);
                self.fail(id);
            }
        }
    }

    /// Puts the session of a connection that moves into its parcel.
    pub(super) fn pack_session(&self, id: ConnectionId, mut parcel: Parcel) -> Parcel {
        parcel.session = self.sessions.borrow_mut().take(id);
        parcel
    }

    /// Takes the session of a connection that has moved out of its parcel.
    pub(super) fn unpack_session(&self, id: ConnectionId, mut parcel: Parcel) -> Parcel {
        if let Some(session) = parcel.session.take() {
            self.sessions.borrow_mut().put(id, session);
        }
        parcel
    }

    /// Whether what comes must be decrypted for somebody who reads it.
    pub(super) fn decrypts(&self, id: ConnectionId) -> bool {
        let reads = |phase| matches!(phase, Phase::Open | Phase::Moving { .. });
        self.sessions.borrow().has(id)
            && self.connection(id).is_some_and(|connection| reads(connection.phase))
    }

    /// Bytes came on a connection with TLS.
    pub(super) fn receive_secure(&self, id: ConnectionId, bytes: &mut [u8]) {
        let mut buffers = self.secure.take();
        let Buffers { plain, records } = &mut buffers;
        let standing = {
            let mut sessions = self.sessions.borrow_mut();
            let Some(session) = sessions.get_mut(id) else { return };
            if session.is_handshaking() {
                self.handshakes.set(self.handshakes.get() + 1);
                // A signature takes long enough to look at the clock.
                self.charge(limits::WORK_BETWEEN_LOOKS);
            }
            self.charge(bytes.len());
            session.receive(bytes, plain, records)
        };
        if records.len > 0 {
            self.seal_now(id, records);
        }
        if !plain.is_empty() {
            self.deliver(id, plain);
        }
        plain.clear();
        plain.shrink_to(2 * RECORD_BYTES);
        records.clear();
        self.secure.replace(buffers);
        match standing {
            Standing::Open => {}
            Standing::PeerFinished => self.secure_end(id, Ended::Eof),
            Standing::Failed(error) => {
                tracing::debug!("core {}: TLS: {error}", self.index);
                self.secure_end(id, Ended::Reset);
            }
        }
    }

    /// Has records sent in this turn, before anything else that the connection is owed.
    fn seal_now(&self, id: ConnectionId, records: &Records) {
        let Some(outlet) = self.connection(id).map(|connection| connection.outlet) else { return };
        self.outlets.borrow_mut().seal(outlet, records.bytes());
        self.work.borrow_mut().writable.push(outlet);
        self.bell.ring();
    }

    /// The TLS session has ended, and with it the connection: what is owed leaves before, and so does an
    /// alert.
    fn secure_end(&self, id: ConnectionId, why: Ended) {
        let open = self.with(id, |_| ()).is_some();
        if !open {
            return self.end(id, why);
        }
        if let Some(service) = self.service() {
            guarded("the end of a connection", || service.ended(id, why));
        }
        match why {
            Ended::Eof => self.close(id),
            // A reset must not overtake the alert.
            _ => self.linger(id),
        }
    }

    /// Whether the peer of a connection that is about to close is still to be told; it closes afterwards.
    pub(super) fn finish_secure(&self, id: ConnectionId) -> bool {
        let mut sessions = self.sessions.borrow_mut();
        let Some(session) = sessions.get_mut(id) else { return false };
        let mut buffers = self.secure.borrow_mut();
        buffers.records.clear();
        session.finish(&mut buffers.records);
        let said = buffers.records.len > 0;
        if said {
            self.seal_now(id, &buffers.records);
        }
        buffers.records.clear();
        said
    }

    /// Puts what a connection with TLS is to be sent next of its backlog into `out`, and takes it out of the
    /// backlog; `false` for a connection without TLS.
    pub(super) fn seal_backlog(&self, id: ConnectionId, backlog: &mut Backlog, out: &mut Vec<u8>) -> bool {
        let Some(phase) = self.connection(id).map(|connection| connection.phase) else { return false };
        let mut sessions = self.sessions.borrow_mut();
        let Some(session) = sessions.get_mut(id) else { return false };
        out.append(&mut backlog.take_sealed());
        let mut buffers = self.secure.borrow_mut();
        let Buffers { plain, records } = &mut *buffers;
        // A step that has unwound may have left another client's bytes here.
        plain.clear();
        records.clear();
        backlog.copy_to(plain, limits::SECURE_SEND_BYTES.saturating_sub(out.len()));
        backlog.consume(plain.len());
        if !plain.is_empty() && session.seal(plain, records).is_err() {
            self.work.borrow_mut().dead.push(id);
        }
        if backlog.is_empty() && matches!(phase, Phase::Closing { .. }) {
            session.finish(records);
        }
        out.extend_from_slice(records.bytes());
        plain.clear();
        records.clear();
        true
    }

    /// Sends what outlets of connections with TLS are owed: for each as few records as possible, in one send.
    pub(super) fn burst_secure(
        &self,
        mut some: &[(OutletId, ConnectionId)],
        outlets: &mut Outlets,
        failed: &mut VecDeque<Completion>,
    ) -> io::Result<()> {
        let mut buffers = self.secure.borrow_mut();
        let mut all = Vec::with_capacity(some.len());
        while !some.is_empty() {
            let mut taken = 0;
            while taken < some.len() && buffers.records.len < limits::SECURE_BURST_BYTES {
                let (outlet, id) = some[taken];
                let records = &mut buffers.records;
                let sealed = guarded("the encryption of what is sent", || {
                    self.seal_owed(outlet, id, outlets, records)
                });
                match sealed {
                    Some(sealed) => all.extend(sealed),
                    None => self.work.borrow_mut().dead.push(id),
                }
                taken += 1;
            }
            self.send_sealed(&all, buffers.records.bytes(), outlets, failed)?;
            all.clear();
            buffers.records.clear();
            some = &some[taken..];
        }
        Ok(())
    }

    fn seal_owed(
        &self,
        outlet: OutletId,
        id: ConnectionId,
        outlets: &Outlets,
        records: &mut Records,
    ) -> Option<Sealed> {
        let connection = self.connection(id)?;
        let mut sessions = self.sessions.borrow_mut();
        let session = sessions.get_mut(id)?;
        let owed = outlets.batch.prepared(outlets.owed(outlet));
        // What does not leave is this connection's own: a client that reads nothing must not make us encrypt
        // all that it is owed.
        let plain = owed.len().min(limits::SECURE_SEND_BYTES);
        let start = records.len;
        if let Err(error) = session.seal(&owed[..plain], records) {
            tracing::debug!("core {}: TLS: {error}", self.index);
            self.work.borrow_mut().dead.push(id);
            return None;
        }
        let whole = plain == owed.len();
        if whole && matches!(connection.phase, Phase::Closing { .. }) {
            session.finish(records);
        }
        let (target, tag) = (connection.target, id.tag(Kind::Send));
        Some(Sealed { target, tag, outlet, records: start..records.len, plain, whole })
    }

    fn send_sealed(
        &self,
        all: &[Sealed],
        records: &[u8],
        outlets: &mut Outlets,
        failed: &mut VecDeque<Completion>,
    ) -> io::Result<()> {
        let send =
            |one: &Sealed| Send { target: one.target, bytes: &records[one.records.clone()], tag: one.tag };
        let sends: Vec<Send<'_>> = all.iter().filter(|one| !one.records.is_empty()).map(send).collect();
        self.ring.borrow_mut().burst(&sends)?;
        self.counters.sends.add(sends.len());
        self.counters.sent_bytes.add(all.iter().map(|one| one.plain).sum());
        self.reap_failures(failed);
        // Before the failures: what was not encrypted waits behind what was and did not leave.
        for one in all.iter().filter(|one| !one.whole) {
            outlets.spill(one.outlet, one.plain);
            self.work.borrow_mut().writable.push(one.outlet);
            self.bell.ring();
        }
        while let Some(completion) = failed.pop_front() {
            let Some(one) = all.iter().find(|one| one.tag == completion.tag) else { continue };
            self.send_failed(
                completion,
                outlets,
                |_, _| one.plain,
                |outlets, _, sent| {
                    if one.whole {
                        outlets.spill(one.outlet, one.plain);
                    }
                    outlets.seal(one.outlet, &records[one.records.start + sent..one.records.end]);
                },
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
