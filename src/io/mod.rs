//! The machine: the only place that uses glommio, sockets, TLS, DNS and clocks.
//!
//! [`handler`] is the border: a pure `Handler` on one side, and on the other [`executor`], which runs it on one core. A
//! handler's commands are carried out in turn.rs; connections wait in connection_task.rs, disks in disk.rs.
pub mod acme_alpn;
mod alarm;
pub mod bind;
pub mod blocking;
pub mod certificate;
pub mod clock;
pub mod confinement;
mod connection;
mod connection_task;
mod disk;
mod disk_helper;
pub mod dns;
#[cfg(test)]
mod dns_tests;
pub mod dnssec;
pub mod executor;
pub mod handler;
mod listener;
pub mod mailbox;
mod net;
pub mod own_certificate;
pub mod peer_proof;
pub mod presented;
pub mod priority;
pub mod privileges;
pub mod probe;
mod ring;
pub mod secret_file;
pub mod tls;
mod tls_link;
mod turn;
mod unreadable;
mod waker;

#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
