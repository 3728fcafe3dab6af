//! Files that hold secrets: read only where nobody else may read or change them.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use zeroize::Zeroizing;

/// The text of such a file. A group may read it: so root keeps it for the relay's user.
///
/// # Errors
/// When it cannot be read, or others may read it, or a group or others may change it.
pub fn read_secret(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o027 != 0 {
        let text = format!(
            "it holds secrets and may be read or changed by others (mode {:o}): chmod 600 {}",
            mode & 0o777,
            path.display()
        );
        return Err(io::Error::other(text));
    }
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_may_read_or_change_it() {
        let path = std::env::temp_dir().join(format!("secret-{}", std::process::id()));
        std::fs::write(&path, "secret\n").unwrap();
        for (mode, good) in
            [(0o600, true), (0o640, true), (0o400, true), (0o644, false), (0o660, false), (0o602, false)]
        {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match read_secret(&path) {
                Ok(text) => assert!(good && *text == "secret\n", "{mode:o}"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(!good && text.contains(&format!("mode {mode:o}")) && text.contains("chmod 600"), "{text}");
                }
            }
        }
        std::fs::remove_file(path).unwrap();
    }
}
