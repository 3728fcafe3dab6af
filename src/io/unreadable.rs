//! Why a file that must be read cannot be, in words that say what to do: who may not enter which directory, or that Landlock
//! keeps it away since it lies where no configured file was at the start.

use crate::io::privileges::User;
use std::io::{self, ErrorKind};
use std::path::Path;

/// What is wrong and what helps.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> String {
    if error.kind() != ErrorKind::PermissionDenied {
        return error.to_string();
    }
    let user = User::current();
    let name = &user.name;
    let real = match std::fs::canonicalize(path) {
        Ok(real) => real,
        Err(_) => {
            let blocked = path.ancestors().skip(1).find(|directory| std::fs::metadata(directory).is_ok());
            let directory = blocked.unwrap_or(Path::new("/")).display();
            return format!(
                "the user `{name}` may not enter {directory}, or what its links lead to: give the directory to its group \
                 (chgrp {group} {directory}; chmod 750 {directory}), or copy the file where `{name}` may read it",
                group = user.group()
            );
        }
    };
    let shown = real.display();
    if nix::unistd::access(&real, nix::unistd::AccessFlags::R_OK).is_ok() {
        return format!(
            "{shown} lies outside of the directories that this process has kept for itself (Landlock): keep it where it was \
             at the start, or name its directory in [process] readable and restart"
        );
    }
    format!(
        "the user `{name}` may not read it: chgrp {group} {shown}; chmod 640 {shown}, with its directory open to that group, \
         or copy it where `{name}` may read it",
        group = user.group()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_told_as_it_is() {
        let path = Path::new("/nonexistent/key.pem");
        let error = std::fs::File::open(path).unwrap_err();
        assert_eq!(unreadable(path, &error), error.to_string());
    }

    #[test]
    fn a_file_that_the_user_may_read_was_kept_away_by_landlock() {
        let path = crate::io::testing::directory("unreadable").join("key.pem");
        std::fs::write(&path, "x").unwrap();
        let text = unreadable(&path, &ErrorKind::PermissionDenied.into());
        assert!(text.contains("Landlock") && text.contains("[process] readable"), "{text}");
    }
}
