//! The state of a VM as after power-on, as plain bytes, which need no decoding and load fastest.

use std::io::Write;

use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_clock_data, kvm_cpuid_entry2,
    kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_config,
    kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{ProbeError, kvm, system};

/// Creates a VM and writes its state to stdout.
pub(super) fn print(cpus: u8) -> Result<(), ProbeError> {
    let kvm_fd = Kvm::new().map_err(kvm("open /dev/kvm"))?;
    let vm = kvm_fd.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
    vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(kvm("KVM_CREATE_PIT2"))?;
    let mut bytes = Vec::new();
    for index in 0..cpus {
        let vcpu = vm.create_vcpu(index.into()).map_err(kvm("KVM_CREATE_VCPU"))?;
        let cpuid = kvm_fd.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(kvm("KVM_GET_SUPPORTED_CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
        let msrs = kvm_fd.get_msr_index_list().map_err(kvm("KVM_GET_MSR_INDEX_LIST"))?;
        VcpuState::get(&vcpu, msrs.as_slice(), cpuid)?.put(&mut bytes);
    }
    for chip in CHIPS {
        let mut chip = kvm_irqchip { chip_id: chip, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(kvm("KVM_GET_IRQCHIP"))?;
        bytes.extend(chip.as_bytes());
    }
    bytes.extend(vm.get_pit2().map_err(kvm("KVM_GET_PIT2"))?.as_bytes());
    bytes.extend(vm.get_clock().map_err(kvm("KVM_GET_CLOCK"))?.as_bytes());
    std::io::stdout().lock().write_all(&bytes).map_err(system("write to stdout"))
}

/// Number of MSRs in a call; KVM accepts fewer than 256.
const MSRS_AT_ONCE: usize = 128;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The part of the saved state that is still to be read.
pub(super) struct Saved<'a>(&'a [u8]);

impl<'a> Saved<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take<T: FromBytes>(&mut self) -> Result<T, ProbeError> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| ProbeError::Short)?;
        self.0 = rest;
        Ok(value)
    }

    fn list<T: FromBytes>(&mut self) -> Result<Vec<T>, ProbeError> {
        (0..self.take::<u32>()?).map(|_| self.take()).collect()
    }

    /// Loads the interrupt chips, the PIT and the clock.
    pub(super) fn set_platform(mut self, vm: &VmFd) -> Result<(), ProbeError> {
        for _ in CHIPS {
            let chip: kvm_irqchip = self.take()?;
            vm.set_irqchip(&chip).map_err(kvm("KVM_SET_IRQCHIP"))?;
        }
        let pit: kvm_pit_state2 = self.take()?;
        vm.set_pit2(&pit).map_err(kvm("KVM_SET_PIT2"))?;
        let clock: kvm_clock_data = self.take()?;
        let clock = kvm_clock_data { flags: 0, ..clock };
        vm.set_clock(&clock).map_err(kvm("KVM_SET_CLOCK"))
    }
}

fn put<T: IntoBytes + Immutable>(bytes: &mut Vec<u8>, list: &[T]) {
    bytes.extend((list.len() as u32).as_bytes());
    list.iter().for_each(|item| bytes.extend(item.as_bytes()));
}

/// All state of a vCPU that an update transfers.
pub(super) struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    sregs: kvm_sregs,
    xcrs: Vec<kvm_xcrs>,
    xsave: Box<kvm_xsave>,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    regs: kvm_regs,
    mp_state: kvm_mp_state,
    debug_regs: kvm_debugregs,
    events: kvm_vcpu_events,
}

impl VcpuState {
    fn get(vcpu: &VcpuFd, msrs: &[u32], cpuid: CpuId) -> Result<Self, ProbeError> {
        // One by one: KVM stops at the first MSR of a list that it rejects.
        let msr = |&index: &u32| {
            let entry = kvm_msr_entry { index, ..Default::default() };
            let mut one = Msrs::from_entries(&[entry]).ok()?;
            let settable = vcpu.get_msrs(&mut one).ok()? == 1 && vcpu.set_msrs(&one).ok()? == 1;
            settable.then(|| one.as_slice().first().copied()).flatten()
        };
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            sregs: vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?,
            // Some hosts do not support it.
            xcrs: vcpu.get_xcrs().into_iter().collect(),
            xsave: Box::new(vcpu.get_xsave().map_err(kvm("KVM_GET_XSAVE"))?),
            lapic: vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?,
            msrs: msrs.iter().filter_map(msr).collect(),
            regs: vcpu.get_regs().map_err(kvm("KVM_GET_REGS"))?,
            mp_state: vcpu.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?,
            debug_regs: vcpu.get_debug_regs().map_err(kvm("KVM_GET_DEBUGREGS"))?,
            events: vcpu.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        put(bytes, &self.cpuid);
        bytes.extend(self.sregs.as_bytes());
        put(bytes, &self.xcrs);
        bytes.extend(self.xsave.as_bytes());
        bytes.extend(self.lapic.as_bytes());
        put(bytes, &self.msrs);
        bytes.extend(self.regs.as_bytes());
        bytes.extend(self.mp_state.as_bytes());
        bytes.extend(self.debug_regs.as_bytes());
        bytes.extend(self.events.as_bytes());
    }

    pub(super) fn take(saved: &mut Saved<'_>) -> Result<Self, ProbeError> {
        Ok(Self {
            cpuid: saved.list()?,
            sregs: saved.take()?,
            xcrs: saved.list()?,
            xsave: Box::new(saved.take()?),
            lapic: saved.take()?,
            msrs: saved.list()?,
            regs: saved.take()?,
            mp_state: saved.take()?,
            debug_regs: saved.take()?,
            events: saved.take()?,
        })
    }

    /// Loads the state in a valid order: CPUID before the mode, the LAPIC before its TSC deadline.
    pub(super) fn set(&self, vcpu: &VcpuFd) -> Result<(), ProbeError> {
        let too_many = |_| ProbeError::Short;
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(too_many)?;
        vcpu.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
        vcpu.set_sregs(&self.sregs).map_err(kvm("KVM_SET_SREGS"))?;
        for xcrs in &self.xcrs {
            vcpu.set_xcrs(xcrs).map_err(kvm("KVM_SET_XCRS"))?;
        }
        // SAFETY: KVM reads what the guest's features ask for; nothing but the 4 KiB that
        // `KVM_GET_XSAVE` has filled is enabled in a guest as after power-on.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(kvm("KVM_SET_XSAVE"))?;
        vcpu.set_lapic(&self.lapic).map_err(kvm("KVM_SET_LAPIC"))?;
        for batch in self.msrs.chunks(MSRS_AT_ONCE) {
            let msrs = Msrs::from_entries(batch).map_err(too_many)?;
            let set = vcpu.set_msrs(&msrs).map_err(kvm("KVM_SET_MSRS"))?;
            // KVM stops at the first MSR that it rejects, without an error.
            if let Some(refused) = batch.get(set) {
                return Err(ProbeError::Msr(refused.index));
            }
        }
        vcpu.set_regs(&self.regs).map_err(kvm("KVM_SET_REGS"))?;
        vcpu.set_mp_state(self.mp_state).map_err(kvm("KVM_SET_MP_STATE"))?;
        vcpu.set_debug_regs(&self.debug_regs).map_err(kvm("KVM_SET_DEBUGREGS"))?;
        vcpu.set_vcpu_events(&self.events).map_err(kvm("KVM_SET_VCPU_EVENTS"))
    }
}
