//! The signals that ask a VMM to end, held back over exec: between two binaries nobody has a handler
//! for them, and the default action would end the VM.
//!
//! A blocked signal stays blocked over exec, so before it this is only for commands that are known
//! to take over, and to [`release`] them. A new binary that nobody has rehearsed holds them itself,
//! first thing.

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use crate::end_signals::END_SIGNALS;

/// They wait until this is dropped, or until the new binary has handlers.
#[derive(Debug)]
pub struct HeldSignals {
    before: SigSet,
}

impl HeldSignals {
    /// Blocks them on this thread, the one that executes.
    pub fn hold() -> Self {
        let mut before = SigSet::empty();
        let held = SigSet::from_iter(END_SIGNALS);
        // It fails only on a bad `how`.
        let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&held), Some(&mut before));
        Self { before }
    }

    /// They wait until [`release`].
    pub fn until_release(self) {
        std::mem::forget(self);
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        release(&self.before);
    }
}

/// Makes the mask what it was: what came meanwhile is delivered now.
pub fn release(before: &SigSet) {
    if planted!(KeepMask) {
        return;
    }
    let held: SigSet = END_SIGNALS.into_iter().filter(|signal| !before.contains(*signal)).collect();
    let _ = pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&held), None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_wait_as_long_as_they_are_held() {
        let blocked = |signal| SigSet::thread_get_mask().unwrap().contains(signal);
        let held = HeldSignals::hold();
        assert!(END_SIGNALS.into_iter().all(blocked));
        drop(held);
        assert!(!END_SIGNALS.into_iter().any(blocked));
    }
}
