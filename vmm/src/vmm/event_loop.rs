//! The main thread's poll loop.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Once;
use std::time::Duration;

use cpr_qmp::run_state::ShutdownCause;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Vmm;
use super::rehearsing::Rehearsing;
use crate::migration::cpr::safeguard::Safeguard;
use crate::migration::transfer::TransferError;
use crate::qmp::Token;
use crate::{logging, reserve};

/// What a polled descriptor belongs to.
#[derive(Clone, Copy, Debug)]
enum Source {
    Qmp(Token),
    Machine,
    Serial,
    Signals,
    Keeper,
    Safeguard,
    Rehearsal,
    Transfer,
    Dump,
    Log,
    RemainingProcess,
}

/// Polls the descriptors one by one, with a pause if none is ready: the kernel refuses to poll more
/// descriptors than RLIMIT_NOFILE allows, and the limit may have been lowered.
fn poll_each(fds: &mut [PollFd<'_>], why: Errno) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| tracing::error!(error = %why, descriptors = fds.len(), "poll_failed"));
    let look = |fd: &mut PollFd<'_>| poll(std::slice::from_mut(fd), PollTimeout::ZERO).unwrap_or(0);
    if fds.iter_mut().map(look).sum::<i32>() == 0 {
        let _ = poll(&mut [], 10_u8);
    }
}

/// Warns once when allocations begin to fail.
fn tell_of_the_reserve() {
    static TOLD: Once = Once::new();
    if reserve::was_touched() {
        let bytes = reserve::BYTES;
        TOLD.call_once(|| tracing::warn!(bytes, "memory_reserve_used: raise RLIMIT_AS"));
    }
}

impl Vmm {
    /// Waits until a descriptor is ready or a timeout passes, and dispatches the events.
    pub(super) fn wait(&mut self) {
        tell_of_the_reserve();
        self.machine.service_clock();
        let timeout = self.timeout();
        let (mut sources, mut fds) = (Vec::new(), Vec::new());
        let mut watch = |source, fd, events| {
            sources.push(source);
            fds.push(PollFd::new(fd, events));
        };
        watch(Source::Machine, self.machine.wake().as_fd(), PollFlags::POLLIN);
        watch(Source::Signals, self.signals.as_fd(), PollFlags::POLLIN);
        if let Some(keeper) = self.finishing.as_ref().and_then(|f| f.keeper.as_ref()) {
            watch(Source::Keeper, keeper.ended().as_fd(), PollFlags::POLLIN);
        }
        if let Some(fd) = self.safeguard.as_ref().and_then(Safeguard::keeper_ended) {
            watch(Source::Safeguard, fd, PollFlags::POLLIN);
        }
        for fd in self.rehearsing.iter().flat_map(|rehearsing| rehearsing.fds()) {
            watch(Source::Rehearsal, fd, PollFlags::POLLIN);
        }
        if let Some((fd, _)) = self.transfer_awaits() {
            watch(Source::Transfer, fd, PollFlags::POLLIN);
        }
        if let Some((fd, _)) = self.receiving_awaits() {
            watch(Source::Transfer, fd, PollFlags::POLLIN);
        }
        if let Some((fd, events, _)) = self.sending_awaits() {
            watch(Source::Transfer, fd, events);
        }
        if let Some((fd, _)) = self.loading_awaits() {
            watch(Source::Transfer, fd, PollFlags::POLLIN);
        }
        if let Some(fd) = self.filling_awaits() {
            watch(Source::Transfer, fd, PollFlags::POLLIN);
        }
        for dump in &self.dumps {
            watch(Source::Dump, dump.ended(), PollFlags::POLLIN);
        }
        for fd in logging::waiting() {
            watch(Source::Log, fd, PollFlags::POLLOUT);
        }
        for leftover in &self.leftovers {
            watch(Source::RemainingProcess, leftover.fd(), PollFlags::POLLIN);
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
            Err(error) => poll_each(&mut fds, error),
        }
        let events: Vec<_> =
            fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        for (source, events) in sources.into_iter().zip(events) {
            if !events.is_empty() {
                self.ready(source, events);
            }
        }
    }

    /// Returns the time until there is something to do without any event.
    fn timeout(&self) -> PollTimeout {
        let rehearsal = self.rehearsing.as_ref().map(Rehearsing::time_left);
        let clock = self.machine.next_clock_interrupt();
        let transfer = self.transfer_awaits().map(|(_, left)| left);
        let receiving = self.receiving_awaits().and_then(|(_, left)| left);
        let sending = self.sending_awaits().and_then(|(.., left)| left);
        let loading = self.loading_awaits().and_then(|(_, left)| left);
        let updates = [rehearsal, transfer, receiving, sending, loading];
        let times =
            [self.qmp.retry_in(), self.resets.time_left(), clock].into_iter().chain(updates);
        match times.flatten().min() {
            // Rounded up: a poll that ends just before the time would be repeated without waiting.
            Some(left) => {
                let left = left + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        }
    }

    fn ready(&mut self, source: Source, events: PollFlags) {
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        match source {
            // A wake-up may also mean that the guest made room in its serial FIFO.
            Source::Machine | Source::Serial => {
                if let Some(bus) = self.machine.bus() {
                    bus.service_serial();
                }
            }
            Source::Signals => {
                if self.signals.take() {
                    self.end(0, false, ShutdownCause::HostSignal);
                }
            }
            Source::Keeper => self.finish_update(),
            // The end of an update, handled in the same round, may have dropped it.
            Source::Safeguard if self.safeguard.is_none() => {}
            Source::Safeguard => {
                // The end of an update, handled in the same round, may have replaced the keeper, or
                // dropped it.
                if self.safeguard.as_ref().is_some_and(Safeguard::has_lost_its_keeper) {
                    tracing::warn!("keeper_ended");
                    // Only the page of the keeper that has ended was offered with the guest.
                    match self.transferring.take() {
                        Some(_) => self.fail_transfer(&TransferError::KeeperEnded),
                        None => self.guard_again(),
                    }
                }
            }
            Source::Log => logging::flush(),
            Source::RemainingProcess => self.leftovers.retain(|leftover| !leftover.reap()),
            // The main loop checks these in every round.
            Source::Rehearsal | Source::Transfer | Source::Dump => {}
            Source::Qmp(token) => {
                let readable = events.intersects(PollFlags::POLLIN | gone);
                let writable = events.intersects(PollFlags::POLLOUT | gone);
                self.qmp.ready(token, readable, writable);
            }
        }
    }
}
