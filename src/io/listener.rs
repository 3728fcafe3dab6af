//! Takes connections off one listening socket. An accept is never cancelled, since glommio would lose the connection it is
//! about to give: a listener ends by shutdown of its socket.
//!
//! When no descriptor is left it gives up a spare one, tells the clients that wait to come again later, reports and pauses;
//! it never stops for an error but its own end.

use crate::io::handler::Handler;
use crate::io::net;
use crate::io::turn::Shard;
use glommio::net::TcpListener;
use glommio::timer::Timer;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// A socket that listens already (see [`bind`](crate::io::bind::bind)).
#[derive(Debug)]
pub struct ListeningSocket {
    /// Bound and listening, blocking.
    pub socket: OwnedFd,
    /// Whether a connection begins with a handshake.
    pub implicit_tls: bool,
    /// What a client is told when no descriptor is left for it; nothing with `implicit_tls`.
    pub refusal: &'static [u8],
}

/// After so many connections in a row the others get their turn.
const ACCEPTS_IN_A_ROW: u32 = 64;

/// So many clients are refused at once when no descriptor is left.
const REFUSALS_IN_A_ROW: u32 = 64;

/// A pause between accepts that only sends the executor through its reactor once.
const BREATH: Duration = Duration::from_micros(10);

/// How long to pause after an error.
const PAUSE: Duration = Duration::from_millis(100);

/// Errors of a listener are reported at most once in this time.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Takes connections until the listener is ended.
pub(crate) async fn listen<H: Handler + 'static>(shard: Rc<Shard<H>>, index: usize, listening: ListeningSocket) {
    let ListeningSocket { socket, implicit_tls, refusal } = listening;
    let descriptor = socket.as_raw_fd();
    // SAFETY: the descriptor is given up by its owner on this line, so the listener is its only one.
    let listener = unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) };
    let mut spare = net::spare_descriptor();
    let mut in_a_row = 0;
    let mut reported = None;
    loop {
        match listener.accept().await {
            Ok(stream) => {
                shard.accepted(index, implicit_tls, stream);
                in_a_row += 1;
                if in_a_row % ACCEPTS_IN_A_ROW == 0 {
                    Timer::new(BREATH).await;
                }
            }
            Err(error) => {
                let error = io_error(error);
                match error.raw_os_error() {
                    // The end that was asked for.
                    Some(libc::EINVAL) => break,
                    // The client has gone again.
                    Some(libc::ECONNABORTED | libc::EINTR | libc::EAGAIN) => continue,
                    Some(libc::EMFILE | libc::ENFILE) => {
                        spare.take();
                        let words = if implicit_tls { b"" } else { refusal };
                        for _ in 0..REFUSALS_IN_A_ROW {
                            if !net::accept_and_refuse(descriptor, words) {
                                break;
                            }
                        }
                        spare = net::spare_descriptor();
                    }
                    _ => {}
                }
                let now = shard.clock.now().instant;
                if reported.is_none_or(|at| now.since(at) >= REPORT_EVERY) {
                    reported = Some(now);
                    let text = format!(
                        "connections cannot be accepted: {}; clients are told to come again later (raise LimitNOFILE=, or \
                         take fewer sessions)",
                        net::words(&error)
                    );
                    shard.call(|handler, now| handler.trouble(text, now));
                }
                Timer::new(PAUSE).await;
            }
        }
        if shard.has_failed() {
            break;
        }
    }
    drop(listener);
    shard.listener_ended(descriptor);
}

fn io_error(error: glommio::GlommioError<()>) -> io::Error {
    match error {
        glommio::GlommioError::IoError(error) | glommio::GlommioError::EnhancedIoError { source: error, .. } => error,
        other => other.into(),
    }
}
