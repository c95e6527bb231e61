//! What a [`RawVcpu`] needs for its due timer interrupts to be delivered.

use kvm_bindings::{KVMIO, kvm_lapic_state, kvm_mp_state, kvm_vcpu_events};
use nix::errno::Errno;
use nix::request_code_write;

use super::super::due_timer::PausedVcpu;
use super::super::order::Item;
use super::super::{kick, settle};
use super::{Buffers, KVM_RUN, RawVcpu, SalvageError};
use crate::sys;

const KVM_SET_SIGNAL_MASK: u64 = request_code_write!(KVMIO, 0x8b, size_of::<u32>());
const KVM_SET_MP_STATE: u64 = request_code_write!(KVMIO, 0x99, size_of::<kvm_mp_state>());

/// A vCPU whose accesses are complete.
pub(super) struct RawPaused<'a> {
    vcpu: &'a RawVcpu,
    buffers: &'a mut Buffers,
}

impl<'a> RawPaused<'a> {
    /// # Safety
    /// As for [`RawVcpu::save`], for as long as it lives.
    pub(super) unsafe fn new(vcpu: &'a RawVcpu, buffers: &'a mut Buffers) -> Self {
        Self { vcpu, buffers }
    }

    fn get(&mut self, item: Item) -> Result<(), SalvageError> {
        // SAFETY: the promise that `new` was given.
        unsafe { self.vcpu.get(item, self.buffers) }.map(drop)
    }
}

impl PausedVcpu for RawPaused<'_> {
    type Error = SalvageError;

    fn lapic(&mut self) -> Result<kvm_lapic_state, SalvageError> {
        self.get(Item::Lapic)?;
        Ok(self.buffers.lapic)
    }

    fn events(&mut self) -> Result<kvm_vcpu_events, SalvageError> {
        self.get(Item::Events)?;
        Ok(self.buffers.events)
    }

    fn mp_state(&mut self) -> Result<u32, SalvageError> {
        self.get(Item::MpState)?;
        Ok(self.buffers.mp_state.mp_state)
    }

    fn set_mp_state(&mut self, mp_state: u32) -> Result<(), SalvageError> {
        let mp_state = kvm_mp_state { mp_state };
        let argument = (&raw const mp_state) as usize;
        // SAFETY: the structure is the one that the ioctl reads.
        let set = unsafe { sys::ioctl(self.vcpu.shared.fd(), KVM_SET_MP_STATE, argument) };
        set.map(drop).map_err(SalvageError::of("KVM_SET_MP_STATE"))
    }

    fn run_with_signal(&mut self) -> Result<(), SalvageError> {
        let fd = self.vcpu.shared.fd();
        let signal = kick::signal_number();
        let open = settle::SignalMask::EMPTY;
        let set = 1_u64 << (signal - 1);
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the structures live for the calls; the signal is blocked, so it stays pending.
        unsafe {
            (*self.vcpu.shared.run()).immediate_exit = 0;
            let me = sys::call(libc::SYS_gettid, [0; 6]).unwrap_or(0);
            let process = sys::call(libc::SYS_getpid, [0; 6]).unwrap_or(0);
            sys::call(libc::SYS_tgkill, [process, me, signal as usize, 0, 0, 0])
                .map_err(SalvageError::of("tgkill"))?;
            let ran = sys::ioctl(fd, KVM_SET_SIGNAL_MASK, (&raw const open) as usize)
                .and_then(|_| sys::ioctl(fd, KVM_RUN, 0));
            let _ = sys::ioctl(fd, KVM_SET_SIGNAL_MASK, 0);
            let timeout = (&raw const at_once) as usize;
            let wait = [(&raw const set) as usize, 0, timeout, 8, 0, 0];
            let _ = sys::call(libc::SYS_rt_sigtimedwait, wait);
            match ran {
                Err(Errno::EINTR) => Ok(()),
                Err(errno) => Err(SalvageError { call: "KVM_RUN", errno }),
                // With a pending signal, KVM returns nothing else.
                Ok(_) => Err(SalvageError { call: "KVM_RUN", errno: Errno::EPROTO }),
            }
        }
    }
}
