//! To be filled.
pub mod client;
mod client_config;
mod client_content;
mod client_event;
mod client_exchange;
#[cfg(test)]
mod client_tests;
mod client_transaction;
pub mod peer;
