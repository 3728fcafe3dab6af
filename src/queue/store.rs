//! How a waiting message lies in memory: 88 bytes with one recipient, and one block with all its texts.
//!
//! Content is never here, only where it is ([`StoredContent`]), and neither is what no decision needs, such as the
//! client's name: the spool has it. Texts are packed behind each other, each behind its
//! length; a recipient knows where its own begin. Messages are found by id through a sorted map, which also gives
//! the operator's lists their order. Nothing here decides anything; the states are moved by the queue alone.
//! It does not fail: what it reads it has packed itself from a checked envelope.

use super::destination::TenantId;
use super::recipient_state::{Disposition, LastReply, State};
use super::slab::{NONE, Place, Slab};
use super::timer_wheel::TimerKey;
use crate::clock::UnixTime;
use crate::envelope::{Body, Envelope, Notify, Ret};
use crate::id::MessageId;
use crate::limits;
use std::collections::BTreeMap;
use std::ops::Bound;

/// A message's place in this shard's queue. It is handed out again after [`super::Queue::remove`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// Where a message's content lies in the spool.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredContent {
    /// The segment of the message's record.
    pub segment: u32,
    /// Where in the segment the content begins; when spilled, where in its file.
    pub offset: u32,
    /// Its octets.
    pub len: u32,
    /// Its checksum.
    pub crc: u32,
    /// It has a file of its own.
    pub spilled: bool,
}

/// A message to be queued.
#[derive(Debug)]
pub struct NewMessage {
    /// Its id, which no message in the queue has.
    pub id: MessageId,
    /// At most [`limits::QUEUE_RECIPIENTS_MAX`] recipients; the configuration bounds transactions far below that,
    /// and what comes beyond stays in the spool alone.
    pub envelope: Envelope,
    /// Where its content is.
    pub content: StoredContent,
    /// What recovery knows of the recipients, in the envelope's order; none for a message that was just accepted.
    pub states: Option<Vec<RecoveredState>>,
    /// Its tenant.
    pub tenant: TenantId,
}

/// What recovery knows of a recipient.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RecoveredState {
    /// Where it was.
    pub fate: Fate,
    /// Failed attempts so far.
    pub attempts: u16,
    /// When the next one was due; the past for at once.
    pub next_due: UnixTime,
}

/// Where recovery found a recipient.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Waiting.
    Waiting,
    /// On hold by an operator.
    Held,
    /// Ended.
    Done(Disposition),
}

/// The recipient number that names none.
pub(super) const NOBODY: u16 = u16::MAX;

/// An operator holds it as soon as its attempt has ended.
pub(super) const HOLD_AFTER: u8 = 1;
/// An operator ends it as soon as its attempt has ended without a delivery.
pub(super) const DELETE_AFTER: u8 = 1 << 1;
/// Another shard makes the attempt.
pub(super) const LEASED: u8 = 1 << 2;
/// A delay warning is due.
pub(super) const WARN: u8 = 1 << 3;
/// A delay warning was given, or is not wanted.
pub(super) const WARNED: u8 = 1 << 4;
/// An attempt or a resolution has failed in this process.
pub(super) const TRIED: u8 = 1 << 5;
/// It stands in its message's unrouted group.
pub(super) const LISTED: u8 = 1 << 6;
/// An ORCPT follows its address.
const HAS_ORCPT: u8 = 1 << 7;

/// A waiting recipient.
#[derive(Debug, Default)]
pub(super) struct Recipient {
    /// Where it goes; of meaning once it was routed.
    pub site: u32,
    /// When it is due, in ticks of the wheel, while scheduled.
    pub due: u32,
    pub last_reply: LastReply,
    /// Where its address stands among the texts.
    text: u32,
    /// The next one of its group.
    pub next: u16,
    pub attempts: u16,
    pub state: State,
    pub flags: u8,
    pub notify: Notify,
    /// What the last reply meant: the class's place plus one, 0 for none.
    pub class: u8,
}

const _: () = assert!(size_of::<Recipient>() == 24);

/// The site number of a recipient that was never routed.
pub(super) const NO_SITE: u32 = u32::MAX;

/// Most messages have one recipient, which then lies in the message itself.
#[derive(Debug)]
pub(super) enum Recipients {
    One(Recipient),
    Many(Box<[Recipient]>),
}

impl Default for Recipients {
    fn default() -> Recipients {
        Recipients::Many(Box::default())
    }
}

const EIGHT_BIT: u16 = 1;
const SMTPUTF8: u16 = 1 << 1;
const RET_FULL: u16 = 1 << 2;
const RET_HEADERS: u16 = 1 << 3;
const HAS_ENVID: u16 = 1 << 4;
const HAS_REVERSE_PATH: u16 = 1 << 5;
const IS_DSN: u16 = 1 << 6;
const SPILLED: u16 = 1 << 7;
/// Why it came to be held follows the ENVID.
const CAME_HELD: u16 = 1 << 8;
const REQUIRE_TLS: u16 = 1 << 9;

/// A waiting message. The default value is a free place.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub id: u64,
    /// Arrival on the clock that counts from boot, in milliseconds; negative when it came before the boot.
    pub born_ms: i64,
    texts: Box<[u8]>,
    recipients: Recipients,
    segment: u32,
    offset: u32,
    len: u32,
    crc: u32,
    /// The first of its groups, or [`NONE`].
    pub group: u32,
    /// Its timer, or none; in a free place the link of the free ones.
    pub timer: u32,
    pub tenant: TenantId,
    /// Recipients that are not done.
    pub waiting: u16,
    flags: u16,
}

const _: () = assert!(size_of::<Message>() <= 88);

impl Place for Message {
    fn link(&self) -> u32 {
        self.timer
    }
    fn set_link(&mut self, to: u32) {
        self.timer = to;
    }
}

impl Message {
    /// Packs a message. Its recipients are unrouted, its timer is not set.
    pub fn pack(id: MessageId, envelope: &Envelope, content: StoredContent, tenant: TenantId, born_ms: i64) -> Message {
        let count = envelope.recipients.len().min(limits::QUEUE_RECIPIENTS_MAX);
        let recipients = &envelope.recipients[..count];
        let texts_len = text_len(envelope.reverse_path.as_ref().map_or("", |address| address.as_str()))
            + envelope.envid.as_deref().map_or(0, text_len)
            + envelope.held.as_deref().map_or(0, text_len)
            + recipients
                .iter()
                .map(|recipient| text_len(recipient.address.as_str()) + recipient.orcpt.as_deref().map_or(0, text_len))
                .sum::<usize>();
        let mut texts = Vec::with_capacity(ARRIVED_LEN + texts_len);
        texts.extend_from_slice(&envelope.arrived.as_millis().to_le_bytes()[..ARRIVED_LEN]);
        if let Some(address) = &envelope.reverse_path {
            push_text(&mut texts, address.as_str());
        }
        if let Some(envid) = &envelope.envid {
            push_text(&mut texts, envid);
        }
        if let Some(reason) = &envelope.held {
            push_text(&mut texts, reason);
        }
        let mut packed = recipients.iter().map(|recipient| {
            let text = texts.len() as u32;
            push_text(&mut texts, recipient.address.as_str());
            let mut flags = 0;
            if let Some(orcpt) = &recipient.orcpt {
                push_text(&mut texts, orcpt);
                flags = HAS_ORCPT;
            }
            let notify = recipient.notify;
            Recipient { site: NO_SITE, text, next: NOBODY, flags, notify, ..Recipient::default() }
        });
        let recipients = match count {
            1 => packed.next().map_or_else(Recipients::default, Recipients::One),
            _ => Recipients::Many(packed.collect()),
        };
        let flag = |set: bool, bit: u16| if set { bit } else { 0 };
        let flags = flag(envelope.body == Body::EightBitMime, EIGHT_BIT)
            | flag(envelope.smtputf8, SMTPUTF8)
            | flag(envelope.ret == Some(Ret::Full), RET_FULL)
            | flag(envelope.ret == Some(Ret::Headers), RET_HEADERS)
            | flag(envelope.envid.is_some(), HAS_ENVID)
            | flag(envelope.reverse_path.is_some(), HAS_REVERSE_PATH)
            | flag(envelope.is_dsn, IS_DSN)
            | flag(envelope.held.is_some(), CAME_HELD)
            | flag(envelope.require_tls, REQUIRE_TLS);
        let mut message = Message {
            id: id.0,
            born_ms,
            texts: texts.into_boxed_slice(),
            recipients,
            group: NONE,
            timer: TimerKey::NONE.0,
            tenant,
            waiting: count as u16,
            flags,
            ..Message::default()
        };
        message.set_content(content);
        message
    }

    pub fn recipients(&self) -> &[Recipient] {
        match &self.recipients {
            Recipients::One(recipient) => std::slice::from_ref(recipient),
            Recipients::Many(recipients) => recipients,
        }
    }

    pub fn recipients_mut(&mut self) -> &mut [Recipient] {
        match &mut self.recipients {
            Recipients::One(recipient) => std::slice::from_mut(recipient),
            Recipients::Many(recipients) => recipients,
        }
    }

    pub fn content(&self) -> StoredContent {
        StoredContent {
            segment: self.segment,
            offset: self.offset,
            len: self.len,
            crc: self.crc,
            spilled: self.flags & SPILLED != 0,
        }
    }

    pub fn set_content(&mut self, content: StoredContent) {
        (self.segment, self.offset, self.len, self.crc) = (content.segment, content.offset, content.len, content.crc);
        self.flags = if content.spilled { self.flags | SPILLED } else { self.flags & !SPILLED };
    }

    /// What a transaction of it costs its tenant's turn.
    pub fn cost(&self) -> u64 {
        u64::from(self.len) + limits::TRANSACTION_COST
    }

    pub fn arrived(&self) -> UnixTime {
        let mut octets = [0; 8];
        octets[..ARRIVED_LEN].copy_from_slice(&self.texts[..ARRIVED_LEN]);
        UnixTime::from_millis(u64::from_le_bytes(octets))
    }

    pub fn has_reverse_path(&self) -> bool {
        self.flags & HAS_REVERSE_PATH != 0
    }

    pub fn reverse_path(&self) -> Option<&str> {
        self.has_reverse_path().then(|| read_text(&self.texts, ARRIVED_LEN).0)
    }

    pub fn envid(&self) -> Option<&str> {
        (self.flags & HAS_ENVID != 0).then(|| read_text(&self.texts, self.behind_reverse_path()).0)
    }

    fn behind_reverse_path(&self) -> usize {
        if self.has_reverse_path() { read_text(&self.texts, ARRIVED_LEN).1 } else { ARRIVED_LEN }
    }

    /// Why it came to be held, when it did.
    pub fn came_held(&self) -> Option<&str> {
        let before = self.behind_reverse_path();
        let at = if self.flags & HAS_ENVID != 0 { read_text(&self.texts, before).1 } else { before };
        (self.flags & CAME_HELD != 0).then(|| read_text(&self.texts, at).0)
    }

    pub fn body(&self) -> Body {
        if self.flags & EIGHT_BIT != 0 { Body::EightBitMime } else { Body::SevenBit }
    }

    pub fn smtputf8(&self) -> bool {
        self.flags & SMTPUTF8 != 0
    }

    pub fn require_tls(&self) -> bool {
        self.flags & REQUIRE_TLS != 0
    }

    pub fn ret(&self) -> Option<Ret> {
        match self.flags & (RET_FULL | RET_HEADERS) {
            0 => None,
            RET_FULL => Some(Ret::Full),
            _ => Some(Ret::Headers),
        }
    }

    pub fn is_dsn(&self) -> bool {
        self.flags & IS_DSN != 0
    }

    pub fn address(&self, recipient: &Recipient) -> &str {
        read_text(&self.texts, recipient.text as usize).0
    }

    pub fn orcpt(&self, recipient: &Recipient) -> Option<&str> {
        let behind = read_text(&self.texts, recipient.text as usize).1;
        (recipient.flags & HAS_ORCPT != 0).then(|| read_text(&self.texts, behind).0)
    }
}

/// The domain of an address: what follows its last @, since no domain and no literal holds one.
pub(super) fn domain_of(address: &str) -> &str {
    address.rsplit_once('@').map_or("", |(_, domain)| domain)
}

/// Octets of the arrival time: 48 bits of milliseconds reach to the year 10889.
const ARRIVED_LEN: usize = 6;

/// Octets of a text with its length before it: one octet, or three of which the first is 255.
fn text_len(text: &str) -> usize {
    let len = text.len().min(usize::from(u16::MAX));
    if len < 255 { 1 + len } else { 3 + len }
}

/// Appends a text. No text of an envelope is near 64 KiB; one that were is cut.
fn push_text(out: &mut Vec<u8>, text: &str) {
    let text = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
    if text.len() < 255 {
        out.push(text.len() as u8);
    } else {
        out.push(255);
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    }
    out.extend_from_slice(text);
}

/// The text at this place, and the place behind it.
fn read_text(texts: &[u8], at: usize) -> (&str, usize) {
    let (from, len) = match texts[at] {
        255 => (at + 3, usize::from(u16::from_le_bytes([texts[at + 1], texts[at + 2]]))),
        len => (at + 1, usize::from(len)),
    };
    (std::str::from_utf8(&texts[from..from + len]).unwrap_or_default(), from + len)
}

/// All messages of the queue, by place and by id.
#[derive(Debug, Default)]
pub(super) struct Store {
    messages: Slab<Message>,
    by_id: BTreeMap<u64, u32>,
}

impl Store {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn insert(&mut self, message: Message) -> Slot {
        let id = message.id;
        let place = self.messages.insert(message);
        self.by_id.insert(id, place);
        Slot(place)
    }

    pub fn remove(&mut self, slot: Slot) -> Message {
        let message = self.messages.remove(slot.0);
        self.by_id.remove(&message.id);
        message
    }

    /// The message at a place, unless the place is free.
    pub fn get(&self, slot: Slot) -> Option<&Message> {
        self.messages.get(slot.0).filter(|message| !message.texts.is_empty())
    }

    /// As [`Store::get`], to change it.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Message> {
        self.messages.get_mut(slot.0).filter(|message| !message.texts.is_empty())
    }

    pub fn find(&self, id: MessageId) -> Option<Slot> {
        self.by_id.get(&id.0).map(|&place| Slot(place))
    }

    /// Messages behind this id, in the order of ids.
    pub fn after(&self, after: Option<MessageId>) -> impl Iterator<Item = (MessageId, Slot)> + '_ {
        let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.0));
        self.by_id.range((from, Bound::Unbounded)).map(|(&id, &place)| (MessageId(id), Slot(place)))
    }
}
