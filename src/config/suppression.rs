//! `[suppression]`: which failures keep mail from an address later, for how long, and when senders are told.

use super::check::Problem;
use super::read::{self, FromText};
use crate::control::suppressions::SuppressionPlan;
use serde::Deserialize;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

/// The most failures that can be counted.
const SOFT_BOUNCES_MAX: u32 = 100;

/// When a sender is told of a suppressed recipient.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum AtRecipient {
    /// Later: the recipient is taken and ends as suppressed.
    #[default]
    Accept,
    /// At once: 550 5.1.1.
    Refuse,
}

impl FromText for AtRecipient {
    const EXPECTED: &'static str = "\"accept\" or \"refuse\"";
    fn from_text(text: &str) -> Result<AtRecipient, String> {
        match text {
            "accept" => Ok(AtRecipient::Accept),
            "refuse" => Ok(AtRecipient::Refuse),
            other => Err(format!("`{other}`: expected {}", AtRecipient::EXPECTED)),
        }
    }
}

/// `[suppression]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SuppressionSection {
    /// What becomes of suppressed recipients.
    #[serde(deserialize_with = "read::one")]
    pub at_rcpt: AtRecipient,
    /// Whether addresses that do not exist are suppressed.
    pub hard_bounces: bool,
    /// For how long.
    #[serde(deserialize_with = "read::or_never")]
    pub hard_lifetime: Option<Duration>,
    /// So many final failures suppress an address; 0: none do.
    pub soft_bounces: u32,
    /// Within this time.
    #[serde(deserialize_with = "read::one")]
    pub soft_period: Duration,
    /// For how long.
    #[serde(deserialize_with = "read::or_never")]
    pub soft_lifetime: Option<Duration>,
}

impl Default for SuppressionSection {
    fn default() -> SuppressionSection {
        SuppressionSection {
            at_rcpt: AtRecipient::Accept,
            hard_bounces: true,
            hard_lifetime: Some(180 * DAY),
            soft_bounces: 5,
            soft_period: 14 * DAY,
            soft_lifetime: Some(30 * DAY),
        }
    }
}

impl SuppressionSection {
    /// What the lists do with bounces.
    pub fn plan(&self) -> SuppressionPlan {
        SuppressionPlan {
            hard: self.hard_bounces.then_some(self.hard_lifetime),
            soft_bounces: (self.soft_bounces > 0).then_some(self.soft_bounces),
            soft_period: self.soft_period,
            soft_lifetime: self.soft_lifetime,
        }
    }

    /// Checks it.
    pub(super) fn check(&self) -> Result<(), Problem> {
        if self.soft_bounces > SOFT_BOUNCES_MAX {
            let hint = format!("0 (never) to {SOFT_BOUNCES_MAX}; 5 is the default");
            return Err(Problem::new("suppression.soft_bounces", "more than are counted", hint));
        }
        Ok(())
    }
}
