//! Which files this process may use: Landlock, a kernel feature by which a process without rights restricts itself for good.
//! It holds for the thread that asks and for all that it starts, so it is to be asked for before there are others; what
//! is open already stays usable.
//!
//! Best effort: an older kernel enforces less or nothing, and [`confine`] says how much. Not here: which files those are
//! (src/server/ground.rs). The network is left alone: ringpost connects to whatever address and port a destination has.

use landlock::{
    ABI, Access, AccessFs, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus, make_bitflags,
};
use std::path::{Path, PathBuf};

/// What the rules are written for: Linux 6.10. Later additions concern sockets of other programs, which filters may need.
const RULES: ABI = ABI::V5;

/// The files that stay usable; all below a directory with it. What is not there is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// To be read.
    pub readable: Vec<PathBuf>,
    /// To be read, written, made, renamed and removed.
    pub writable: Vec<PathBuf>,
    /// Directories in which a Unix socket is made and removed.
    pub sockets: Vec<PathBuf>,
}

/// How much of it the kernel enforces.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// All.
    Fully,
    /// What this older kernel knows.
    Partly,
    /// Nothing: the kernel has no Landlock, or it is switched off.
    Not,
}

/// Restricts this thread, and those that it starts from now on, to these files, for good.
///
/// # Errors
/// When the kernel has Landlock and refuses the rules, in words.
pub fn confine(files: &Files) -> Result<Enforced, String> {
    try_confine(files).map_err(|error| error.to_string())
}

fn try_confine(files: &Files) -> Result<Enforced, RulesetError> {
    let readable = AccessFs::ReadFile | AccessFs::ReadDir;
    let writable = AccessFs::from_all(RULES) & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    let sockets = make_bitflags!(AccessFs::{ReadDir | MakeSock | RemoveFile});
    let mut rules = Ruleset::default().handle_access(AccessFs::from_all(RULES))?.create()?;
    for (paths, access) in [(&files.readable, readable), (&files.writable, writable), (&files.sockets, sockets)] {
        for path in paths {
            rules = allow(rules, path, access)?;
        }
    }
    let status = rules.restrict_self()?;
    Ok(match (status.landlock, status.ruleset) {
        (LandlockStatus::NotEnabled | LandlockStatus::NotImplemented, _) | (_, RulesetStatus::NotEnforced) => {
            Enforced::Not
        }
        (_, RulesetStatus::PartiallyEnforced) => Enforced::Partly,
        (_, RulesetStatus::FullyEnforced) => Enforced::Fully,
    })
}

fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, RulesetError> {
    // What is not there, or hidden from this user, cannot be used in any case.
    let Ok(opened) = PathFd::new(path) else { return Ok(rules) };
    // Rights to a directory's entries mean nothing for a single file, and the kernel refuses them.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(RULES) };
    rules.add_rule(PathBeneath::new(opened, access))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::testing::directory;
    use glommio::LocalExecutorBuilder;
    use glommio::io::{BufferedFile, OpenOptions};
    use std::fs;
    use std::io::ErrorKind;

    /// Runs on a thread of its own, since there is no way back.
    fn confined<T: Send>(files: &Files, act: impl FnOnce() -> T + Send) -> Option<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let enforced = confine(files).expect("the kernel takes the rules");
                (enforced != Enforced::Not).then(act)
            });
            thread.join().expect("the thread ends")
        })
    }

    #[test]
    fn only_named_files_can_be_used_by_calls_and_by_the_ring_alike() {
        let (inside, outside) = (directory("confined"), directory("not-confined"));
        fs::write(outside.join("secret"), "x").unwrap();
        fs::write(inside.join("own"), "x").unwrap();
        let files = Files { writable: vec![inside.clone()], ..Files::default() };
        let (secret, own) = (outside.join("secret"), inside.join("own"));
        let enforced = confined(&files, || {
            assert_eq!(fs::read(&secret).unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert!(fs::write(outside.join("new"), "x").is_err());
            fs::rename(&own, inside.join("renamed")).unwrap();
            fs::write(&own, "y").unwrap();
            // Files that the ring opens are under the same rules.
            let executor = LocalExecutorBuilder::default().io_memory(64 << 10).make().unwrap();
            executor.run(async {
                assert!(BufferedFile::open(&secret).await.is_err());
                let opened = OpenOptions::new().read(true).write(true).buffered_open(&own).await.unwrap();
                opened.close().await.unwrap();
            });
        });
        if enforced.is_none() {
            println!("SKIPPED: THIS KERNEL HAS NO LANDLOCK");
        }
        assert_eq!(fs::read(&secret).unwrap(), b"x", "other threads are not restricted");
        fs::remove_dir_all(inside).unwrap();
        fs::remove_dir_all(outside).unwrap();
    }
}
