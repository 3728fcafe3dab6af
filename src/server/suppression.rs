//! The list of suppressed addresses, read at the start.

use super::ServeError;
use crate::config::Config;
use crate::control::identities::random;
use crate::control::suppression_log::FILE_NAME;
use crate::control::suppressions::Suppressions;
use std::path::Path;

/// The lists of this spool directory, and what the operator must know of them.
pub(super) fn suppressions(config: &Config, spool: &Path) -> Result<(Suppressions, Option<String>), ServeError> {
    let now = crate::io::clock::now().unix;
    let opened = Suppressions::open(spool, random()?, config.suppression.plan(), now);
    opened.map_err(|cause| ServeError::Spool(format!("{}: {cause}", spool.join(FILE_NAME).display())))
}
