//! The ground on which everything else stands, prepared while the process has one thread: ports are bound, root becomes
//! another user, capabilities go, and the process restricts itself to the files it needs. Whatever comes later, and every
//! thread, runs with what is left; so what a restriction is in the way of fails at the start, not at the first renewal of a
//! certificate months later.
//!
//! As root nothing is opened in the spool: its owner could have put links there.

use super::certificates::ChallengeSockets;
use super::{ServeError, Sockets, bind_listeners, directory::DirectoryError};
use crate::config::{Config, FilterSection, OauthSection};
use crate::event::Severity;
use crate::io::confinement::{self, Enforced, Files};
use crate::io::privileges::{self, DEFAULT_USER, User};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Read by libraries of this process: name service, names of users, trust roots, and what the kernel tells of this machine and
/// process.
const SYSTEM_FILES: [&str; 22] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/lib/ssl",
    "/proc/self",
    "/proc/sys",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices",
    "/sys/dev",
    "/sys/class/block",
    "/sys/kernel/mm",
    "/dev/urandom",
];

/// Why the process could not give up what it does not need.
#[derive(Debug, thiserror::Error)]
pub enum GroundError {
    /// The user is not there.
    #[error(
        "there is no user `{0}`: make it (useradd --system --no-create-home {0}), or name another (process.user, --user)"
    )]
    NoUser(String),
    /// Only root may.
    #[error(
        "only root can become the user `{wanted}`, and this is `{own}`: start it as root or as `{wanted}`, or leave process.user out"
    )]
    NotRoot {
        /// As configured.
        wanted: String,
        /// As started.
        own: String,
    },
    /// The kernel refused.
    #[error("{what}: {cause}; the kernel refused, most likely for a filter of the container or service manager")]
    Refused {
        /// What was tried.
        what: String,
        /// Why not.
        cause: io::Error,
    },
    /// Landlock.
    #[error("Landlock refuses its rules: {0}; `landlock = false` in [process] does without")]
    Landlock(String),
}

/// What was prepared.
pub(super) struct Ground {
    /// Bound, not yet listening.
    pub(super) sockets: Sockets,
    /// Bound, not yet listening, for challenges of ACME.
    pub(super) challenges: ChallengeSockets,
    /// What the operator should know.
    pub(super) notes: Vec<(Severity, String)>,
}

impl Ground {
    /// Prepares it; `credential_file` is read later.
    pub(super) fn prepare(config: &Config, credential_file: Option<&Path>) -> Result<Ground, ServeError> {
        let process = &config.process;
        let refused = |what: String| move |cause| GroundError::Refused { what, cause };
        privileges::close_up(process.core_dumps)
            .map_err(refused("core dumps and new rights cannot be forbidden".into()))?;
        let own = User::current();
        let next = next_user(process.user.as_deref(), &own)?;
        make_directory(&config.spool.dir, next.as_ref())
            .map_err(|cause| DirectoryError::Unusable { path: config.spool.dir.clone(), cause })?;
        let sockets = bind_listeners(config, config.effective_shards())?;
        let challenges = ChallengeSockets::bind(config).map_err(ServeError::Bind)?;
        let mut notes = Vec::new();
        match &next {
            Some(user) => {
                let what = format!("cannot become the user `{}`", user.name);
                privileges::become_user(user, process.core_dumps).map_err(refused(what))?;
                notes.push((Severity::Info, format!("running as the user {}, without capabilities", user.name)));
            }
            None if own.is_root() => {
                privileges::reduce_root().map_err(refused("capabilities cannot be dropped".into()))?;
                if process.user.is_none() {
                    let text = format!(
                        "running as root: make a user for it (useradd --system --no-create-home {DEFAULT_USER}), give it the \
                         spool (chown -R {DEFAULT_USER}: {}) and name it with --user or user = \"…\" in [process]; user = \
                         \"root\" says that root is meant",
                        config.spool.dir.display()
                    );
                    notes.push((Severity::Warning, text));
                }
            }
            None => privileges::drop_capabilities().map_err(refused("capabilities cannot be dropped".into()))?,
        }
        notes.push(restrict(config, credential_file)?);
        Ok(Ground { sockets, challenges, notes })
    }
}

/// Whom to become: nobody else where this is the wanted user already, or root and nobody is named.
fn next_user(wanted: Option<&str>, own: &User) -> Result<Option<User>, GroundError> {
    if !own.is_root() && wanted.is_none() {
        return Ok(None);
    }
    let name = wanted.unwrap_or(DEFAULT_USER);
    let cause = |cause| GroundError::Refused { what: "the list of users cannot be read".into(), cause };
    match User::named(name).map_err(cause)? {
        None if wanted.is_none() => Ok(None),
        None => Err(GroundError::NoUser(name.into())),
        Some(user) if user.uid() == own.uid() => Ok(None),
        Some(_) if !own.is_root() => Err(GroundError::NotRoot { wanted: name.into(), own: own.name.clone() }),
        Some(user) => Ok(Some(user)),
    }
}

/// Makes the spool directory and those above it where they are missing; each that was made belongs to the user to come.
fn make_directory(path: &Path, owner: Option<&User>) -> io::Result<()> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    for path in missing.into_iter().rev() {
        DirBuilder::new().mode(0o700).create(path)?;
        if let Some(owner) = owner {
            owner.give(path)?;
        }
        // What is above is out of reach later on.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Restricts the process to its files, and says how far that went.
fn restrict(config: &Config, credential_file: Option<&Path>) -> Result<(Severity, String), GroundError> {
    if !config.process.landlock {
        return Ok((Severity::Info, "Landlock is off: the process may use every file that its user may".into()));
    }
    let files = files(config, credential_file);
    Ok(match confinement::confine(&files).map_err(GroundError::Landlock)? {
        Enforced::Fully => (Severity::Info, "Landlock restricts the process to its own files".into()),
        Enforced::Partly => {
            let text =
                "Landlock restricts the process to its own files, as far as this kernel can: Linux 6.10 can do all";
            (Severity::Info, text.into())
        }
        Enforced::Not => {
            let text = "this kernel has no Landlock: the process may use every file that its user may";
            (Severity::Warning, text.into())
        }
    })
}

/// The files that the relay needs after its start.
fn files(config: &Config, credential_file: Option<&Path>) -> Files {
    let mut readable: Vec<PathBuf> = SYSTEM_FILES.iter().map(PathBuf::from).collect();
    readable.extend(
        ["SSL_CERT_FILE", "SSL_CERT_DIR", "CREDENTIALS_DIRECTORY"]
            .into_iter()
            .filter_map(std::env::var_os)
            .map(PathBuf::from),
    );
    readable.extend(config.process.readable.iter().cloned());
    readable.extend(credential_file.map(Path::to_owned));
    let oauth = config.oauth.iter().flat_map(OauthSection::files);
    let filters = config.filter.iter().flat_map(FilterSection::files).cloned();
    let rules = config.classification.rules.iter().cloned();
    let others = oauth.map(Path::to_owned).chain(filters).chain(rules);
    for file in super::certificates::files(config).into_iter().chain(others) {
        readable.extend(directories_of(&file));
    }
    let sockets = config.admin_socket().parent().map(Path::to_owned).into_iter().collect();
    Files { readable, writable: vec![config.spool.dir.clone()], sockets }
}

/// Where a file that is renewed will be: next to where it is now, and next to what its links lead to.
fn directories_of(file: &Path) -> impl Iterator<Item = PathBuf> {
    let real = std::fs::canonicalize(file).ok();
    [Some(file.to_owned()), real].into_iter().flatten().filter_map(|path| {
        let parent = path.parent()?;
        // A name without a directory is in the present one.
        Some(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
    })
}
