//! Saving a vCPU including the due interrupts of its LAPIC timer (see `super::lapic_timer`).

use std::os::fd::AsRawFd;
use std::time::Instant;

use kvm_bindings::{KVMIO, kvm_lapic_state, kvm_mp_state, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::access::{Access, StateCapabilities};
use super::due_timer::{self, PausedVcpu};
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
        let mut vcpu = OwnVcpu { index, fd, kickable };
        let before = vcpu.lapic()?;
        if lapic_timer::may_be_due(&before) {
            due_timer::deliver(&mut vcpu)?;
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

fn system(errno: Errno) -> kvm_ioctls::Error {
    kvm_ioctls::Error::new(errno as i32)
}

/// The vCPU of the calling thread.
struct OwnVcpu<'a> {
    index: u8,
    fd: &'a mut VcpuFd,
    kickable: &'a Kickable,
}

impl OwnVcpu<'_> {
    fn error(&self, call: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError + use<> {
        let vcpu = self.index;
        move |source| StateError::Ioctl { vcpu, call, source }
    }

    /// As [`PausedVcpu::run_with_signal`], with the signal blocked outside of `KVM_RUN`.
    fn run(&mut self) -> Result<(), kvm_ioctls::Error> {
        self.kickable.set(false);
        kick::kick_self().map_err(system)?;
        let open = SignalMask::EMPTY;
        // SAFETY: the descriptor is a vCPU's; the structure is the one the ioctl reads.
        unsafe { kvm_set_signal_mask(self.fd.as_raw_fd(), &open) }.map_err(system)?;
        let ran = match self.fd.run() {
            Err(error) if error.errno() == libc::EINTR => Ok(()),
            Err(error) => Err(error),
            // With a pending signal, KVM returns nothing else.
            Ok(_) => Err(kvm_ioctls::Error::new(libc::EPROTO)),
        };
        // SAFETY: as above; without a structure KVM_RUN keeps the thread's mask again.
        unsafe { kvm_set_signal_mask(self.fd.as_raw_fd(), std::ptr::null()) }.map_err(system)?;
        ran
    }
}

impl PausedVcpu for OwnVcpu<'_> {
    type Error = StateError;

    fn lapic(&mut self) -> Result<kvm_lapic_state, StateError> {
        self.fd.get_lapic().map_err(self.error("KVM_GET_LAPIC"))
    }

    fn events(&mut self) -> Result<kvm_vcpu_events, StateError> {
        self.fd.get_vcpu_events().map_err(self.error("KVM_GET_VCPU_EVENTS"))
    }

    fn mp_state(&mut self) -> Result<u32, StateError> {
        let mp_state = self.fd.get_mp_state().map_err(self.error("KVM_GET_MP_STATE"))?;
        Ok(mp_state.mp_state)
    }

    fn set_mp_state(&mut self, mp_state: u32) -> Result<(), StateError> {
        let error = self.error("KVM_SET_MP_STATE");
        self.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(error)
    }

    fn run_with_signal(&mut self) -> Result<(), StateError> {
        let error = self.error("KVM_RUN");
        let system = |errno: Errno| error(system(errno));
        let kick = kick::signal_set();
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&kick), Some(&mut before)).map_err(system)?;
        let ran = self.run();
        // The pending signal has done its work and must not reach the handler.
        while kick::take_pending(&kick) {}
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).map_err(system)?;
        ran.map_err(error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kvm_bindings::KVM_MP_STATE_HALTED;
    use kvm_ioctls::{Kvm, VmFd};
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;

    use super::super::lapic_timer::tests::{PERIODIC, VECTOR, lapic};
    use super::*;
    use crate::memory::{MemoryConfig, PageKind, RamBlock};

    const CURRENT_COUNT: usize = 0x390;

    /// A vCPU that has not run yet.
    struct Vcpu {
        fd: VcpuFd,
        capabilities: StateCapabilities,
        kickable: Kickable,
        _vm: (VmFd, RamBlock),
    }

    impl Vcpu {
        fn new() -> Self {
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
            Self { fd, capabilities, kickable, _vm: (vm, ram) }
        }

        /// Waits until the LAPIC is as `until` says, and returns the saved state.
        fn saved(&mut self, until: impl Fn(&kvm_lapic_state) -> bool) -> VcpuState {
            let deadline = Instant::now() + Duration::from_secs(30);
            while !until(&self.fd.get_lapic().unwrap()) {
                assert!(Instant::now() < deadline, "the timer does not count");
                std::thread::yield_now();
            }
            save(0, &mut self.fd, &self.capabilities, &self.kickable).unwrap()
        }
    }

    /// Gives `lapic` to a vCPU, waits for `until`, and returns the saved state.
    fn saved(lapic: &kvm_lapic_state, until: impl Fn(&kvm_lapic_state) -> bool) -> VcpuState {
        let mut vcpu = Vcpu::new();
        vcpu.fd.set_lapic(lapic).unwrap();
        vcpu.saved(until)
    }

    fn has_run_down(now: &kvm_lapic_state) -> bool {
        lapic_timer::register(now, CURRENT_COUNT) == 0
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
        let state = saved(&lapic(VECTOR, 1_000_000, 1_000), has_run_down);
        assert!(state.timer_is_requested());
    }

    /// Without care, one in 100 is lost: the host's timer is that of a CPU that sleeps by then.
    #[test]
    fn expired_timer_of_a_halted_vcpu_is_requested_on_another_cpu() {
        let (me, allowed) = (Pid::from_raw(0), sched_getaffinity(Pid::from_raw(0)).unwrap());
        let cpus: Vec<_> =
            (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).collect();
        let move_to = |cpu: usize| {
            let mut only = CpuSet::new();
            only.set(cpu).unwrap();
            sched_setaffinity(me, &only).unwrap();
        };
        let mut vcpu = Vcpu::new();
        for round in 0..1500 {
            move_to(cpus[0]);
            let halted = kvm_mp_state { mp_state: KVM_MP_STATE_HALTED };
            vcpu.fd.set_mp_state(halted).unwrap();
            vcpu.fd.set_lapic(&lapic(VECTOR, 1_000_000, 20_000 + round % 100 * 400)).unwrap();
            move_to(cpus[cpus.len() - 1]);
            let state = vcpu.saved(has_run_down);
            assert!(state.timer_is_requested(), "lost in round {round}");
            assert_eq!(state.mp_state, halted);
        }
    }
}
