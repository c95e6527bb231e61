//! The thread that serves a device's queues.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

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

    /// Waits until there may be something to do; returns whether the thread is to continue.
    fn wait(&self) -> bool {
        let mut fds = [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
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
    /// Starts a thread that calls `serve` whenever `kick` was used, and never while it waits: it
    /// has nothing to do before the first kick.
    pub fn spawn(
        name: &str,
        kick: Arc<Kick>,
        activity: Arc<Activity>,
        serve: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let kicked = kick.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while kicked.wait() {
                activity.begin_or_park();
                serve();
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
