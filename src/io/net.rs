//! Sockets by system call: what glommio does not offer or does at a higher price. Sends straight from where a command is
//! carried out, connects from a chosen address, and turns errors into plain words. Nothing here waits.
//!
//! Every call is non-blocking and gives `WouldBlock` instead of waiting; who waits then is connection_task.rs.

use bytes::Bytes;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use std::io::{self, IoSlice, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// How many pieces one system call sends: enough for a message in one go, little enough for the stack.
pub(crate) const PIECES_MAX: usize = 64;

/// How much input that nobody will read is thrown away before a close, so that the peer sees our last words and an end
/// instead of a reset.
const DRAIN_MAX: usize = 1024 * 1024;

/// An outgoing connection that has been idle so long is probed, so that a vanished peer is noticed.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Sends pieces without waiting. Gives how many bytes the kernel took.
///
/// # Errors
/// Of kind `WouldBlock` when the socket's buffer is full.
pub(crate) fn send(socket: RawFd, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: a message header of zeros is valid: no address, no pieces, no control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    // An IoSlice has the layout of an iovec on Unix (documented), and sendmsg only reads the array.
    header.msg_iov = pieces.as_ptr().cast_mut().cast();
    header.msg_iovlen = pieces.len() as _;
    loop {
        // SAFETY: the header points to `pieces`, which outlive the call; the socket is a number the kernel checks.
        let sent = unsafe { libc::sendmsg(socket, &header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(sent as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Sends the pieces of `queue` in as few calls as it takes; those that went are taken off its front. Gives `WouldBlock`
/// when some are left.
pub(crate) fn send_queued<'a>(socket: RawFd, queue: impl Iterator<Item = &'a Bytes>) -> io::Result<usize> {
    let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
    let mut count = 0;
    for (piece, bytes) in pieces.iter_mut().zip(queue) {
        *piece = IoSlice::new(bytes);
        count += 1;
    }
    send(socket, &pieces[..count])
}

/// A socket to write to without waiting.
pub(crate) struct DirectSocket(pub(crate) RawFd);

impl Write for DirectSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send(self.0, &[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        send(self.0, &pieces[..pieces.len().min(PIECES_MAX)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The peer's and our address of a connected socket.
///
/// # Errors
/// When the peer is gone already.
pub(crate) fn addresses(socket: RawFd) -> io::Result<(SocketAddr, SocketAddr)> {
    let socket = borrow(socket);
    let socket = SockRef::from(&socket);
    let wrong = || io::Error::from(io::ErrorKind::AddrNotAvailable);
    let peer = socket.peer_addr()?.as_socket().ok_or_else(wrong)?;
    let local = socket.local_addr()?.as_socket().ok_or_else(wrong)?;
    Ok((peer, local))
}

/// Our address of a socket.
pub(crate) fn local_address(socket: RawFd) -> io::Result<SocketAddr> {
    let socket = borrow(socket);
    SockRef::from(&socket).local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// Sends small pieces at once: a dialog of short lines must not wait for acknowledgements.
pub(crate) fn set_nodelay(socket: RawFd) {
    let socket = borrow(socket);
    // A socket whose peer is gone refuses; the next read tells.
    let _ = SockRef::from(&socket).set_tcp_nodelay(true);
}

/// Begins to connect, from a chosen address if one is given. The socket is non-blocking and becomes writable when the
/// connection stands or has failed.
///
/// # Errors
/// When it fails at once: no route, no such local address, no descriptor.
pub(crate) fn start_connect(to: SocketAddr, from: Option<IpAddr>) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    if let Some(from) = from {
        bind_without_port(&socket)?;
        socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    }
    match socket.connect(&SockAddr::from(to)) {
        Ok(()) => Ok(socket.into()),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error),
    }
}

/// Lets the kernel choose the port when it connects, when it knows the remote end: many connections to different ends may
/// share a port then, and a source address is not limited to 28,000 connections in all.
fn bind_without_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which `on` is and whose size is given; the socket is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends our end, or with `both` also reads no more. Errors are of no interest: the socket is closed next.
pub(crate) fn shutdown(socket: RawFd, both: bool) {
    let how = if both { std::net::Shutdown::Both } else { std::net::Shutdown::Write };
    let socket = borrow(socket);
    let _ = SockRef::from(&socket).shutdown(how);
}

/// Ends a listener: a pending accept returns EINVAL, which is the only safe way to stop one under glommio.
pub(crate) fn end_listener(socket: RawFd) {
    let socket = borrow(socket);
    let _ = SockRef::from(&socket).shutdown(std::net::Shutdown::Read);
}

/// Throws away what has come and will not be read, without waiting for more: unread input would turn the close into a
/// reset, which can overtake our last words.
pub(crate) fn drain_input(socket: RawFd, scratch: &mut [u8]) {
    let mut drained = 0;
    while drained < DRAIN_MAX {
        // SAFETY: the buffer is valid for its length, and the call does not keep it.
        let read = unsafe { libc::recv(socket, scratch.as_mut_ptr().cast(), scratch.len(), libc::MSG_DONTWAIT) };
        match usize::try_from(read) {
            Ok(read) if read > 0 => drained += read,
            _ => return,
        }
    }
}

/// Takes a waiting connection off a listener, says `words` to it and closes it. Gives whether one was waiting.
pub(crate) fn accept_and_refuse(listener: RawFd, words: &[u8]) -> bool {
    let borrowed = borrow(listener);
    let listening = SockRef::from(&borrowed);
    // The listener is a blocking one for glommio's sake; it must not block here when the client has gone.
    if listening.set_nonblocking(true).is_err() {
        return false;
    }
    let accepted = listening.accept();
    let restored = listening.set_nonblocking(false);
    debug_assert!(restored.is_ok(), "the flag that was just set can be cleared");
    match accepted {
        Ok((socket, _)) => {
            let _ = send(socket.as_raw_fd(), &[IoSlice::new(words)]);
            shutdown(socket.as_raw_fd(), false);
            true
        }
        Err(_) => false,
    }
}

/// A descriptor held for nothing but to be given up when there are no others. It is of no file: none may be opened but
/// the relay's own (src/io/confinement.rs).
pub(crate) fn spare_descriptor() -> Option<OwnedFd> {
    // SAFETY: the call takes two numbers and gives a fresh descriptor or -1.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    // SAFETY: a descriptor that is not negative was just opened here and belongs to nobody else.
    (descriptor >= 0).then(|| unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// An error in plain words, without Rust's error number.
pub(crate) fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "connection refused".to_owned(),
        Some(libc::ECONNRESET) => "the peer reset the connection".to_owned(),
        Some(libc::EPIPE) => "the peer closed the connection while we were sending".to_owned(),
        Some(libc::ETIMEDOUT) => "the peer does not answer any more".to_owned(),
        Some(libc::ENETUNREACH) => "no route to that network".to_owned(),
        Some(libc::EHOSTUNREACH) => "no route to that host".to_owned(),
        Some(libc::EADDRNOTAVAIL) => {
            "the source address is not one of this machine, or all its ports are in use".to_owned()
        }
        Some(libc::EINVAL) => "the source address does not fit the destination".to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => "no descriptor is left; raise the limit on open files".to_owned(),
        _ => {
            let text = error.to_string();
            match text.find(" (os error") {
                Some(end) => text[..end].to_owned(),
                None => text,
            }
        }
    }
}

fn borrow(socket: RawFd) -> BorrowedFd<'static> {
    debug_assert!(socket >= 0);
    // SAFETY: callers pass the descriptor of a connection or listener whose owner (the connection's task, or the accept
    // task) is alive, because a connection leaves the table before its socket is closed; the borrow ends with the call.
    unsafe { BorrowedFd::borrow_raw(socket) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_plain_words() {
        assert_eq!(words(&io::Error::from_raw_os_error(libc::ECONNREFUSED)), "connection refused");
        assert_eq!(words(&io::Error::from_raw_os_error(libc::EACCES)), "Permission denied");
    }

    #[test]
    fn a_source_address_that_is_not_ours_is_said_so() {
        let error = start_connect("127.0.0.1:9".parse().unwrap(), Some("203.0.113.7".parse().unwrap())).unwrap_err();
        assert!(words(&error).starts_with("the source address is not one of this machine"), "{error}");
    }
}
