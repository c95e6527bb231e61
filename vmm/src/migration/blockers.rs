//! Reasons that block an update, worded for `query-migrate` (`blocked-reasons`).

use cpr_qmp::migration::MigMode;

use crate::memory::RamBlock;

/// Returns every reason why this machine cannot be handed over in `mode`; empty if it can.
pub fn blocked_reasons(ram: &RamBlock, mode: MigMode) -> Vec<String> {
    let mut reasons = Vec::new();
    let name = ram.name();
    if mode == MigMode::CprReboot {
        if !ram.outlives_process() {
            let memory = match ram.fd() {
                Some(_) => "in a memfd, or in a file that was removed",
                None => "private memory",
            };
            reasons.push(format!(
                "RAM block {name} is {memory}, which ends with this process: start the VM with \
                 --memory SIZE,file=PATH"
            ));
        }
    } else if mode != MigMode::Normal && ram.fd().is_none() {
        reasons.push(format!(
            "RAM block {name} is not shared and would be lost by exec: start the VM with share=on"
        ));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::memory::{MemoryConfig, PageKind};

    const SHARED: MemoryConfig =
        MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };

    #[rstest]
    #[case(true, 0)]
    #[case(false, 1)]
    fn only_private_ram_blocks_an_update(#[case] share: bool, #[case] reasons: usize) {
        let ram = RamBlock::create(MemoryConfig { share, ..SHARED }).unwrap();
        for mode in [MigMode::CprExec, MigMode::CprTransfer] {
            assert_eq!(blocked_reasons(&ram, mode).len(), reasons);
        }
        assert_eq!(blocked_reasons(&ram, MigMode::CprReboot).len(), 1);
    }

    #[test]
    fn ram_in_a_file_blocks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let ram = RamBlock::open(SHARED, &dir.path().join("ram"), true).unwrap();
        for mode in [MigMode::CprExec, MigMode::CprTransfer, MigMode::CprReboot] {
            assert_eq!(blocked_reasons(&ram, mode), [""; 0]);
        }
    }
}
