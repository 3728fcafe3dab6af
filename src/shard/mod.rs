//! One shard of the relay: pure in itself ([`core::Core`]), run by src/io or by the simulator.
pub mod admin;
pub mod connections;
pub mod core;
pub mod egress;
pub mod ingress;
pub mod lease;
pub mod lifecycle;
pub mod message;
pub mod outcome;
pub mod permits;
pub mod retained;
pub mod router;
pub mod settings;
pub mod site;
pub mod storing;
pub mod tenants;
