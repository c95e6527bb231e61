//! Stopping the threads that act for the guest, for a process that is about to replace itself: none
//! of them may begin to act again.

use std::sync::atomic::{AtomicBool, Ordering};

/// True once this process is about to replace itself.
static HALTED: AtomicBool = AtomicBool::new(false);

/// Lets no thread become active any more. Async-signal-safe.
pub fn halt() {
    HALTED.store(true, Ordering::SeqCst);
}

/// Whether a thread is acting for the guest.
#[derive(Debug, Default)]
pub struct Activity(AtomicBool);

impl Activity {
    /// Marks the calling thread as active. Does not return once the process is
    /// [halted](self::halt).
    pub fn begin_or_park(&self) {
        self.0.store(true, Ordering::SeqCst);
        if HALTED.load(Ordering::SeqCst) {
            self.end();
            loop {
                // Until exec replaces the process.
                nix::unistd::pause();
            }
        }
    }

    /// Marks the thread as not active; it calls [`begin_or_park`](Self::begin_or_park) before it
    /// acts.
    pub fn end(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// Whether the thread is active. Async-signal-safe.
    pub fn is_active(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
