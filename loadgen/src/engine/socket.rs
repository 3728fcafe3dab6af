//! Sockets by system call: those that listen, those that connect, and what a thread has cost.
//!
//! Fails with the kernel's error; nothing here waits.

use super::Listener;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Connections that wait to be accepted: as many as the kernel allows.
const BACKLOG: i32 = 65_535;

/// Listens at an address; port 0 for any free one. With `shared`, other engines may listen there too, and the kernel
/// spreads connections over them.
///
/// # Errors
/// When the address is in use or is not one of this machine.
pub fn listen(address: SocketAddr, shared: bool) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    // Inherited by what is accepted: no further system call for each connection.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(Listener { socket, address })
}

/// A socket that is ready to connect, from a chosen address if one is given.
pub(super) fn outgoing(to: SocketAddr, from: Option<IpAddr>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(from) = from {
        let on: libc::c_int = 1;
        // SAFETY: the option takes an int, which `on` is and whose size is given; the socket is open. The kernel then
        // chooses the port when it connects, so that one source address is good for more connections.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_BIND_ADDRESS_NO_PORT,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    }
    Ok(socket)
}

/// The CPU time that the calling thread has used so far, in user space and in the kernel.
pub fn cpu_of_thread() -> Duration {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid for the length of the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    debug_assert_eq!(result, 0, "the clock of the own thread can always be read");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
