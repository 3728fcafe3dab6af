//! The ports of the control thread: the admin interface's socket, metrics, the sandbox.

use super::ServeError;
use crate::config::{self, Config};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The control thread's own ports, bound before anything runs.
pub(super) struct Services {
    pub(super) admin: UnixListener,
    pub(super) admin_path: PathBuf,
    pub(super) monitoring: Option<TcpListener>,
    pub(super) sandbox: Option<(TcpListener, SocketAddr)>,
}

impl Services {
    pub(super) fn bind(config: &Config) -> Result<Services, ServeError> {
        let admin_path = config.admin_socket();
        let admin = bind_admin(&admin_path).map_err(|cause| ServeError::Service {
            address: admin_path.display().to_string(),
            purpose: "the admin interface",
            cause,
            key: "admin.socket, --admin-socket",
        })?;
        let monitoring = match config.admin.metrics {
            Some(address) => Some(bind_tcp(address, "metrics", "admin.metrics, --metrics, --no-metrics")?),
            None => None,
        };
        let sandbox = if config::settings::needs_sandbox(config) {
            let listener = bind_tcp(config.sandbox.listen, "the sandbox", "sandbox.listen")?;
            let address = listener.local_addr().map_err(|cause| ServeError::Start { what: "the sandbox", cause })?;
            Some((listener, address))
        } else {
            None
        };
        Ok(Services { admin, admin_path, monitoring, sandbox })
    }

    pub(super) fn sandbox_address(&self) -> Option<SocketAddr> {
        self.sandbox.as_ref().map(|(_, address)| *address)
    }
}

/// The spool is locked, so that a socket that is there already is left over from a process that is gone.
fn bind_admin(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(data) if std::os::unix::fs::FileTypeExt::is_socket(&data.file_type()) => std::fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is in its place")),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn bind_tcp(address: SocketAddr, purpose: &'static str, key: &'static str) -> Result<TcpListener, ServeError> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|cause| ServeError::Service { address: address.to_string(), purpose, cause, key })
}
