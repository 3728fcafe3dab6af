//! What operators ask of the list of suppressed addresses, and what they are answered: the admin interface's words, as JSON.

use super::suppression_log::{Record, Source};
use crate::policy::suppression::FOR_EVER;
use serde::{Deserialize, Serialize};

/// What an operator asks for. Without a tenant the list of all tenants is meant, where nothing else is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SuppressionRequest {
    /// Nothing is sent to these any more; those that are there get what is given now.
    Add {
        /// Whose list.
        tenant: Option<String>,
        /// At most [`crate::limits::SUPPRESSION_PAGE_MAX`].
        entries: Vec<NewEntry>,
        /// They come from a file.
        #[serde(default)]
        import: bool,
    },
    /// A page of entries, in the order in which they came.
    List {
        /// Those of this tenant alone; of all lists when left out.
        tenant: Option<String>,
        /// `next` of the page before.
        after: Option<u64>,
        /// At most so many.
        limit: Option<usize>,
    },
    /// The entries of one address, in every list.
    Show {
        /// The address.
        address: String,
        /// Of this tenant, and that of all.
        tenant: Option<String>,
    },
    /// Mail may be sent to it again.
    Remove {
        /// Whose list.
        tenant: Option<String>,
        /// The address.
        address: String,
    },
}

/// One address to suppress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewEntry {
    /// The address.
    pub address: String,
    /// In words.
    #[serde(default)]
    pub reason: String,
    /// Until when, milliseconds since 1970; for ever when left out.
    #[serde(default)]
    pub until_ms: Option<u64>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuppressionReply {
    /// They are in force.
    Added {
        /// How many.
        entries: usize,
    },
    /// Some entries.
    Entries {
        /// These.
        entries: Vec<EntryView>,
        /// There may be more: `after` of the next page.
        next: Option<u64>,
        /// How many there are in all lists, with those that have expired.
        total: usize,
    },
    /// It is so.
    Done {},
}

/// An entry as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryView {
    /// The address as it was given.
    pub address: String,
    /// Whose list; none for that of all.
    pub tenant: Option<String>,
    /// In words.
    pub reason: String,
    /// How it came.
    pub source: Source,
    /// Since when, milliseconds since 1970.
    pub since_ms: u64,
    /// Until when; none: for ever.
    pub until_ms: Option<u64>,
}

impl From<Record> for EntryView {
    fn from(record: Record) -> EntryView {
        EntryView {
            address: record.address.into(),
            tenant: (!record.tenant.is_empty()).then(|| record.tenant.into()),
            reason: record.reason.into(),
            source: record.source,
            since_ms: u64::from(record.since_s) * 1000,
            until_ms: (record.until_s != FOR_EVER).then(|| u64::from(record.until_s) * 1000),
        }
    }
}
