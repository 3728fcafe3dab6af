//! The spool directory: made for its owner alone, and locked, so that a second start on the same mail cannot happen.
//! The lock goes with the process, however it ends.

use crate::io::privileges::{self, User};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Why the spool directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It cannot be made or opened.
    #[error("the spool directory {path} cannot be used: {cause}; check who owns it, or choose another with --spool")]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It belongs to somebody else: most likely it was made by root, before there was a user for it.
    #[error(
        "{file} belongs to {owner} and ringpost runs as {own}: chown -R {own}:{group} {path}, with no ringpost running on it"
    )]
    Foreign {
        /// The spool.
        path: PathBuf,
        /// It, or the first file in it.
        file: PathBuf,
        /// Whose it is.
        owner: String,
        /// The present user.
        own: String,
        /// Its group.
        group: String,
    },
    /// Others may write to it.
    #[error(
        "others may change the spool directory {path} (mode {mode:o}): chmod 700 {path}, or choose a directory within it, which is then made for ringpost alone"
    )]
    Open {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another process has it.
    #[error(
        "the spool {path} is in use by another ringpost{holder}; stop that one first, or choose another directory with --spool"
    )]
    InUse {
        /// Which.
        path: PathBuf,
        /// ", process N", when known.
        holder: String,
    },
}

/// A spool directory that nobody else uses for as long as this lives.
#[derive(Debug)]
pub struct SpoolDirectory {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl SpoolDirectory {
    /// Makes the directory if it is missing, and locks it.
    pub fn open(path: &Path) -> Result<SpoolDirectory, DirectoryError> {
        let unusable = |cause| DirectoryError::Unusable { path: path.to_owned(), cause };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
        check_owner(path)?;
        let mode = std::fs::metadata(path).map_err(unusable)?.permissions().mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(DirectoryError::Open { path: path.to_owned(), mode });
        }
        let path_of_lock = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path_of_lock)
            .map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The number only helps to find the other process; without it the error is as good as before.
                let _ = lock.read_to_string(&mut text);
                let holder = text.trim().parse::<u32>().map_or(String::new(), |pid| format!(" (process {pid})"));
                return Err(DirectoryError::InUse { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(cause)) => return Err(unusable(cause)),
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(unusable)?;
        Ok(SpoolDirectory { path: path.to_owned(), _lock: lock })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an operator should know about it.
    pub fn warning(&self) -> Option<String> {
        let mode = std::fs::metadata(&self.path).ok()?.permissions().mode() & 0o777;
        (mode & 0o077 != 0).then(|| {
            let path = self.path.display();
            format!("the spool directory {path} has mode {mode:o}, so that others can look into it: chmod 700 {path}")
        })
    }

    /// When anything in it was last written, in milliseconds since 1970; 0 for a new one. Ids are given out above this
    /// time even if the clock went back since.
    pub fn last_written_ms(&self) -> u64 {
        let mut latest = 0;
        let mut directories = vec![self.path.clone()];
        while let Some(directory) = directories.pop() {
            let Ok(entries) = std::fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let Ok(data) = entry.metadata() else { continue };
                if data.is_dir() {
                    directories.push(entry.path());
                } else if name.to_string_lossy().ends_with(".seg") {
                    let written = data.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
                    latest = latest.max(written.map_or(0, |since| since.as_millis() as u64));
                }
            }
        }
        latest
    }
}

/// Everything in the spool must belong to this user; root may use what belongs to others.
fn check_owner(path: &Path) -> Result<(), DirectoryError> {
    let own = User::current();
    if own.is_root() {
        return Ok(());
    }
    let mut waiting = vec![path.to_owned()];
    while let Some(file) = waiting.pop() {
        // What cannot be looked at is met again, and told, by whoever needs it.
        let Ok(data) = std::fs::symlink_metadata(&file) else { continue };
        if data.uid() != own.uid() && !data.is_symlink() && file.file_name() != Some("lost+found".as_ref()) {
            let (path, owner, group) = (path.to_owned(), privileges::name_of(data.uid()), own.group());
            return Err(DirectoryError::Foreign { path, file, owner, own: own.name, group });
        }
        if data.is_dir() {
            waiting.extend(std::fs::read_dir(&file).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_is_for_its_owner_and_for_one_process() {
        let path = std::env::temp_dir().join(format!("ringpost-directory-{}", std::process::id()));
        let first = SpoolDirectory::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!((first.warning(), first.last_written_ms()), (None, 0));
        let error = SpoolDirectory::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        std::fs::write(path.join("00-000001.seg"), "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let again = SpoolDirectory::open(&path).unwrap();
        assert!(again.warning().unwrap().contains("chmod 700"));
        assert!(again.last_written_ms() > 1_600_000_000_000);
        drop(again);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o770)).unwrap();
        let error = SpoolDirectory::open(&path).unwrap_err().to_string();
        assert!(error.contains("mode 770") && error.contains("chmod 700"), "{error}");
        std::fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn what_cannot_be_made_is_told_with_its_path() {
        let error = SpoolDirectory::open(Path::new("/proc/no/spool")).unwrap_err().to_string();
        assert!(error.contains("/proc/no/spool") && error.contains("--spool"), "{error}");
    }
}
