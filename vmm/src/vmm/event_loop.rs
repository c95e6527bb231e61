//! What the main thread waits for.

use std::os::fd::{AsFd, BorrowedFd};

use cpr_qmp::run_state::ShutdownCause;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Vmm;
use super::rehearsing::Rehearsing;
use crate::qmp::Token;

/// Whose descriptor it is.
#[derive(Clone, Copy, Debug)]
enum Source {
    Qmp(Token),
    Machine,
    Serial,
    Signals,
    Helper,
    Rehearsal,
    Leftover,
}

impl Vmm {
    /// Waits until something happens, and tells those it happened to.
    pub(super) fn wait(&mut self) {
        let timeout = self.rehearsing.as_ref().map_or(PollTimeout::NONE, Rehearsing::timeout);
        let (mut sources, mut fds) = (Vec::new(), Vec::new());
        let mut watch = |source, fd, events| {
            sources.push(source);
            fds.push(PollFd::new(fd, events));
        };
        watch(Source::Machine, self.machine.wake().as_fd(), PollFlags::POLLIN);
        watch(Source::Signals, self.signals.as_fd(), PollFlags::POLLIN);
        if let Some(helper) = self.finishing.as_ref().and_then(|f| f.helper.as_ref()) {
            watch(Source::Helper, helper.ended().as_fd(), PollFlags::POLLIN);
        }
        for fd in self.rehearsing.iter().flat_map(|rehearsing| rehearsing.fds()) {
            watch(Source::Rehearsal, fd, PollFlags::POLLIN);
        }
        for leftover in &self.leftovers {
            watch(Source::Leftover, leftover.fd(), PollFlags::POLLIN);
        }
        for interest in self.qmp.interests() {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, interest.read);
            events.set(PollFlags::POLLOUT, interest.write);
            watch(Source::Qmp(interest.token), interest.fd, events);
        }
        for (fd, events) in self.machine.bus().map(|b| b.serial().poll_fds()).unwrap_or_default() {
            // SAFETY: the serial port closes its descriptors on this thread only, in `service`.
            watch(Source::Serial, unsafe { BorrowedFd::borrow_raw(fd) }, events);
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => tracing::error!(%error, "poll_failed"),
        }
        let events: Vec<_> =
            fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        for (source, events) in sources.into_iter().zip(events) {
            if !events.is_empty() {
                self.ready(source, events);
            }
        }
    }

    fn ready(&mut self, source: Source, events: PollFlags) {
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        match source {
            // A wake-up may also mean that the guest has made room in its serial FIFO.
            Source::Machine | Source::Serial => {
                if let Some(bus) = self.machine.bus() {
                    bus.serial().service();
                }
            }
            Source::Signals => {
                if self.signals.take() {
                    self.end(0, false, ShutdownCause::HostSignal);
                }
            }
            Source::Helper => self.finish_update(),
            // The main loop looks at it in every round.
            Source::Rehearsal => {}
            Source::Leftover => self.leftovers.retain(|leftover| !leftover.reap()),
            Source::Qmp(token) => {
                let readable = events.intersects(PollFlags::POLLIN | gone);
                let writable = events.intersects(PollFlags::POLLOUT | gone);
                self.qmp.ready(token, readable, writable);
            }
        }
    }
}
