//! Secrets that the operator keeps in files: read when they are needed, so that they may be changed, and refused where others
//! could have read or changed them.

use crate::io::unreadable::unreadable;
use crate::limits::SECRET_FILE_OCTETS_MAX;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use zeroize::Zeroizing;

/// The secret in such a file, without the white space around it.
///
/// # Errors
/// In words that name the file and what mends it; never with what it holds.
pub fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    let text = read_text(path, SECRET_FILE_OCTETS_MAX)?;
    match text.trim() {
        "" => Err(format!("{} is empty: write the secret into it", path.display())),
        trimmed => Ok(Zeroizing::new(trimmed.to_owned())),
    }
}

/// The text of a file with secrets that has less than `octets_max`. Its group may read it: so root keeps it for the relay's
/// user.
///
/// # Errors
/// In words that name the file and what mends it; never with what it holds.
pub fn read_text(path: &Path, octets_max: usize) -> Result<Zeroizing<String>, String> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| format!("{shown}: {}", unreadable(path, &error)))?;
    // Of the file that was opened: the path may lead to another one a moment later.
    let mode = file.metadata().map_err(|error| format!("{shown}: {error}"))?.permissions().mode() & 0o7777;
    if mode & 0o027 != 0 {
        return Err(format!(
            "{shown} holds a secret and may be read or changed by others (mode {mode:o}): chmod 600 {shown}"
        ));
    }
    // Whole from the start: a text that grows leaves pieces of itself in memory.
    let mut text = Zeroizing::new(String::with_capacity(octets_max));
    file.take(octets_max as u64).read_to_string(&mut text).map_err(|error| format!("{shown}: {error}"))?;
    if text.len() == octets_max {
        return Err(format!("{shown} has {octets_max} octets or more: secrets are shorter"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_where_nobody_else_could() {
        let path = crate::io::testing::directory("secret_file").join("secret");
        let write = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            read(&path).map(|secret| secret.to_string())
        };
        assert_eq!(write(" a secret\n", 0o600), Ok("a secret".into()));
        assert_eq!(write("a secret", 0o440), Ok("a secret".into()));
        for mode in [0o644, 0o620, 0o602] {
            let refused = write("a secret", mode).unwrap_err();
            assert!(
                refused.contains(&format!("(mode {mode:o}): chmod 600 ")) && !refused.contains("a secret\n"),
                "{refused}"
            );
        }
        assert!(write(" \n", 0o600).unwrap_err().contains("is empty"));
        assert!(write(&"x".repeat(SECRET_FILE_OCTETS_MAX), 0o600).unwrap_err().contains("secrets are shorter"));
        assert!(write("a secret", 0o000).is_ok() == nix::unistd::geteuid().is_root());
        std::fs::remove_file(&path).unwrap();
        assert!(read(&path).unwrap_err().contains("No such file"));
    }
}
