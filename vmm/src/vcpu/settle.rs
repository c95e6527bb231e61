//! Saving a vCPU including the due interrupts of its LAPIC timer (see `super::lapic_timer`).

use std::os::fd::AsRawFd;
use std::time::Instant;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::access::{Access, StateCapabilities};
use super::kick::{self, Kickable};
use super::lapic_timer;
use super::state::VcpuState;
use super::state_error::StateError;

/// Maximum attempts: a timer that ticks faster than it can be saved is then saved as it is.
pub(super) const TRIES: u32 = 3;

/// Saves everything, on the vCPU's own thread. The guest executes nothing, but a due interrupt may
/// arrive. The vCPU must be paused, with no access left to complete.
pub(super) fn save(
    index: u8,
    fd: &mut VcpuFd,
    capabilities: &StateCapabilities,
    kickable: &Kickable,
) -> Result<VcpuState, StateError> {
    // No seam: a saved state does not tell that its timer was due.
    if planted!(OneShotTwice) {
        return Access { index, fd, capabilities }.save();
    }
    let mut tries = 0;
    loop {
        let began = Instant::now();
        let error = |call| move |source| StateError::Ioctl { vcpu: index, call, source };
        let before = fd.get_lapic().map_err(error("KVM_GET_LAPIC"))?;
        if lapic_timer::may_be_due(&before) {
            settle(fd, kickable).map_err(error("KVM_RUN"))?;
        }
        let mut state = Access { index, fd, capabilities }.save()?;
        tries += 1;
        if state.timer_is_settled(&before, began.elapsed()) || tries == TRIES {
            state.normalize_for_restore();
            return Ok(state);
        }
    }
}

/// `struct kvm_signal_mask` with the kernel's 64 signals.
#[repr(C)]
pub(super) struct SignalMask {
    len: u32,
    set: [u8; 8],
}

impl SignalMask {
    /// Blocks no signal.
    pub(super) const EMPTY: Self = Self { len: 8, set: [0; 8] };
}

nix::ioctl_write_ptr_bad!(
    kvm_set_signal_mask,
    nix::request_code_write!(KVMIO, 0x8b, size_of::<u32>()),
    SignalMask
);

/// Delivers due timer interrupts to the LAPIC: `KVM_RUN` with a pending signal does only that and
/// executes nothing. The vCPU must be paused, with no access left to complete.
fn settle(fd: &mut VcpuFd, kickable: &Kickable) -> Result<(), kvm_ioctls::Error> {
    let system = |errno: Errno| kvm_ioctls::Error::new(errno as i32);
    let kick = kick::signal_set();
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&kick), Some(&mut before)).map_err(system)?;
    let settled = run_with_signal(fd, kickable);
    // The pending signal has done its work and must not reach the handler.
    while kick::take_pending(&kick) {}
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).map_err(system)?;
    settled
}

fn run_with_signal(fd: &mut VcpuFd, kickable: &Kickable) -> Result<(), kvm_ioctls::Error> {
    let system = |errno: Errno| kvm_ioctls::Error::new(errno as i32);
    kickable.set(false);
    kick::kick_self().map_err(system)?;
    let open = SignalMask::EMPTY;
    // SAFETY: the descriptor is a vCPU's; the structure is the one the ioctl reads.
    unsafe { kvm_set_signal_mask(fd.as_raw_fd(), &open) }.map_err(system)?;
    let ran = match fd.run() {
        Err(error) if error.errno() == libc::EINTR => Ok(()),
        Err(error) => Err(error),
        // With a pending signal, KVM returns nothing else.
        Ok(_) => Err(kvm_ioctls::Error::new(libc::EPROTO)),
    };
    // SAFETY: as above; without a structure KVM_RUN keeps the thread's mask again.
    unsafe { kvm_set_signal_mask(fd.as_raw_fd(), std::ptr::null()) }.map_err(system)?;
    ran
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kvm_bindings::kvm_lapic_state;
    use kvm_ioctls::Kvm;

    use super::super::lapic_timer::tests::{PERIODIC, VECTOR, lapic};
    use super::*;
    use crate::memory::{MemoryConfig, PageKind, RamBlock};

    const CURRENT_COUNT: usize = 0x390;

    /// Gives `lapic` to a vCPU that has not run yet, waits for `until`, and returns the saved
    /// state.
    fn saved(lapic: &kvm_lapic_state, until: impl Fn(&kvm_lapic_state) -> bool) -> VcpuState {
        kick::install_kick_handler().unwrap();
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        let memory = MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };
        let ram = RamBlock::create(memory).unwrap();
        ram.register(&vm).unwrap();
        vm.create_irq_chip().unwrap();
        let mut fd = vm.create_vcpu(0).unwrap();
        fd.set_cpuid2(&crate::vcpu::cpuid_for(&kvm, 0, 1).unwrap()).unwrap();
        let capabilities = StateCapabilities::ask(&kvm, &vm, &fd, None).unwrap();
        let kickable = Kickable::new(fd.get_kvm_run());
        fd.set_lapic(lapic).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !until(&fd.get_lapic().unwrap()) {
            assert!(Instant::now() < deadline, "the timer does not count");
            std::thread::yield_now();
        }
        save(0, &mut fd, &capabilities, &kickable).unwrap()
    }

    #[test]
    fn due_tick_is_in_the_saved_state() {
        const PERIOD: u32 = 20_000_000;
        // Restored with one count left, it ticks at once and starts over.
        let ticked = |now: &kvm_lapic_state| lapic_timer::register(now, CURRENT_COUNT) > PERIOD / 2;
        let state = saved(&lapic(VECTOR | PERIODIC, PERIOD, 1), ticked);
        assert!(state.timer_is_requested());
    }

    #[test]
    fn a_timer_that_has_not_ticked_requests_nothing() {
        const PERIOD: u32 = 2_000_000_000;
        let state = saved(&lapic(VECTOR | PERIODIC, PERIOD, PERIOD), |_| true);
        assert!(!state.timer_is_requested());
    }

    #[test]
    fn expired_one_shot_timer_is_requested() {
        let down = |now: &kvm_lapic_state| lapic_timer::register(now, CURRENT_COUNT) == 0;
        let state = saved(&lapic(VECTOR, 1_000_000, 1_000), down);
        assert!(state.timer_is_requested());
    }
}
