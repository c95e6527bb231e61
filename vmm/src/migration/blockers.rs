//! Reasons that block an update, worded for `query-migrate` (`blocked-reasons`).

use crate::memory::RamBlock;

/// Returns every reason why this machine cannot be handed over; empty if it can.
pub fn blocked_reasons(ram: &RamBlock) -> Vec<String> {
    let mut reasons = Vec::new();
    if ram.fd().is_none() {
        reasons.push(format!(
            "RAM block {} is not shared and would be lost by exec: start the VM with share=on",
            ram.name()
        ));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::memory::{MemoryConfig, PageKind};

    #[rstest]
    #[case(true, 0)]
    #[case(false, 1)]
    fn only_private_ram_blocks_an_update(#[case] share: bool, #[case] reasons: usize) {
        let config = MemoryConfig { size: 4 << 20, share, pages: PageKind::Small };
        let ram = RamBlock::create(config).unwrap();
        assert_eq!(blocked_reasons(&ram).len(), reasons);
    }
}
