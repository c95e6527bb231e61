//! Tests that the format of the CPR state matches its version: a state with every field filled was
//! encoded once, and is kept in `scenarios/golden/`.

use std::fs;

use cpr_qmp::codec::Skip;
use cpr_qmp::migration::{MigMode, MigrationParameters};
use cpr_qmp::run_state::RunState;

use super::state::{CprState, MigrationRecord};
use super::version::CPR_VERSION;
use crate::devices::DeviceRequest;
use crate::memory::RamBlockInfo;
use crate::qmp::{ConnectionState, InFlight, ServerState};
use crate::state::Envelope;
use crate::state::golden::{COMMAND, changes, folder, writes};
use crate::unix_listener::ListenerState;
use crate::vcpu::{GuestEvent, GuestEventKind};

/// Creates a state with every field filled. A new field must be added here too.
fn filled() -> CprState {
    let listener = |fd: &str| ListenerState {
        fd: fd.to_owned(),
        path: b"/run/vm/socket".to_vec(),
        device: 1,
        inode: 2,
    };
    let connection = |skipping| ConnectionState {
        fd: "qmp.client.1".to_owned(),
        id: 1,
        negotiated: true,
        pending_input: b"{".to_vec(),
        skipping: Some(skipping),
        pending_output: b"}".to_vec(),
        in_flight: Some(InFlight { id: Some("null".to_owned()) }),
        ended: true,
    };
    let kinds = [
        GuestEventKind::Device(DeviceRequest::Reset),
        GuestEventKind::Device(DeviceRequest::Exit(1)),
        GuestEventKind::TripleFault { rip: 1 },
        GuestEventKind::Failed("why".to_owned()),
    ];
    CprState {
        run_state: RunState::Running,
        ram_blocks: vec![RamBlockInfo { name: "pc.ram".to_owned(), size: 1 << 26 }],
        channel: Envelope { magic: *b"GOLDEN  ", version: 1 }.seal(b"state").1,
        qmp: ServerState {
            listener: Some(listener("qmp.listener")),
            connections: [Skip::ToBracket, Skip::ToNewline].map(connection).into(),
            last_served: 1,
            last_id: 2,
        },
        serial_listener: Some(listener("serial.listener")),
        pending_events: kinds.map(|kind| GuestEvent { vcpu: 1, kind }).into(),
        helper: Some(7),
        migration: MigrationRecord {
            events: true,
            began_ns: 1,
            paused_ns: 2,
            // Optional members need no new version.
            ..Default::default()
        },
        // An optional member needs no new version.
        pid_file: None,
        parameters: MigrationParameters {
            mode: Some(MigMode::CprExec),
            // Optional members need no new version.
            max_bandwidth: None,
            downtime_limit: None,
            cpr_exec_command: Some(vec!["vmm".to_owned()]),
            x_cpr_exec_rehearsal: Some(true),
            x_cpr_exec_rehearsal_timeout: Some(1),
            x_cpr_exec_deadline: Some(2),
            x_max_downtime: None,
        },
        // Older binaries neither write nor read it.
        msr_choice: None,
        live: None,
    }
}

#[test]
fn golden_cpr_state_is_read_and_written_the_same() {
    let path = folder().join(format!("cpr{CPR_VERSION}/filled.cbor"));
    let mut now = Vec::new();
    ciborium::into_writer(&filled(), &mut now).unwrap();
    if !path.exists() && writes() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &now).unwrap();
    }
    let golden = fs::read(&path);
    let golden = golden.unwrap_or_else(|e| panic!("{path:?}: {e}: add it: {COMMAND}"));
    let rule = format!(
        "The format of the CPR state has changed, but its version has not. Raise CPR_VERSION in \
         vmm/src/migration/cpr/version.rs, then add the golden state: {COMMAND}"
    );
    if let Some(told) = changes(&golden, &now) {
        panic!("{path:?}:\n{told}\n{rule}");
    }
    let read: Result<CprState, _> = ciborium::from_reader(golden.as_slice());
    assert_eq!(read.unwrap_or_else(|e| panic!("it cannot be read: {e}\n{rule}")), filled());
}
