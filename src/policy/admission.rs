//! Why a client's connection is not taken, and what the client is told. One closed list, so that each reason has its figure
//! in the metrics.
//!
//! Not here: the counting (session_limits.rs, connection_rate.rs), and when the question is asked (src/shard/admission.rs).

use crate::limits::{CONNECTION_WAIT_TOLD_MAX, CONNECTION_WAIT_TOLD_MIN};
use crate::reply::Reply;
use crate::smtp::replies::SPOKE_EARLY;
use std::time::Duration;

/// Why a connection is refused.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The program stops.
    Stopping,
    /// Too many sessions are open in this shard.
    Sessions,
    /// Too many sessions of this client are.
    ClientSessions,
    /// Too many sessions of its network are.
    NetworkSessions,
    /// The client has connected too often; it may come again after this time.
    ClientRate(Duration),
    /// Its network has.
    NetworkRate(Duration),
    /// It spoke before the greeting.
    EarlyTalker,
}

impl Refusal {
    /// The names of all reasons, as metrics have them; [`index`](Refusal::index) is the place in it.
    pub const NAMES: [&'static str; 7] =
        ["stopping", "sessions", "client_sessions", "network_sessions", "client_rate", "network_rate", "early_talker"];

    /// Its place among all reasons.
    pub fn index(self) -> usize {
        match self {
            Refusal::Stopping => 0,
            Refusal::Sessions => 1,
            Refusal::ClientSessions => 2,
            Refusal::NetworkSessions => 3,
            Refusal::ClientRate(_) => 4,
            Refusal::NetworkRate(_) => 5,
            Refusal::EarlyTalker => 6,
        }
    }

    /// What the client is told (RFC 5321 3.8: 421 closes; 3.1: 554 instead of the greeting).
    pub fn reply(self) -> Reply {
        match self {
            Refusal::Stopping => Reply::fixed(421, 4, 3, 2, "Shutting down; try again later"),
            Refusal::Sessions => Reply::fixed(421, 4, 3, 2, "Too many sessions are open here; try again in a minute"),
            Refusal::ClientSessions => Reply::fixed(
                421,
                4,
                7,
                0,
                "Too many sessions are open from your address; close some, or send more messages in each",
            ),
            Refusal::NetworkSessions => Reply::fixed(
                421,
                4,
                7,
                0,
                "Too many sessions are open from your network; close some, or send more messages in each",
            ),
            Refusal::ClientRate(wait) => too_often("address", wait),
            Refusal::NetworkRate(wait) => too_often("network", wait),
            Refusal::EarlyTalker => SPOKE_EARLY,
        }
    }
}

/// Whoever waits so long finds room, unless somebody of the same address or network is faster.
fn too_often(whose: &str, wait: Duration) -> Reply {
    let seconds = wait.clamp(CONNECTION_WAIT_TOLD_MIN, CONNECTION_WAIT_TOLD_MAX).as_millis().div_ceil(1000);
    let unit = if seconds == 1 { "second" } else { "seconds" };
    Reply::new(
        421,
        (4, 7, 0),
        format!(
            "Too many connections from your {whose} in a short time; come again in {seconds} {unit}, and send more messages \
             in each"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_name_a_place_and_a_reply_that_closes() {
        let wait = Duration::from_millis(2100);
        let all = [
            Refusal::Stopping,
            Refusal::Sessions,
            Refusal::ClientSessions,
            Refusal::NetworkSessions,
            Refusal::ClientRate(wait),
            Refusal::NetworkRate(wait),
            Refusal::EarlyTalker,
        ];
        let places: Vec<usize> = all.iter().map(|refusal| refusal.index()).collect();
        assert_eq!(places, (0..Refusal::NAMES.len()).collect::<Vec<_>>());
        assert!(all.iter().all(|refusal| [421, 554].contains(&refusal.reply().code)));
        let text = Refusal::ClientRate(wait).reply().to_string();
        assert!(
            text.starts_with("421 4.7.0 Too many connections from your address in a short time; come again in 3 s")
        );
        let text = Refusal::NetworkRate(Duration::ZERO).reply().to_string();
        assert!(text.contains("from your network") && text.contains("in 1 second,"), "{text}");
    }
}
