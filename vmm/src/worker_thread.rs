//! Threads that do work for the main thread. No signal is delivered to them.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Makes an eventfd readable on drop: when the thread that owns it ends, however it ends.
pub struct SignalEnd(pub Arc<EventFd>);

impl Drop for SignalEnd {
    fn drop(&mut self) {
        // Adding one to a counter at zero cannot fail.
        let _ = self.0.write(1);
    }
}

/// Starts a thread with all signals blocked.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let mut mask = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
    thread
}
