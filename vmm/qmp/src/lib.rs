//! The wire side of QMP, QEMU's machine protocol: message types and the incremental codec.
//!
//! Used by both ends: the server in `cpr-vmm` and the client in `cpr-harness`.
//! Source: QEMU `docs/interop/qmp-spec.rst`, `qapi/run-state.json`, `qapi/migration.json`.

pub mod message;
pub mod migration;
pub mod run_state;
