//! Answers to shards whose mailbox may be full for a moment: kept, and tried again.

use crate::io::mailbox::Sender;
use crate::shard::message::ToShard;
use std::time::Duration;

/// How long to wait before a full mailbox is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// Puts a message into a shard's mailbox, when there is room. A shard that does not exist gets nothing.
pub async fn post(shards: &[Sender<ToShard>], shard: u8, message: ToShard) {
    let mut message = message;
    while let Some(mailbox) = shards.get(usize::from(shard)) {
        match mailbox.push(message) {
            Ok(()) => break,
            Err(back) => message = back,
        }
        tokio::time::sleep(PAUSE).await;
    }
}
