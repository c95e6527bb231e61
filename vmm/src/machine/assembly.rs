//! Assembling a machine, step by step in the order of `order::STEPS`.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use kvm_bindings::{
    KVM_CAP_IMMEDIATE_EXIT, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_cpuid_entry2,
    kvm_pit_config,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::order::{CONSTRAINTS, FIRST_WITH_STATE, STEPS, Step};
use super::state::{PlatformState, RestoredState};
use super::{KvmPart, Machine, MachineConfig, MachineError, VCPU_DEADLINE, kvm, system};
use crate::boot::{self, Given};
use crate::constraint::in_order;
use crate::devices::serial::{SerialHost, SerialPort, SerialPortState};
use crate::devices::{self, Board, BoardState, DevicesState, PciState, PortBus, TestPortState};
use crate::memory::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::vcpu::{
    Access, CpuidError, StateCapabilities, VcpuHandle, VcpuStart, VcpuState, cpuid_for,
    install_kick_handler,
};

/// Assembles a machine as after power-on, but with `board`, and with its boot processor at the
/// kernel's entry.
pub(super) fn power_on(
    machine: &Machine,
    host: SerialHost,
    board: BoardState,
) -> Result<KvmPart, MachineError> {
    let image = machine.image.as_ref().ok_or(MachineError::NoKernel)?;
    let MachineConfig { cmdline, cpus, devices, .. } = &machine.config;
    let given = Given { cmdline, cpus: *cpus, pci: !devices.is_empty() };
    let entry = boot::load(machine.ram.memory(), image, given)?;
    assemble(machine, None, host, Content::PowerOn(entry, Box::new(board)), &mut |_| ())
}

/// Assembles a machine with everything that a restored one has, but nothing to run: each part is
/// given the state with which it was just created.
pub(super) fn rehearsed(
    machine: &Machine,
    host: SerialHost,
    before: &mut dyn FnMut(Step),
) -> Result<KvmPart, MachineError> {
    assemble(machine, None, host, Content::Rehearsed, before)
}

impl Machine {
    /// Assembles the machine as it was saved, calling `before` with each step; the vCPUs wait for
    /// [`Machine::resume`].
    pub fn restore(
        &mut self,
        host: SerialHost,
        state: RestoredState,
        before: &mut dyn FnMut(Step),
    ) -> Result<(), MachineError> {
        let content = Content::Restored(Box::new(state));
        let skeleton = self.skeleton.take();
        self.kvm_part = Some(assemble(self, skeleton, host, content, before)?);
        Ok(())
    }

    /// Builds everything that needs no saved state, for a [`restore`](Self::restore) that follows:
    /// the VM with RAM, chips and vCPUs.
    pub fn build_ahead(&mut self) -> Result<(), MachineError> {
        let skeleton = Skeleton::new(self)?;
        let mut parts = Parts::new(self, skeleton);
        let steps = in_order(STEPS, &CONSTRAINTS).into_iter();
        for step in steps.take_while(|step| *step != FIRST_WITH_STATE) {
            parts.take_step(step)?;
        }
        let Parts { vm, fds, .. } = parts;
        self.skeleton = Some(Skeleton { vm, fds });
        Ok(())
    }
}

/// A VM without any state.
#[derive(Debug)]
pub(super) struct Skeleton {
    vm: Arc<VmFd>,
    fds: Vec<VcpuFd>,
}

impl Skeleton {
    fn new(machine: &Machine) -> Result<Self, MachineError> {
        require(&machine.kvm)?;
        install_kick_handler()
            .map_err(|errno| system("install the handler that stops vCPUs")(errno.into()))?;
        let vm = machine.kvm.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
        Ok(Self { vm: Arc::new(vm), fds: Vec::new() })
    }
}

/// The initial content of a machine.
enum Content {
    PowerOn(boot::Entry, Box<BoardState>),
    Restored(Box<RestoredState>),
    Rehearsed,
}

struct Parts<'a> {
    machine: &'a Machine,
    vm: Arc<VmFd>,
    fds: Vec<VcpuFd>,
    capabilities: Option<Arc<StateCapabilities>>,
    cpuids: Vec<Vec<kvm_cpuid_entry2>>,
    bus: Option<Arc<PortBus>>,
    host: Option<SerialHost>,
    vcpus: Vec<VcpuHandle>,
    devices: Option<DevicesState>,
    board: Option<BoardState>,
    pci: Option<PciState>,
    vcpu_states: Vec<VcpuState>,
    platform: Option<PlatformState>,
    entry: Option<boot::Entry>,
    rehearsed: bool,
}

fn assemble(
    machine: &Machine,
    skeleton: Option<Skeleton>,
    host: SerialHost,
    content: Content,
    before: &mut dyn FnMut(Step),
) -> Result<KvmPart, MachineError> {
    let order = in_order(STEPS, &CONSTRAINTS);
    let done = match &skeleton {
        Some(_) => order.iter().position(|step| *step == FIRST_WITH_STATE).unwrap_or(0),
        None => 0,
    };
    let skeleton = skeleton.map_or_else(|| Skeleton::new(machine), Ok)?;
    let rehearsed = matches!(content, Content::Rehearsed);
    let (state, entry, board) = match content {
        Content::PowerOn(entry, board) => (None, Some(entry), Some(*board)),
        Content::Restored(state) => (Some(*state), None, None),
        Content::Rehearsed => (None, None, None),
    };
    let mut parts =
        Parts { host: Some(host), board, entry, rehearsed, ..Parts::new(machine, skeleton) };
    if let Some(RestoredState { devices, board, pci, vcpus, platform }) = state {
        (parts.devices, parts.board, parts.pci) = (Some(devices), Some(board), Some(pci));
        (parts.vcpu_states, parts.platform) = (vcpus, Some(platform));
    }
    let mut steps = order.into_iter().skip(done);
    for step in steps.by_ref().take_while(|step| *step != Step::Run) {
        before(step);
        parts.take_step(step)?;
    }
    Ok(KvmPart {
        vcpus: parts.vcpus,
        bus: parts.bus.expect("a step of STEPS"),
        capabilities: parts.capabilities.expect("a step of STEPS"),
        cpuids: parts.cpuids,
        vm: parts.vm,
        logs_dirty_pages: Cell::new(false),
        #[cfg(feature = "failpoints")]
        delayed_steps: parts
            .platform
            .map(|platform| super::delayed_steps::DelayedSteps::new(steps.collect(), platform)),
    })
}

fn require(kvm: &Kvm) -> Result<(), MachineError> {
    if kvm.check_extension_raw(KVM_CAP_IMMEDIATE_EXIT.into()) <= 0 {
        return Err(MachineError::Capability("KVM_CAP_IMMEDIATE_EXIT"));
    }
    Ok(())
}

impl<'a> Parts<'a> {
    fn new(machine: &'a Machine, Skeleton { vm, fds }: Skeleton) -> Self {
        Self {
            machine,
            vm,
            fds,
            capabilities: None,
            cpuids: Vec::new(),
            bus: None,
            host: None,
            vcpus: Vec::new(),
            devices: None,
            board: None,
            pci: None,
            vcpu_states: Vec::new(),
            platform: None,
            entry: None,
            rehearsed: false,
        }
    }

    fn take_step(&mut self, step: Step) -> Result<(), MachineError> {
        let began = Instant::now();
        #[cfg(feature = "failpoints")]
        super::order::point_before(step).map_or(Ok(()), crate::failpoints::at)?;
        self.carry_out(step)?;
        tracing::debug!(?step, us = began.elapsed().as_micros() as u64, "machine_step");
        Ok(())
    }

    fn carry_out(&mut self, step: Step) -> Result<(), MachineError> {
        match step {
            Step::Memslots => self.memslots(),
            Step::CreateIrqchip => self.vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP")),
            Step::CreatePit => {
                let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
                self.vm.create_pit2(config).map_err(kvm("KVM_CREATE_PIT2"))
            }
            Step::CreateVcpus => self.create_vcpus(),
            Step::Devices => self.devices(),
            Step::Vcpus => self.vcpus(),
            Step::Irqchip => {
                self.platform(PlatformState::set_irqchip)?;
                self.bus.iter().for_each(|bus| bus.renew_lines());
                Ok(())
            }
            Step::Pit => self.platform(PlatformState::set_pit),
            Step::Clock => self.platform(PlatformState::set_clock),
            Step::Run => unreachable!("the machine's owner runs it"),
        }
    }

    fn memslots(&self) -> Result<(), MachineError> {
        // Only Intel needs these two; elsewhere they change nothing.
        self.vm.set_tss_address(KVM_TSS as usize).map_err(kvm("KVM_SET_TSS_ADDR"))?;
        self.vm
            .set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        Ok(self.machine.ram.register(&self.vm)?)
    }

    fn create_vcpus(&mut self) -> Result<(), MachineError> {
        for index in 0..self.machine.config.cpus {
            let fd = self.vm.create_vcpu(index.into()).map_err(kvm("KVM_CREATE_VCPU"))?;
            self.fds.push(fd);
        }
        Ok(())
    }

    fn devices(&mut self) -> Result<(), MachineError> {
        let state = self.devices.take().unwrap_or_else(|| DevicesState {
            serial: SerialPortState::default(),
            test_port: TestPortState::default(),
        });
        let host = self.host.take().expect("taken once");
        let serial =
            SerialPort::new(self.vm.clone(), self.machine.wake.clone(), host, &state.serial)?;
        let board = self.board.take().unwrap_or_default();
        let board = Board::new(board, self.vm.clone(), self.machine.wake.clone());
        let MachineConfig { devices, test_device, .. } = &self.machine.config;
        let memory = self.machine.ram.memory();
        let pci = devices::assemble(devices, &self.vm, memory, self.pci.take())?;
        let bus = PortBus::new(serial, state.test_port, board, self.vm.clone());
        self.bus = Some(Arc::new(bus.with_test_device(*test_device).with_pci(pci)));
        Ok(())
    }

    fn vcpus(&mut self) -> Result<(), MachineError> {
        let kvm_fd = &self.machine.kvm;
        let cpus = self.machine.config.cpus;
        if self.vcpu_states.is_empty() {
            for (index, fd) in (0..).zip(&self.fds) {
                let cpuid = cpuid_for(kvm_fd, index, cpus)?;
                fd.set_cpuid2(&cpuid).map_err(CpuidError::Set)?;
                // KVM may change it.
                let taken = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(kvm("KVM_GET_CPUID2"))?;
                self.cpuids.push(taken.as_slice().to_vec());
            }
        }
        self.cpuids.extend(self.vcpu_states.iter().map(|state| state.cpuid().to_vec()));
        let saved = self.vcpu_states.first();
        let capabilities = StateCapabilities::ask(kvm_fd, &self.vm, &self.fds[0], saved)?;
        let capabilities = Arc::new(capabilities);
        if let Some(entry) = self.entry {
            self.enter(entry)?;
        }
        if self.rehearsed {
            self.platform = Some(PlatformState::save(&self.vm)?);
            for (index, fd) in (0..).zip(&self.fds) {
                let vcpu = Access { index, fd, capabilities: &capabilities };
                self.vcpu_states.push(vcpu.save()?);
            }
        }
        let bus = self.bus.as_ref().expect("Devices come before Vcpus");
        let restoring = !self.vcpu_states.is_empty();
        let mut states = std::mem::take(&mut self.vcpu_states).into_iter();
        for (index, fd) in (0..).zip(std::mem::take(&mut self.fds)) {
            let start = VcpuStart {
                index,
                fd,
                capabilities: capabilities.clone(),
                bus: bus.clone(),
                events: self.machine.events.clone(),
                restore: states.next().map(Box::new),
            };
            self.vcpus.push(VcpuHandle::spawn(start).map_err(system("start a vCPU thread"))?);
        }
        self.capabilities = Some(capabilities);
        if restoring {
            let until = Instant::now() + VCPU_DEADLINE;
            for vcpu in &self.vcpus {
                vcpu.wait_ready(until)?;
            }
        }
        Ok(())
    }

    fn enter(&self, entry: boot::Entry) -> Result<(), MachineError> {
        let boot_cpu = &self.fds[0];
        let reset = boot_cpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
        boot_cpu.set_sregs(&entry.sregs(&reset)).map_err(kvm("KVM_SET_SREGS"))?;
        boot_cpu.set_regs(&entry.regs()).map_err(kvm("KVM_SET_REGS"))
    }

    fn platform(
        &self,
        set: impl Fn(&PlatformState, &VmFd) -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        match &self.platform {
            Some(platform) => set(platform, &self.vm),
            None => Ok(()),
        }
    }
}
