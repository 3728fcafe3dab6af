//! The machine: the only place that uses glommio, sockets, TLS, DNS and clocks.
pub mod handler;
