//! What one connection makes of the frames that one read brought.

use crate::client::{News, ROOM, Stage};
use crate::echo::Echoes;
use crate::record::Series;
use crate::tally::{Broadcasts, Follower, Tally};
use crate::wire::{self, Stamp};

/// One connection's ear during one read.
pub(crate) struct Listener<'a> {
    pub(crate) stage: &'a mut Stage,
    pub(crate) follower: &'a mut Follower,
    pub(crate) tally: &'a mut Tally,
    pub(crate) broadcasts: &'a mut Broadcasts,
    pub(crate) latency: &'a mut Series,
    pub(crate) times_deliveries: bool,
    pub(crate) echoes: &'a mut Echoes,
    pub(crate) news: &'a mut Vec<News>,
    pub(crate) tells_deliveries: bool,
    pub(crate) index: usize,
    pub(crate) reply: &'a mut Vec<u8>,
    pub(crate) mask: [u8; 4],
    pub(crate) now_us: u64,
    pub(crate) is_slow: bool,
    pub(crate) follows: bool,
    pub(crate) joins: bool,
    /// Why the connection must end.
    pub(crate) ending: Option<String>,
}

impl Listener<'_> {
    /// Takes a frame by the first bytes of its payload.
    pub(crate) fn hear(&mut self, opcode: u8, prefix: &[u8]) {
        match (opcode, prefix) {
            (wire::OP_TEXT, [b'4', b'2', ..]) => self.delivery(prefix),
            (wire::OP_TEXT, [b'2', ..]) => {
                self.tally.heartbeats += 1;
                self.say(wire::OP_TEXT, b"3");
            }
            (wire::OP_TEXT, [b'0', ..]) if *self.stage == Stage::Opening => {
                *self.stage = Stage::Entering;
                self.say(wire::OP_TEXT, b"40");
            }
            (wire::OP_TEXT, [b'4', b'0', ..]) if *self.stage == Stage::Entering => {
                if self.joins {
                    *self.stage = Stage::Joining;
                    self.say(wire::OP_TEXT, format!("420[\"join\",\"{ROOM}\"]").as_bytes());
                } else {
                    *self.stage = Stage::Ready;
                }
            }
            (wire::OP_TEXT, [b'4', b'3', b'0', b'[', ..]) if *self.stage == Stage::Joining => {
                *self.stage = Stage::Ready;
            }
            (wire::OP_TEXT, [b'4', b'3', rest @ ..]) if *self.stage == Stage::Ready => self.answer(rest),
            (wire::OP_PING, payload) => self.say(wire::OP_PONG, payload),
            (wire::OP_PONG, _) => {}
            (wire::OP_CLOSE, _) => self.ending = Some("the server sent a close frame".to_owned()),
            (opcode, prefix) => {
                let text = String::from_utf8_lossy(prefix);
                self.ending = Some(format!("unexpected frame, opcode {opcode}: {text}"));
            }
        }
    }

    fn delivery(&mut self, prefix: &[u8]) {
        let Some(stamp) = Stamp::parse_message(prefix) else {
            self.ending = Some("an event that is no delivery".to_owned());
            return;
        };
        if self.follows {
            self.broadcasts.learn(stamp.sequence, stamp.sent_us);
        }
        if stamp.sequence >= self.broadcasts.published() {
            self.ending = Some(format!("delivery {} was never published", stamp.sequence));
            return;
        }
        if self.follower.follow(stamp.sequence, self.tally) && !self.is_slow {
            self.broadcasts.delivered(stamp.sequence, self.now_us);
            if self.tells_deliveries {
                self.news.push(News::Delivery { reader: self.index, sequence: stamp.sequence });
            }
            if self.times_deliveries {
                self.latency.record(stamp.sent_us, self.now_us);
            }
        }
    }

    /// An acknowledgement: of an echo, which brings its payload back, or of another request.
    fn answer(&mut self, rest: &[u8]) {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = rest.split_at(digits);
        if let Some(stamp) = rest.strip_prefix(b"[\"").and_then(Stamp::parse) {
            if self.follower.follow(stamp.sequence, self.tally) {
                self.echoes.answered += 1;
                self.latency.record(stamp.sent_us, self.now_us);
            }
            if self.echoes.refills() {
                self.mask[3] = self.mask[3].wrapping_add(1);
                let next = self.echoes.next(self.index, self.now_us);
                wire::client_frame(wire::OP_TEXT, next, self.mask, self.reply);
            }
        } else if let Some(number) = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok()) {
            self.news.push(News::Answer { reader: self.index, number });
        }
    }

    fn say(&mut self, opcode: u8, text: &[u8]) {
        self.mask[3] = self.mask[3].wrapping_add(1);
        wire::client_frame(opcode, text, self.mask, self.reply);
    }
}
