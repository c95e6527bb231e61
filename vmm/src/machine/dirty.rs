//! Which pages of RAM the guest has written (KVM API, 4.8 `KVM_GET_DIRTY_LOG`).

use super::{Machine, MachineError};
use crate::memory::PageSet;

impl Machine {
    /// Returns the pages that were written since the last call, and logs those from now on. After a
    /// reset, which creates another VM, and at the first call, these are all pages.
    pub fn take_dirty_pages(&self) -> Result<PageSet, MachineError> {
        let Some(part) = &self.kvm_part else { return Ok(PageSet::all(self.ram.size())) };
        if !part.logs_dirty_pages.get() {
            if let Err(error) = self.ram.log_dirty_pages(&part.vm, true) {
                // Of several memslots, some may have been changed.
                let _ = self.ram.log_dirty_pages(&part.vm, false);
                return Err(error.into());
            }
            part.logs_dirty_pages.set(true);
            return Ok(PageSet::all(self.ram.size()));
        }
        Ok(self.ram.take_dirty_pages(&part.vm)?)
    }

    /// Ends the log, which slows the guest down.
    pub fn forget_dirty_pages(&self) {
        // Also after a reset, which has ended KVM's log.
        self.ram.dma_log().set(false);
        let Some(part) = &self.kvm_part else { return };
        if part.logs_dirty_pages.replace(false)
            && let Err(error) = self.ram.log_dirty_pages(&part.vm, false)
        {
            tracing::warn!(%error, "dirty_log_stays");
        }
    }
}
