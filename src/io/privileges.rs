//! What this process may do besides its work: its user, its capabilities, whether it can be dumped, and which modes its new
//! files have. All of it is to be settled while the process has one thread: capabilities belong to each thread alone, and
//! threads inherit them from the one that starts them.
//!
//! Not here: which files it may use (confinement.rs), and in which order all this comes (src/server/ground.rs).

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, Gid, Uid};
use std::ffi::CString;
use std::io;
use std::path::Path;

/// The user that is taken when root names none.
pub const DEFAULT_USER: &str = "ringpost";

/// With fewer open files a relay is short of them; root raises the limit so far before it becomes another.
const OPEN_FILES_WANTED: u64 = 65_536;

/// What root keeps when it stays root: its own way with files that belong to others, and memory locked for the rings.
const KEPT_BY_ROOT: [Capability; 2] = [Capability::CAP_DAC_OVERRIDE, Capability::CAP_IPC_LOCK];

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    uid: Uid,
    gid: Gid,
}

impl User {
    /// The user of this name; None when there is none.
    ///
    /// # Errors
    /// When the list of users cannot be read.
    pub fn named(name: &str) -> io::Result<Option<User>> {
        let found = unistd::User::from_name(name)?;
        Ok(found.map(|user| User { name: user.name, uid: user.uid, gid: user.gid }))
    }

    /// The user that this process runs as.
    pub fn current() -> User {
        let (uid, gid) = (unistd::geteuid(), unistd::getegid());
        User { name: name_of(uid.as_raw()), uid, gid }
    }

    /// Whether it is root.
    pub fn is_root(&self) -> bool {
        self.uid.is_root()
    }

    /// Its number.
    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// Its group, for `chown`.
    pub fn group(&self) -> String {
        let found = unistd::Group::from_gid(self.gid).ok().flatten();
        found.map_or_else(|| self.gid.to_string(), |group| group.name)
    }

    /// Gives it a directory that this process, still root, has just made.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn give(&self, path: &Path) -> io::Result<()> {
        Ok(unistd::chown(path, Some(self.uid), Some(self.gid))?)
    }
}

/// The name of a user, or its number where it has none.
pub fn name_of(uid: u32) -> String {
    let found = unistd::User::from_uid(Uid::from_raw(uid)).ok().flatten();
    found.map_or_else(|| uid.to_string(), |user| user.name)
}

/// New files are for their owner alone; no program that is started gains rights; and unless `core_dumps` is set, memory, which
/// holds mail and passwords, is neither dumped nor shown to other processes of the same user.
///
/// # Errors
/// When the kernel refuses.
pub fn close_up(core_dumps: bool) -> io::Result<()> {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    prctl::set_no_new_privs()?;
    if !core_dumps {
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    }
    // A change of the user resets it; see [`become_user`].
    prctl::set_dumpable(core_dumps)?;
    Ok(())
}

/// Becomes this user for good, as root: its groups, its group, itself; no way back and no capability is left. The limits of
/// locked memory and open files are raised first, since only root may.
///
/// # Errors
/// When the kernel refuses, or all of it did not come about.
pub fn become_user(user: &User, core_dumps: bool) -> io::Result<()> {
    // Where a container withholds it the probe tells what is short.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && hard < OPEN_FILES_WANTED
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES_WANTED, OPEN_FILES_WANTED);
    }
    drop_bounding(&CapsHashSet::new())?;
    let name = CString::new(user.name.as_str()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    unistd::initgroups(&name, user.gid)?;
    unistd::setresgid(user.gid, user.gid, user.gid)?;
    unistd::setresuid(user.uid, user.uid, user.uid)?;
    prctl::set_dumpable(core_dumps)?;
    drop_capabilities()?;
    if unistd::getresuid()? != (unistd::ResUid { real: user.uid, effective: user.uid, saved: user.uid })
        || unistd::setuid(Uid::from_raw(0)).is_ok()
    {
        return Err(io::Error::other("the kernel let it become root again"));
    }
    Ok(())
}

/// Gives up every capability of this thread, as one that is not root: a service manager may have given it the right to bind
/// ports below 1024, which are bound by now.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_capabilities() -> io::Result<()> {
    // The ambient set goes first: it is bounded by the two others.
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    Ok(())
}

/// As root that stays root: all capabilities but [`KEPT_BY_ROOT`] go.
///
/// # Errors
/// When the kernel refuses.
pub fn reduce_root() -> io::Result<()> {
    let held = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let kept: CapsHashSet = KEPT_BY_ROOT.into_iter().filter(|capability| held.contains(capability)).collect();
    drop_bounding(&kept)?;
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    caps::clear(None, CapSet::Inheritable).map_err(io::Error::other)?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Drops what may never come back from the set that bounds all others, where this thread may do that.
fn drop_bounding(kept: &CapsHashSet) -> io::Result<()> {
    let may = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(io::Error::other)?;
    if !may {
        return Ok(());
    }
    for capability in caps::read(None, CapSet::Bounding).map_err(io::Error::other)? {
        if !kept.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_known_by_name_and_number() {
        let root = User::named("root").unwrap().unwrap();
        assert!(root.is_root() && root.uid() == 0 && root.group() == "root");
        assert_eq!(User::named("no-such-user").unwrap(), None);
        assert_eq!((name_of(0), name_of(4_000_000_000)), ("root".into(), "4000000000".into()));
        assert_eq!(User::current().uid(), unistd::geteuid().as_raw());
    }
}
