//! Why the relay did not start, or ended, in words for operators, and the exit code that goes with it.

use super::directory::DirectoryError;
use super::ground::GroundError;
use crate::config;
use crate::control::identities::IdentityError;
use crate::io::bind::BindError;
use crate::io::dns::ResolverError;
use crate::io::probe::ProbeError;
use crate::io::tls::TlsSetupError;
use std::io;

/// Why the relay did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The spool directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// User, capabilities or files.
    #[error(transparent)]
    Ground(#[from] GroundError),
    /// The machine.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// A port.
    #[error("cannot listen on {}: {}; {}", .0.address, .0.cause, .0.cure)]
    Bind(BindError),
    /// Another port.
    #[error("cannot listen on {address} for {purpose}: {cause}; stop what uses it, or choose another ({key})")]
    Service {
        /// Where.
        address: String,
        /// What for.
        purpose: &'static str,
        /// Why.
        cause: io::Error,
        /// The key or flag.
        key: &'static str,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// A file with a secret.
    #[error("{key}: {problem}")]
    SecretFile {
        /// Which one, as the configuration names it.
        key: String,
        /// The file, and what is wrong with it.
        problem: String,
    },
    /// The operator's rules about replies.
    #[error(transparent)]
    Rules(#[from] config::ConfigError),
    /// Tenants and credentials.
    #[error(transparent)]
    Identities(#[from] IdentityError),
    /// Name servers.
    #[error(transparent)]
    Resolver(#[from] ResolverError),
    /// Reading the spool.
    #[error("the spool cannot be read: {0}; nothing in it was changed")]
    Spool(String),
    /// A thread or the runtime.
    #[error("{what} cannot be started: {cause}; the machine is short of threads, memory or descriptors")]
    Start {
        /// What.
        what: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// A shard ended.
    #[error("shard {shard} died: {reason}; what was acknowledged is on disk and is delivered after the next start")]
    ShardDied {
        /// Which.
        shard: u8,
        /// Why.
        reason: String,
    },
}

impl ServeError {
    /// The exit code (sysexits.h).
    pub fn exit_code(&self) -> u8 {
        match self {
            ServeError::Directory(DirectoryError::InUse { .. }) => 75,
            ServeError::Directory(_) => 73,
            ServeError::Ground(_) => 77,
            ServeError::Probe(_) | ServeError::Bind(_) | ServeError::Service { .. } => 69,
            ServeError::Tls(_) | ServeError::Resolver(_) | ServeError::SecretFile { .. } | ServeError::Rules(_) => 78,
            ServeError::Spool(_) | ServeError::Identities(_) => 74,
            ServeError::Start { .. } => 71,
            ServeError::ShardDied { .. } => 70,
        }
    }
}
