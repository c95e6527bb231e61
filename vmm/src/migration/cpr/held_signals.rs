//! Blocks the termination signals over exec: between two binaries no handler is installed, and the
//! default action would end the VM.
//!
//! A blocked signal stays blocked over exec, so the old VMM blocks them only for commands that are
//! known to take over and to [`release`] them. A new binary that has not been rehearsed blocks them
//! itself, as its first step.

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use crate::end_signals::END_SIGNALS;

/// While this exists, the termination signals stay pending.
#[derive(Debug)]
pub struct HeldSignals {
    before: SigSet,
}

impl HeldSignals {
    /// Blocks the signals on this thread, the one that executes.
    pub fn hold() -> Self {
        let mut before = SigSet::empty();
        let held = SigSet::from_iter(END_SIGNALS);
        // It fails only for an invalid `how`.
        let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&held), Some(&mut before));
        Self { before }
    }

    /// Keeps the signals blocked until [`release`].
    pub fn until_release(self) {
        std::mem::forget(self);
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        release(&self.before);
    }
}

/// Restores the mask: signals that became pending meanwhile are delivered now.
pub fn release(before: &SigSet) {
    let held: SigSet = END_SIGNALS.into_iter().filter(|signal| !before.contains(*signal)).collect();
    let _ = pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&held), None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_termination_signals_while_held() {
        let blocked = |signal| SigSet::thread_get_mask().unwrap().contains(signal);
        let held = HeldSignals::hold();
        assert!(END_SIGNALS.into_iter().all(blocked));
        drop(held);
        assert!(!END_SIGNALS.into_iter().any(blocked));
    }
}
