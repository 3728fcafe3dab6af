//! The protocol, pure: bytes and the time go in; replies, questions to the owner and deadlines come out. Nothing here
//! does IO or reads a clock.

pub mod client;
mod client_config;
mod client_content;
mod client_event;
mod client_exchange;
#[cfg(test)]
mod client_tests;
mod client_transaction;
pub mod command;
mod content;
pub mod data;
pub mod extensions;
pub mod line;
pub mod parameters;
pub mod peer;
pub mod proxy;
pub mod replies;
pub mod sasl;
pub mod scram;
pub mod server;
mod server_auth;
pub mod strangers;
pub mod transaction;
