//! The LAPIC's one-shot timer that has run down.
//!
//! KVM keeps an interrupt that is due where no ioctl reads it until the vCPU runs, and lets a timer
//! that is restored with nothing left on it fire at once, whether or not it had. So what is due is
//! made to arrive before the save ([`settle`]), and the timer is saved as stopped ([`stop`]).

use std::os::fd::AsRawFd;

use kvm_bindings::{KVMIO, kvm_lapic_state};
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::kick::{self, Kickable};

const LVT_TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
/// Periodic, TSC-deadline; one-shot is neither.
const TIMER_MODE: u32 = 0b11 << 17;

pub(super) fn register(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    let bytes = &lapic.regs[offset..offset + 4];
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte as u8))
}

/// It was started and has run down.
pub(super) fn has_run_down(lapic: &kvm_lapic_state) -> bool {
    register(lapic, LVT_TIMER) & TIMER_MODE == 0
        && register(lapic, INITIAL_COUNT) != 0
        && register(lapic, CURRENT_COUNT) == 0
}

/// Makes it one that was never started.
pub(super) fn stop(lapic: &mut kvm_lapic_state) {
    lapic.regs[INITIAL_COUNT..INITIAL_COUNT + 4].fill(0);
}

/// `struct kvm_signal_mask` with the kernel's 64 signals.
#[repr(C)]
pub(super) struct SignalMask {
    len: u32,
    set: [u8; 8],
}

impl SignalMask {
    /// Every signal counts.
    pub(super) const EMPTY: Self = Self { len: 8, set: [0; 8] };
}

nix::ioctl_write_ptr_bad!(
    kvm_set_signal_mask,
    nix::request_code_write!(KVMIO, 0x8b, size_of::<u32>()),
    SignalMask
);

/// Lets what is due arrive in the LAPIC: `KVM_RUN` with a signal pending gets as far as that and
/// executes nothing. The vCPU must be paused, with nothing unfinished.
pub(super) fn settle(fd: &mut VcpuFd, kickable: &Kickable) -> Result<(), kvm_ioctls::Error> {
    let system = |errno: Errno| kvm_ioctls::Error::new(errno as i32);
    let kick = kick::signal_set();
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&kick), Some(&mut before)).map_err(system)?;
    let settled = run_with_signal(fd, kickable);
    // What is pending then has done its work; it must not reach the handler.
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
        // With a signal pending KVM comes back with nothing else.
        Ok(_) => Err(kvm_ioctls::Error::new(libc::EPROTO)),
    };
    // SAFETY: as above; without a structure KVM_RUN keeps the thread's mask again.
    unsafe { kvm_set_signal_mask(fd.as_raw_fd(), std::ptr::null()) }.map_err(system)?;
    ran
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lapic(lvt: u32, initial: u32, current: u32) -> kvm_lapic_state {
        let mut lapic = kvm_lapic_state::default();
        for (offset, value) in
            [(LVT_TIMER, lvt), (INITIAL_COUNT, initial), (CURRENT_COUNT, current)]
        {
            for (place, byte) in lapic.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
                *place = byte as std::ffi::c_char;
            }
        }
        lapic
    }

    #[test]
    fn only_a_one_shot_timer_runs_down() {
        assert!(has_run_down(&lapic(0x40, 0xffff_ff80, 0)));
        assert!(!has_run_down(&lapic(0x40, 0, 0)));
        assert!(!has_run_down(&lapic(0x40, 1000, 0x80)));
        assert!(!has_run_down(&lapic(0x40 | 1 << 17, 1000, 0)));
        assert!(!has_run_down(&lapic(0x40 | 1 << 18, 1000, 0)));
    }

    #[test]
    fn a_stopped_timer_has_not_run_down() {
        let mut lapic = lapic(0x40, 1000, 0);
        stop(&mut lapic);
        assert!(!has_run_down(&lapic));
        assert_eq!(register(&lapic, LVT_TIMER), 0x40);
    }
}
