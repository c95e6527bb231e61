//! The section of a saved state that only `cpr-reboot` writes.

use std::path::Path;

use cpr_qmp::run_state::RunState;
use serde::{Deserialize, Serialize};

use super::error::RebootLoadError;
use crate::machine::RestoredState;
use crate::memory::{RamBlock, Stamp};
use crate::migration::host_tsc::{HostTsc, measure_rate};
use crate::state::SavedState;
use crate::vcpu::GuestEvent;

const NAME: &str = "reboot";
const VERSION: u32 = 1;

/// What a later process needs besides the machine's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebootSection {
    /// The run state before the save.
    pub run_state: RunState,
    /// Guest events that were not handled.
    pub pending_events: Vec<GuestEvent>,
    /// Identifies the set of MSRs from which the saved ones were chosen.
    pub msr_choice: Option<u64>,
    /// The RAM file's time of modification.
    dated: Stamp,
    /// A fingerprint of a sample of RAM, little-endian (see [`RamBlock::sample`]).
    sample: [u8; 16],
    /// The host's TSC at the save.
    host_tsc: HostTsc,
}

impl RebootSection {
    /// Creates the section of a guest with this RAM, which was dated last.
    pub fn new(
        run_state: RunState,
        pending_events: Vec<GuestEvent>,
        msr_choice: Option<u64>,
        dated: Stamp,
        sample: u128,
    ) -> Self {
        let sample = sample.to_le_bytes();
        Self { run_state, pending_events, msr_choice, dated, sample, host_tsc: HostTsc::now() }
    }

    /// Adds the section to a state.
    pub fn put(&self, to: &mut SavedState) {
        to.put(NAME, 0, VERSION, self);
    }

    /// Takes the section from the state in the file at `path`.
    pub fn take(from: &mut SavedState, path: &Path) -> Result<Self, RebootLoadError> {
        let other = |source| RebootLoadError::OtherMode { path: path.to_owned(), source };
        from.take(NAME, 0, VERSION).map_err(other)
    }

    /// Adjusts the guest's TSC in `state` if the host was rebooted since the save: as with the
    /// guest's other clocks, the time in between counts.
    pub fn adjust_tsc(&self, state: &mut RestoredState) {
        if let Some(growth) = self.host_tsc.offset_growth(&HostTsc::now(), measure_rate) {
            let adjusted = state.grow_tsc_offsets(growth);
            tracing::info!(adjusted, "reboot_of_the_host");
        }
    }

    /// Checks that the state, from the file at `path`, belongs to the current content of `ram`.
    pub fn check_ram(&self, ram: &RamBlock, path: &Path) -> Result<(), RebootLoadError> {
        let found = ram.dated()?;
        if found != self.dated {
            let (path, saved) = (path.to_owned(), self.dated);
            return Err(RebootLoadError::Modified { path, found, saved });
        }
        match ram.sample()?.to_le_bytes() == self.sample {
            true => Ok(()),
            false => Err(RebootLoadError::Differs { path: path.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::DeviceRequest;
    use crate::memory::{MemoryConfig, PageKind};
    use crate::state::golden::{COMMAND, changes, folder, writes};
    use crate::vcpu::GuestEventKind;

    const SMALL: MemoryConfig = MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };

    fn saved(ram: &RamBlock) -> RebootSection {
        let dated = ram.date().unwrap();
        RebootSection::new(RunState::Running, Vec::new(), None, dated, ram.sample().unwrap())
    }

    /// A section with every field filled. A new field must be added here too.
    fn filled() -> RebootSection {
        RebootSection {
            run_state: RunState::Running,
            pending_events: vec![GuestEvent {
                vcpu: 1,
                kind: GuestEventKind::Device(DeviceRequest::Reset),
            }],
            msr_choice: Some(1),
            dated: Stamp::from(Duration::new(2, 3)),
            sample: [4; 16],
            host_tsc: HostTsc::filled(),
        }
    }

    #[test]
    fn golden_section_is_read_and_written_the_same() {
        let path = folder().join(format!("reboot{VERSION}/section.cbor"));
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
        let read: Result<RebootSection, _> = ciborium::from_reader(golden.as_slice());
        assert_eq!(read.unwrap_or_else(|e| panic!("it cannot be read: {e}\n{rule}")), filled());
    }

    #[test]
    fn section_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let ram = RamBlock::open(SMALL, &dir.path().join("ram"), true).unwrap();
        let (section, mut state) = (saved(&ram), SavedState::default());
        section.put(&mut state);
        assert_eq!(RebootSection::take(&mut state, Path::new("state")).unwrap(), section);
        let missing = RebootSection::take(&mut state, Path::new("state")).unwrap_err();
        insta::assert_snapshot!(missing, @"cannot load file:state: the saved state has no section reboot.0: it was not saved in mode cpr-reboot");
    }

    #[test]
    fn only_unchanged_ram_fits() {
        let dir = tempfile::tempdir().unwrap();
        let ram = RamBlock::open(SMALL, &dir.path().join("ram"), true).unwrap();
        let section = saved(&ram);
        let check = || section.check_ram(&ram, Path::new("state"));
        check().unwrap();
        ram.claim().unwrap();
        assert!(matches!(check(), Err(RebootLoadError::Modified { .. })));
        let section = saved(&ram);
        let check = || section.check_ram(&ram, Path::new("state"));
        check().unwrap();
        ram.memory().write_obj(1_u8, GuestAddress(0x12_3456)).unwrap();
        // A write through a mapping may have changed the time.
        let file = std::fs::File::from(ram.fd().unwrap().try_clone_to_owned().unwrap());
        section.dated.set(&file).unwrap();
        assert!(matches!(check(), Err(RebootLoadError::Differs { .. })));
    }
}
