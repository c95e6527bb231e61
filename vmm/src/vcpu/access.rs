//! Saving and restoring a vCPU's state with KVM's ioctls.

use std::os::fd::AsRawFd;

use kvm_bindings::{
    CpuId, KVM_CAP_SREGS2, KVM_CAP_XSAVE2, KVM_MAX_CPUID_ENTRIES, KVM_VCPU_TSC_CTRL,
    KVM_VCPU_TSC_OFFSET, Msrs, Xsave, kvm_device_attr, kvm_msr_entry, kvm_sregs2, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::known_msrs::KnownMsrs;
use super::order::{self, Item};
use super::state::{Sregs2Tail, VcpuState};
use super::state_error::StateError;
use super::{lapic_timer, msrs};
use crate::constraint::in_order;

const SREGS2_PDPTRS_VALID: u64 = 1;

/// What this host's KVM offers for saving a vCPU, queried once.
#[derive(Clone, Debug)]
pub struct StateCapabilities {
    pub(super) xsave_extra: usize,
    pub(super) sregs2: bool,
    pub(super) tsc_offset: bool,
    pub(super) msrs: KnownMsrs,
}

mod ioctls {
    use kvm_bindings::{KVMIO, kvm_device_attr, kvm_sregs2};
    nix::ioctl_read!(kvm_get_sregs2, KVMIO, 0xcc, kvm_sregs2);
    nix::ioctl_write_ptr!(kvm_set_sregs2, KVMIO, 0xcd, kvm_sregs2);
    // kvm-ioctls has these three for the vCPUs of other architectures only.
    nix::ioctl_write_ptr!(kvm_set_device_attr, KVMIO, 0xe1, kvm_device_attr);
    nix::ioctl_write_ptr!(kvm_get_device_attr, KVMIO, 0xe2, kvm_device_attr);
    nix::ioctl_write_ptr!(kvm_has_device_attr, KVMIO, 0xe3, kvm_device_attr);
}

impl StateCapabilities {
    /// Queries KVM with a vCPU that has not run yet. With a `saved` state, its MSRs are used as
    /// they are: probing all takes long, see [`StateCapabilities::probe_missing_msrs`].
    pub fn ask(
        kvm: &Kvm,
        vm: &VmFd,
        vcpu: &VcpuFd,
        saved: Option<&VcpuState>,
    ) -> Result<Self, StateError> {
        let xsave = vm.check_extension_raw(KVM_CAP_XSAVE2.into()).max(0) as usize;
        // SAFETY: the descriptor is a vCPU's; HAS does not touch the attribute's address.
        let tsc_offset = unsafe {
            ioctls::kvm_has_device_attr(vcpu.as_raw_fd(), &tsc_offset_attr(&mut 0)).is_ok()
        };
        let msrs = match saved {
            Some(saved) => KnownMsrs::of_saved(saved.msr_indices(), saved.cpuid.clone()),
            None => KnownMsrs::all(msrs::settable(kvm, vcpu, tsc_offset)?),
        };
        Ok(Self {
            xsave_extra: xsave.saturating_sub(size_of::<kvm_xsave>()).div_ceil(size_of::<u32>()),
            sregs2: kvm.check_extension_raw(KVM_CAP_SREGS2.into()) > 0,
            tsc_offset,
            msrs,
        })
    }

    /// Searches once for MSRs that the binary which saved the state did not know; the next save
    /// includes them. Call it while the guest runs: it creates a VM for the search.
    pub fn probe_missing_msrs(&self, kvm: &Kvm) -> Result<(), StateError> {
        self.msrs.look_for_more(kvm, self.tsc_offset)
    }

    /// See [`crate::machine::Machine::msr_choice`].
    pub fn msr_choice(&self, kvm: &Kvm) -> Option<u64> {
        self.msrs.choice(kvm, self.tsc_offset)
    }

    /// See [`crate::machine::Machine::msrs_were_chosen_from`].
    pub fn msrs_were_chosen_from(&self, choice: Option<u64>, kvm: &Kvm) {
        self.msrs.were_chosen_from(choice, kvm, self.tsc_offset);
    }

    pub(super) fn xsave_bytes(&self) -> usize {
        size_of::<kvm_xsave>() + self.xsave_extra * size_of::<u32>()
    }
}

fn tsc_offset_attr(value: &mut u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: (&raw mut *value) as u64,
        flags: 0,
    }
}

/// One vCPU with what is needed to save and restore it.
pub struct Access<'a> {
    /// Its index.
    pub index: u8,
    /// Its descriptor.
    pub fd: &'a VcpuFd,
    /// What KVM offers.
    pub capabilities: &'a StateCapabilities,
}

impl Access<'_> {
    fn call<T>(
        &self,
        call: &'static str,
        result: Result<T, kvm_ioctls::Error>,
    ) -> Result<T, StateError> {
        result.map_err(|source| StateError::Ioctl { vcpu: self.index, call, source })
    }

    fn nix<T>(&self, call: &'static str, result: nix::Result<T>) -> Result<T, StateError> {
        self.call(call, result.map_err(|errno| kvm_ioctls::Error::new(errno as i32)))
    }

    /// Injects an NMI if the guest has configured the LAPIC's LINT1 for NMIs, as QEMU does.
    pub fn inject_nmi(&self) -> Result<(), StateError> {
        const LVT_LINT1: usize = 0x360;
        const NMI: u32 = 0x400;
        const MODE_AND_MASK: u32 = 0x1_0700;
        let lapic = self.call("KVM_GET_LAPIC", self.fd.get_lapic())?;
        if lapic_timer::register(&lapic, LVT_LINT1) & MODE_AND_MASK != NMI {
            return Ok(());
        }
        self.call("KVM_NMI", self.fd.nmi())
    }

    /// Saves everything, in the order of [`order::SAVE`]. The vCPU must be out of `KVM_RUN`, with
    /// no half-done port or MMIO access.
    pub fn save(&self) -> Result<VcpuState, StateError> {
        let mut state = VcpuState::empty();
        for item in in_order(order::SAVE, &order::SAVE_CONSTRAINTS) {
            self.save_item(item, &mut state)?;
        }
        Ok(state)
    }

    fn save_item(&self, item: Item, state: &mut VcpuState) -> Result<(), StateError> {
        let fd = self.fd;
        match item {
            Item::MpState => state.mp_state = self.call("KVM_GET_MP_STATE", fd.get_mp_state())?,
            Item::Regs => state.regs = self.call("KVM_GET_REGS", fd.get_regs())?,
            Item::Sregs => {
                state.sregs = self.call("KVM_GET_SREGS", fd.get_sregs())?;
                state.sregs2 = self.sregs2_tail()?;
            }
            Item::Xcrs => state.xcrs = self.optional("KVM_GET_XCRS", fd.get_xcrs())?,
            Item::Xsave => state.xsave = self.xsave()?,
            Item::DebugRegs => {
                state.debug_regs = self.call("KVM_GET_DEBUGREGS", fd.get_debug_regs())?;
            }
            Item::Lapic => state.lapic = self.call("KVM_GET_LAPIC", fd.get_lapic())?,
            Item::Msrs => state.msrs = self.msrs()?,
            Item::TscOffset => state.tsc_offset = self.tsc_offset()?,
            Item::Events => {
                state.events = self.call("KVM_GET_VCPU_EVENTS", fd.get_vcpu_events())?;
            }
            Item::Cpuid => {
                let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES);
                state.cpuid = self.call("KVM_GET_CPUID2", cpuid)?.as_slice().to_vec();
            }
        }
        Ok(())
    }

    /// Writes everything back, in the order of [`order::RESTORE`], into a vCPU that has never run.
    pub fn restore(&self, state: &VcpuState) -> Result<(), StateError> {
        fail_point!(VcpuRestore);
        for item in in_order(order::RESTORE, &order::RESTORE_CONSTRAINTS) {
            self.restore_item(item, state)?;
        }
        Ok(())
    }

    fn restore_item(&self, item: Item, state: &VcpuState) -> Result<(), StateError> {
        let fd = self.fd;
        match item {
            Item::MpState => self.call("KVM_SET_MP_STATE", fd.set_mp_state(state.mp_state)),
            Item::Regs => self.call("KVM_SET_REGS", fd.set_regs(&state.regs)),
            Item::Sregs => self.set_sregs(state),
            Item::Xcrs => match &state.xcrs {
                Some(xcrs) => self.call("KVM_SET_XCRS", fd.set_xcrs(xcrs)),
                None => Ok(()),
            },
            Item::Xsave => self.set_xsave(&state.xsave),
            Item::DebugRegs => self.call("KVM_SET_DEBUGREGS", fd.set_debug_regs(&state.debug_regs)),
            Item::Lapic => self.call("KVM_SET_LAPIC", fd.set_lapic(&state.lapic)),
            Item::Msrs => self.set_msrs(&state.msrs),
            Item::TscOffset => match state.tsc_offset {
                Some(offset) => self.set_tsc_offset(offset),
                None => Ok(()),
            },
            Item::Events => self.call("KVM_SET_VCPU_EVENTS", fd.set_vcpu_events(&state.events)),
            Item::Cpuid => {
                let cpuid = CpuId::from_entries(&state.cpuid).map_err(|_| StateError::TooMany {
                    vcpu: self.index,
                    what: "CPUID entries",
                    count: state.cpuid.len(),
                })?;
                self.call("KVM_SET_CPUID2", fd.set_cpuid2(&cpuid))
            }
        }
    }

    /// Returns `None` if KVM does not offer the ioctl (`EINVAL`: the CPU has no such registers).
    fn optional<T>(
        &self,
        call: &'static str,
        result: Result<T, kvm_ioctls::Error>,
    ) -> Result<Option<T>, StateError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.errno() == libc::EINVAL => Ok(None),
            Err(error) => self.call(call, Err(error)),
        }
    }

    fn sregs2_tail(&self) -> Result<Option<Sregs2Tail>, StateError> {
        if !self.capabilities.sregs2 {
            return Ok(None);
        }
        let mut sregs = kvm_sregs2::default();
        // SAFETY: the descriptor is a vCPU's and `sregs` is the structure the ioctl fills.
        let result = unsafe { ioctls::kvm_get_sregs2(self.fd.as_raw_fd(), &mut sregs) };
        self.nix("KVM_GET_SREGS2", result)?;
        Ok(Some(Sregs2Tail { flags: sregs.flags, pdptrs: sregs.pdptrs }))
    }

    fn set_sregs(&self, state: &VcpuState) -> Result<(), StateError> {
        let sregs = &state.sregs;
        // Without valid PDPTRs, sregs2 holds nothing that sregs lacks.
        let tail = state.sregs2.filter(|tail| tail.flags & SREGS2_PDPTRS_VALID != 0);
        let Some(tail) = tail else {
            return self.call("KVM_SET_SREGS", self.fd.set_sregs(sregs));
        };
        if !self.capabilities.sregs2 {
            let what = "PDPTRs (KVM_CAP_SREGS2)";
            return Err(StateError::Unsupported { vcpu: self.index, what });
        }
        let sregs2 = kvm_sregs2 {
            cs: sregs.cs,
            ds: sregs.ds,
            es: sregs.es,
            fs: sregs.fs,
            gs: sregs.gs,
            ss: sregs.ss,
            tr: sregs.tr,
            ldt: sregs.ldt,
            gdt: sregs.gdt,
            idt: sregs.idt,
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8,
            efer: sregs.efer,
            apic_base: sregs.apic_base,
            flags: tail.flags,
            pdptrs: tail.pdptrs,
        };
        // SAFETY: the descriptor is a vCPU's and `sregs2` is the structure the ioctl reads.
        let result = unsafe { ioctls::kvm_set_sregs2(self.fd.as_raw_fd(), &sregs2) };
        self.nix("KVM_SET_SREGS2", result).map(drop)
    }

    fn xsave(&self) -> Result<Vec<u8>, StateError> {
        let mut area = Xsave::new(self.capabilities.xsave_extra)
            .expect("the size comes from KVM and is far below the limit of the wrapper");
        if self.capabilities.xsave_extra == 0 {
            let legacy = self.call("KVM_GET_XSAVE", self.fd.get_xsave())?;
            area = Xsave::from_entries(&[]).expect("no entries");
            // SAFETY: the length of the flexible array stays as it is, zero.
            unsafe { area.as_mut_fam_struct() }.xsave = legacy;
        } else {
            // SAFETY: `area` was allocated with the size that KVM_CAP_XSAVE2 says.
            self.call("KVM_GET_XSAVE2", unsafe { self.fd.get_xsave2(&mut area) })?;
        }
        let words = area.as_fam_struct_ref().xsave.region.iter().chain(area.as_slice());
        Ok(words.flat_map(|word| word.to_le_bytes()).collect())
    }

    fn set_xsave(&self, bytes: &[u8]) -> Result<(), StateError> {
        let expected = self.capabilities.xsave_bytes();
        if bytes.len() != expected {
            let found = bytes.len();
            return Err(StateError::XsaveSize { vcpu: self.index, found, expected });
        }
        let words: Vec<u32> = bytes
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        let (region, extra) = words.split_at(1024);
        let mut area = Xsave::from_entries(extra).expect("as many as KVM asked for");
        // SAFETY: the length of the flexible array stays as it is.
        unsafe { area.as_mut_fam_struct() }.xsave.region.copy_from_slice(region);
        // SAFETY: the area has the size that KVM_CAP_XSAVE2 says, checked above.
        self.call("KVM_SET_XSAVE", unsafe { self.fd.set_xsave2(&area) })
    }

    fn msrs(&self) -> Result<Vec<kvm_msr_entry>, StateError> {
        let known = &self.capabilities.msrs;
        match self.read_msrs(known.now()) {
            // The MSR was found on another vCPU: its absence here must not fail the update.
            Err(StateError::Msr { msr, .. }) if !known.first().contains(&msr) => {
                tracing::warn!(vcpu = self.index, msr = format!("{msr:#x}"), "msrs_as_before");
                self.read_msrs(known.first())
            }
            result => result,
        }
    }

    fn read_msrs(&self, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, StateError> {
        let mut msrs = Vec::with_capacity(indices.len());
        self.whole_list("KVM_GET_MSRS", &msrs::entries(indices), |batch| {
            let done = self.fd.get_msrs(batch)?;
            msrs.extend_from_slice(batch.as_slice());
            Ok(done)
        })?;
        Ok(msrs)
    }

    fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<(), StateError> {
        self.whole_list("KVM_SET_MSRS", entries, |batch| self.fd.set_msrs(batch))
    }

    /// Calls `act` with all of `entries`, in as many batches as necessary.
    fn whole_list(
        &self,
        call: &'static str,
        entries: &[kvm_msr_entry],
        mut act: impl FnMut(&mut Msrs) -> Result<usize, kvm_ioctls::Error>,
    ) -> Result<(), StateError> {
        for (before, part) in (0..).step_by(msrs::BATCH).zip(entries.chunks(msrs::BATCH)) {
            let done = self.call(call, act(&mut msrs::batch(self.index, part)?))?;
            if let Some(entry) = part.get(done) {
                let (msr, done, all) = (entry.index, before + done, entries.len());
                return Err(StateError::Msr { vcpu: self.index, call, msr, done, all });
            }
        }
        Ok(())
    }

    fn tsc_offset(&self) -> Result<Option<u64>, StateError> {
        if !self.capabilities.tsc_offset {
            return Ok(None);
        }
        let mut offset = 0_u64;
        let attr = tsc_offset_attr(&mut offset);
        // SAFETY: the attribute's address is `offset`, of the 8 bytes that the attribute has.
        let result = unsafe { ioctls::kvm_get_device_attr(self.fd.as_raw_fd(), &attr) };
        self.nix("KVM_GET_DEVICE_ATTR(KVM_VCPU_TSC_OFFSET)", result)?;
        Ok(Some(offset))
    }

    fn set_tsc_offset(&self, mut offset: u64) -> Result<(), StateError> {
        if !self.capabilities.tsc_offset {
            let what = "a TSC offset (KVM_VCPU_TSC_OFFSET)";
            return Err(StateError::Unsupported { vcpu: self.index, what });
        }
        let attr = tsc_offset_attr(&mut offset);
        // SAFETY: the attribute's address is `offset`, of the 8 bytes that the attribute has.
        let result = unsafe { ioctls::kvm_set_device_attr(self.fd.as_raw_fd(), &attr) };
        self.nix("KVM_SET_DEVICE_ATTR(KVM_VCPU_TSC_OFFSET)", result).map(drop)
    }
}
