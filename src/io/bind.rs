//! Binds listening sockets before the shards start: one socket per shard and address, so that the kernel spreads
//! connections over the shards (SO_REUSEPORT). Fails with the address, the cause and the cure.

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// How many connections wait to be accepted, at most; the kernel may allow fewer (net.core.somaxconn).
const BACKLOG: i32 = 4096;

/// Why an address could not be listened on, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {cause}; {cure}")]
pub struct BindError {
    /// Which address.
    pub address: SocketAddr,
    /// What the system said.
    pub cause: io::Error,
    /// What to do about it.
    pub cure: &'static str,
}

/// Binds `count` listening sockets to one address, as [`reserve`] and [`listen`] do.
///
/// # Errors
/// Names the address, the cause and the cure.
pub fn bind(address: SocketAddr, count: usize) -> Result<Vec<OwnedFd>, BindError> {
    let sockets = reserve(address, count)?;
    for socket in &sockets {
        listen(socket, address)?;
    }
    Ok(sockets)
}

/// Binds `count` sockets to one address that do not listen yet: that needs the right to low ports, and takes nobody's
/// connections. With port 0 all get the same port, chosen by the kernel. An IPv6 address does not take IPv4 connections: give
/// both addresses to serve both.
///
/// # Errors
/// Names the address, the cause and the cure.
pub fn reserve(address: SocketAddr, count: usize) -> Result<Vec<OwnedFd>, BindError> {
    let mut sockets = Vec::with_capacity(count);
    let mut address = address;
    for _ in 0..count {
        let socket = bind_one(address).map_err(|cause| BindError { address, cure: cure(&cause), cause })?;
        if address.port() == 0
            && let Some(bound) = socket.local_addr().ok().and_then(|bound| bound.as_socket())
        {
            address.set_port(bound.port());
        }
        sockets.push(socket.into());
    }
    Ok(sockets)
}

/// Listens on a socket that [`reserve`] made for this address.
///
/// # Errors
/// Names the address, the cause and the cure.
pub fn listen(socket: &OwnedFd, address: SocketAddr) -> Result<(), BindError> {
    let listening = socket2::SockRef::from(socket).listen(BACKLOG);
    listening.map_err(|cause| BindError { address, cure: cure(&cause), cause })
}

fn bind_one(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

fn cure(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            "another program listens there: stop it (`ss -ltnp` shows which) or choose another port"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "ports below 1024 need the right CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE), or choose a higher port"
        }
        Some(libc::EADDRNOTAVAIL) => {
            "no interface of this machine has this address: correct it or bring the interface up"
        }
        Some(libc::EAFNOSUPPORT) => "this kernel has no IPv6: remove the address or enable IPv6",
        Some(libc::EMFILE | libc::ENFILE) => "no descriptor is left: raise the limit on open files (LimitNOFILE=)",
        _ => "check the address in the configuration",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(socket: &OwnedFd) -> u16 {
        socket2::SockRef::from(socket).local_addr().unwrap().as_socket().unwrap().port()
    }

    #[test]
    fn all_shards_share_one_port() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        assert_eq!(sockets.len(), 3);
        assert_ne!(port(&sockets[0]), 0);
        assert!(sockets.iter().all(|socket| port(socket) == port(&sockets[0])));
    }

    #[test]
    fn errors_name_address_cause_and_cure() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(address, 1).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("another program listens there"), "{error}");
        let error = bind("203.0.113.7:0".parse().unwrap(), 1).unwrap_err().to_string();
        assert!(error.contains("no interface of this machine"), "{error}");
    }
}
