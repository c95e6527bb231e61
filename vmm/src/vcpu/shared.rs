//! State that a vCPU's thread shares with the code that continues the guest after this process has
//! died, or when it crashes and replaces itself.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};

use kvm_bindings::{KVM_EXIT_UNKNOWN, kvm_run};

use super::events::GuestEventKind;
use super::kick;
use crate::devices::DeviceRequest;
use crate::devices::shadow::Access;
use crate::halt::{self, Activity};
use crate::sys;

const RESET: u64 = 1;
const EXIT: u64 = 2;
const TRIPLE_FAULT: u64 = 3;
const FAILED: u64 = 4;
const POWER_OFF: u64 = 5;
/// First bit of an exit status.
const STATUS_SHIFT: u32 = 8;

/// The shared state of a vCPU. Each word is consistent at every instant.
#[derive(Debug)]
pub struct VcpuShared {
    fd: RawFd,
    run: AtomicPtr<kvm_run>,
    thread: AtomicI32,
    /// Whether the thread may be in the guest.
    activity: Activity,
    /// Progress of the last exit's access.
    pub access: Access,
    /// The event that stopped the vCPU, and its RIP.
    event: AtomicU64,
    rip: AtomicU64,
}

impl VcpuShared {
    /// Creates the state of the vCPU with this descriptor; `run` is mapped while its thread lives.
    pub fn new(fd: RawFd, run: *mut kvm_run) -> Self {
        Self {
            fd,
            run: AtomicPtr::new(run),
            thread: AtomicI32::new(0),
            activity: Activity::default(),
            access: Access::default(),
            event: AtomicU64::new(0),
            rip: AtomicU64::new(0),
        }
    }

    /// The descriptor.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// The structure that it shares with KVM.
    pub fn run(&self) -> *mut kvm_run {
        self.run.load(Ordering::Relaxed)
    }

    /// Records the calling thread as the one that runs the vCPU.
    pub(super) fn set_current_thread(&self) {
        self.thread.store(nix::unistd::gettid().as_raw(), Ordering::Release);
    }

    /// Marks the thread as ended, and the descriptor as closed with it.
    pub(super) fn end(&self) {
        self.run.store(std::ptr::null_mut(), Ordering::SeqCst);
        self.mark_outside();
    }

    /// Whether the vCPU's thread has ended.
    pub fn has_ended(&self) -> bool {
        self.run.load(Ordering::SeqCst).is_null()
    }

    /// Marks the thread as out of the guest, waiting for a request.
    pub(super) fn mark_outside(&self) {
        self.activity.end();
    }

    /// Marks the thread as active. Does not return once the process is about to replace itself.
    pub(super) fn mark_active_or_park(&self) {
        self.activity.begin_or_park();
    }

    /// Prepares for `KVM_RUN`: the last exit has been handled. Does not return once the process is
    /// about to replace itself.
    pub(super) fn enter(&self) {
        self.mark_active_or_park();
        // Reset the reason first: the next access must not be taken for the last one.
        // SAFETY: the mapping is there for as long as this thread; KVM only writes this member.
        unsafe { (&raw mut (*self.run()).exit_reason).write_volatile(KVM_EXIT_UNKNOWN) };
        self.access.begin();
    }

    /// Records the event that stops the vCPU.
    pub(super) fn record_event(&self, kind: &GuestEventKind) {
        let event = match kind {
            GuestEventKind::Device(DeviceRequest::Reset) => RESET,
            GuestEventKind::Device(DeviceRequest::PowerOff) => POWER_OFF,
            GuestEventKind::Device(DeviceRequest::Exit(status)) => {
                EXIT | u64::from(*status) << STATUS_SHIFT
            }
            GuestEventKind::TripleFault { rip } => {
                self.rip.store(*rip, Ordering::Relaxed);
                TRIPLE_FAULT
            }
            GuestEventKind::Failed(_) => FAILED,
        };
        self.event.store(event, Ordering::Release);
    }

    /// Returns the event as two words; 0 if there is none. Async-signal-safe.
    pub fn event(&self) -> [u64; 2] {
        [self.event.load(Ordering::Acquire), self.rip.load(Ordering::Relaxed)]
    }

    /// Decodes the words of [`VcpuShared::event`].
    pub fn event_of([event, rip]: [u64; 2]) -> Option<GuestEventKind> {
        Some(match event & ((1 << STATUS_SHIFT) - 1) {
            RESET => GuestEventKind::Device(DeviceRequest::Reset),
            POWER_OFF => GuestEventKind::Device(DeviceRequest::PowerOff),
            EXIT => GuestEventKind::Device(DeviceRequest::Exit((event >> STATUS_SHIFT) as u8)),
            TRIPLE_FAULT => GuestEventKind::TripleFault { rip },
            FAILED => GuestEventKind::Failed("it failed before its process ended".to_owned()),
            _ => return None,
        })
    }

    /// Kicks the thread out of the guest for good. Async-signal-safe.
    fn halt(&self) {
        let arguments = [
            std::process::id() as usize,
            self.thread.load(Ordering::Acquire) as usize,
            kick::signal_number() as usize,
            0,
            0,
            0,
        ];
        // SAFETY: numbers only; it does not matter if the thread has ended.
        let _ = unsafe { sys::call(libc::SYS_tgkill, arguments) };
    }
}

/// Gets every vCPU of this process out of the guest for good. Returns true if all of them left
/// within `milliseconds`. Async-signal-safe; must not be called on a vCPU's thread.
pub fn halt<'a>(vcpus: impl Iterator<Item = &'a VcpuShared> + Clone, milliseconds: u32) -> bool {
    halt::halt();
    let until = sys::monotonic_ns() + u64::from(milliseconds) * 1_000_000;
    let mut kicks = Kicks::default();
    loop {
        let mut inside = vcpus.clone().filter(|vcpu| vcpu.activity.is_active()).peekable();
        if inside.peek().is_none() {
            return true;
        }
        let now = sys::monotonic_ns();
        if now > until {
            return false;
        }
        // Repeatedly: a thread may not yet have checked the flag at the last kick.
        if kicks.are_due(now) {
            inside.for_each(VcpuShared::halt);
        }
        sys::yield_now();
    }
}

/// Rate limit for kicks. Each kick is a signal that is queued until its thread runs, and all
/// signals queued for a user count against one limit (`RLIMIT_SIGPENDING`): sending them without a
/// pause would take the timers from every other VMM of that user.
#[derive(Default)]
struct Kicks {
    next_ns: u64,
}

impl Kicks {
    /// Time between kicks, in nanoseconds.
    const PAUSE_NS: u64 = 1_000_000;

    /// Whether kicks are due at `now_ns`.
    fn are_due(&mut self, now_ns: u64) -> bool {
        let due = now_ns >= self.next_ns;
        if due {
            self.next_ns = now_ns + Self::PAUSE_NS;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kicks_are_sent_once_a_millisecond() {
        let mut kicks = Kicks::default();
        let looks = (0..10_000_u64).map(|look| 7_000_000 + look * 1000);
        assert_eq!(looks.filter(|now| kicks.are_due(*now)).count(), 10);
    }
}
