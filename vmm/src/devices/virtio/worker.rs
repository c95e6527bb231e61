//! The thread that serves a device's queues.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::end_signals;
use crate::halt::Activity;

/// Which queues are to be looked at, and a descriptor that says that there are any.
#[derive(Debug)]
pub struct Kick {
    queues: AtomicU64,
    event: EventFd,
    ended: AtomicBool,
}

impl Kick {
    /// Creates a kick for at most 64 queues.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags)?;
        Ok(Self { queues: AtomicU64::new(0), event, ended: AtomicBool::new(false) })
    }

    /// Has the thread look at these queues, a bit each.
    pub fn queues(&self, queues: u64) {
        self.queues.fetch_or(queues, Ordering::AcqRel);
        // The counter can only be full if the thread is about to wake up anyway.
        let _ = self.event.write(1);
    }

    /// Takes the queues to look at.
    pub fn take(&self) -> u64 {
        self.queues.swap(0, Ordering::AcqRel)
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        let _ = self.event.write(1);
    }

    /// Waits until there may be something to do, at the latest until `due`; returns whether the
    /// thread is to continue.
    fn wait(&self, due: Option<Instant>) -> bool {
        let mut fds = [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        // Rounded up: a poll that ends just before the time would be repeated without waiting.
        let left = left.map(|left| left + Duration::from_millis(1));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(0) => self.queues(u64::MAX),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "device_poll_failed");
                std::thread::yield_now();
            }
        }
        // EAGAIN: it was interrupted.
        let _ = self.event.read();
        !self.ended.load(Ordering::Acquire)
    }
}

/// The thread; dropping it ends it.
#[derive(Debug)]
pub struct Worker {
    kick: Arc<Kick>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread that calls `serve` whenever `kick` was used, and at the time that `serve` has
    /// returned: it has nothing to do before the first kick.
    pub fn spawn(
        name: &str,
        kick: Arc<Kick>,
        activity: Arc<Activity>,
        serve: impl Fn() -> Option<Instant> + Send + 'static,
    ) -> io::Result<Self> {
        let kicked = kick.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            end_signals::leave_to_others();
            let mut due = None;
            while kicked.wait(due) {
                activity.begin_or_park();
                due = serve();
                activity.end();
            }
        })?;
        Ok(Self { kick, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kick.end();
        if let Some(thread) = self.thread.take() {
            // It serves each queue once at most before it looks at the flag.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use nix::sys::signal::SigSet;

    use super::*;
    use crate::end_signals::END_SIGNALS;

    #[test]
    fn end_signals_are_left_to_other_threads() {
        let kick = Arc::new(Kick::new().unwrap());
        let (sender, masks) = channel();
        let serve = move || {
            sender.send(SigSet::thread_get_mask()).unwrap();
            None
        };
        let worker = Worker::spawn("test", kick.clone(), Arc::default(), serve).unwrap();
        kick.queues(1);
        let mask = masks.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
        assert!(END_SIGNALS.into_iter().all(|signal| mask.contains(signal)));
        drop(worker);
    }
}
