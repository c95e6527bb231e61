//! The wire side of QMP, QEMU's machine protocol: message types and the incremental codec.
//!
//! Used by both ends: the server in `cpr-vmm` and the client in `cpr-harness`.
//! Source: QEMU `docs/interop/qmp-spec.rst`, `qapi/run-state.json`, `qapi/migration.json`.

pub mod address;
pub mod codec;
pub mod command;
pub mod event;
pub mod info;
pub mod message;
pub mod migration;
pub mod request;
pub mod run_state;
pub mod schema;
pub mod uri;
