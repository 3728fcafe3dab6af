//! Every bound of the program: its name, its unit and why it is what it is. Relations are asserted at compile time.

use std::time::Duration;

// The queue.

/// Recipients of one message, at most, in the queue: their places are 16-bit numbers and the last is "none".
pub const QUEUE_RECIPIENTS_MAX: usize = u16::MAX as usize - 1;
/// No retry comes sooner, whatever the schedule says: a schedule of zero must not spin.
pub const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
/// A peer that names a time before which it wants no retry is obeyed up to here: longer would be a way to make
/// mail expire.
pub const RETRY_NOT_BEFORE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Due times from here on are rounded up to whole seconds, so that recipients of one message that failed one after
/// the other in one transaction come back together.
pub const RETRY_ROUNDING_FROM: Duration = Duration::from_secs(60);
/// Octets a tenant may send to a site per turn while others wait: a few small messages, so that turns are short.
pub const FAIRNESS_QUANTUM: u64 = 32 * 1024;
/// What a transaction costs in octets besides its content: its round trips hold a connection about as long.
pub const TRANSACTION_COST: u64 = 4 * 1024;
/// Messages whose timers are handled in one call, at most, so that a shard is not held up when very many fall due
/// at once; the rest follow in the next turn.
pub const TIMEOUT_BATCH: usize = 1024;
/// While the whole queue is on hold, delay warnings are looked at again after this long.
pub const WARNING_RECHECK: Duration = Duration::from_secs(15 * 60);

const _: () = assert!(TRANSACTION_COST < FAIRNESS_QUANTUM);
const _: () = assert!(RETRY_WAIT_MIN.as_millis() < RETRY_ROUNDING_FROM.as_millis());

// Who may send.

/// IPv6 clients are counted by their network of this length: an end site holds at least so much (RFC 6177).
pub const CLIENT_IPV6_PREFIX: u8 = 64;
