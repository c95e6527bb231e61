//! The section of a saved state that only mode `normal` writes.

use cpr_qmp::run_state::RunState;
use serde::{Deserialize, Serialize};

use crate::machine::RestoredState;
use crate::migration::host_tsc::{HostTsc, measure_rate};
use crate::state::{SavedState, SectionError};
use crate::vcpu::GuestEvent;

const NAME: &str = "normal";
const VERSION: u32 = 1;

/// What another process needs besides RAM and the machine's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NormalSection {
    /// The run state before the migration.
    pub run_state: RunState,
    /// Guest events that were not handled.
    pub pending_events: Vec<GuestEvent>,
    /// Identifies the set of MSRs from which the saved ones were chosen.
    pub msr_choice: Option<u64>,
    /// The host's TSC at the save.
    host_tsc: HostTsc,
}

impl NormalSection {
    /// Creates the section of a guest that is paused now.
    pub fn new(
        run_state: RunState,
        pending_events: Vec<GuestEvent>,
        msr_choice: Option<u64>,
    ) -> Self {
        Self { run_state, pending_events, msr_choice, host_tsc: HostTsc::now() }
    }

    /// Adds the section to a state.
    pub fn put(&self, to: &mut SavedState) {
        to.put(NAME, 0, VERSION, self);
    }

    /// Takes the section from a state.
    pub fn take(from: &mut SavedState) -> Result<Self, SectionError> {
        from.take(NAME, 0, VERSION)
    }

    /// Adjusts the guest's TSC in `state` if this is another host, or another boot of it: as with
    /// the guest's other clocks, the time in between counts.
    pub fn adjust_tsc(&self, state: &mut RestoredState) {
        if let Some(growth) = self.host_tsc.offset_growth(&HostTsc::now(), measure_rate) {
            let adjusted = state.grow_tsc_offsets(growth);
            tracing::info!(adjusted, "normal_on_another_host");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::DeviceRequest;
    use crate::state::golden::{COMMAND, changes, folder, writes};
    use crate::vcpu::GuestEventKind;

    /// A section with every field filled. A new field must be added here too.
    fn filled() -> NormalSection {
        NormalSection {
            run_state: RunState::Running,
            pending_events: vec![GuestEvent {
                vcpu: 1,
                kind: GuestEventKind::Device(DeviceRequest::Reset),
            }],
            msr_choice: Some(1),
            host_tsc: HostTsc::filled(),
        }
    }

    #[test]
    fn golden_section_is_read_and_written_the_same() {
        let path = folder().join(format!("normal{VERSION}/section.cbor"));
        let mut now = Vec::new();
        ciborium::into_writer(&filled(), &mut now).unwrap();
        if !path.exists() && writes() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &now).unwrap();
        }
        let golden = std::fs::read(&path);
        let golden = golden.unwrap_or_else(|e| panic!("{path:?}: {e}: add it: {COMMAND}"));
        let rule = format!("Raise VERSION in section.rs, then add the golden section: {COMMAND}");
        if let Some(told) = changes(&golden, &now) {
            panic!("{path:?}:\n{told}\n{rule}");
        }
        let read: Result<NormalSection, _> = ciborium::from_reader(golden.as_slice());
        assert_eq!(read.unwrap_or_else(|e| panic!("it cannot be read: {e}\n{rule}")), filled());
    }
}
